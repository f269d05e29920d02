"""Known advisories of what is in a result, as a list that somebody gives: JSON or TOML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError
from vllm_variants.model import toml_file
from vllm_variants.reports import reading

_TEXTS = ("severity", "package", "affected", "fixed", "url")
_SENTENCE = ("sentence", "summary", "what", "title", "details")


def read(path: Path) -> list[dict[str, str]]:
    """The advisories in a file: a list, or an object with a list `advisories` (TOML: `[[advisories]]`).

    Each has an `id`, and of the others what is known: a sentence, severity, package, versions, an address.
    Raises `MissingError` or `InputError`.
    """
    found: Any = dict(toml_file.load(path)) if path.suffix == ".toml" else reading.value(path)
    listed = found.get("advisories", found.get("advisory")) if isinstance(found, dict) else found
    if not isinstance(listed, list):
        raise InputError(f"{path} has no list of advisories", hint='write {"advisories": [{"id": "CVE-…"}]}')
    with reading.expected(path, "no list of advisories", hint="each needs an id"):
        return [_advisory(advisory) for advisory in listed]


def _advisory(advisory: Mapping[str, Any]) -> dict[str, str]:
    known = {name: str(advisory[name]) for name in _TEXTS if advisory.get(name)}
    sentence = next((str(advisory[name]) for name in _SENTENCE if advisory.get(name)), "")
    if not known.get("url", "https:").startswith(("https:", "http:")):
        del known["url"]
    return {"id": str(advisory["id"]), "sentence": sentence, **known}
