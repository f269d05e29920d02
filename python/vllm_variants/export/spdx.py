"""Licences as SPDX license expressions: https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/.

What a project writes in its metadata is often no expression. A name that means one licence only becomes its
identifier; any other (`BSD`: which one?) becomes a reference of its own, `LicenseRef-BSD`, so that
nothing is claimed that nobody said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_APACHE, _NVIDIA = "Apache-2.0", "LicenseRef-NVIDIA-Proprietary"
_NAMES = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": _APACHE,
    "apache 2.0 license": _APACHE,
    "apache license 2.0": _APACHE,
    "apache license, version 2.0": _APACHE,
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": _NVIDIA,
    "the unlicense (unlicense)": "Unlicense",
}
"""Names in the metadata of packages that can mean one licence only."""


def expression(name: str, otherwise: str) -> str:
    """The expression that a licence's name stands for; `otherwise` names it where there is no name.

    `MIT License` is `MIT`, `BSD` is `LicenseRef-BSD`, and no name is `LicenseRef-<otherwise>`.
    """
    found = _NAMES.get(" ".join(name.split()).lower(), name)
    try:
        return str(canonicalize_license_expression(found))
    except InvalidLicenseExpression:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", found or otherwise).strip("-.")
        return f"LicenseRef-{words or 'unknown'}"


def all_of(expressions: Iterable[str]) -> str:
    """One expression for what holds all of these: each part once, sorted; a choice in parentheses."""
    parts = {part for text in expressions for part in _conjuncts(text)}
    return " AND ".join(sorted(parts, key=lambda part: (part.startswith("LicenseRef-"), part.lstrip("("))))


def _conjuncts(text: str) -> list[str]:
    """The parts that `AND` joins, outside of parentheses; an expression with a choice is one part."""
    depth, parts = 0, [list[str]()]
    for word in text.split():
        if word == "OR" and not depth:
            return [f"({text})"]
        if word == "AND" and not depth:
            parts.append([])
            continue
        depth += word.count("(") - word.count(")")
        parts[-1].append(word)
    return [" ".join(words) for words in parts]
