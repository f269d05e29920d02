"""What Debian's packages say of themselves: their purl, and the licences in their copyright files.

A copyright file is for machines where it follows DEP-5 (https://dep-team.pages.debian.net/deps/dep5/); many
do not, and then only the text says it.
"""

from __future__ import annotations

import re
from urllib.parse import quote

_FORMAT = re.compile(r"^Format(-Specification)?:", re.IGNORECASE)
_LICENCE = re.compile(r"^License:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])")


def licences(text: str) -> list[str]:
    """The short names of the licences in a copyright file, sorted; none where it is not for machines."""
    return sorted(set(_LICENCE.findall(text))) if _FORMAT.match(text) else []


def common(text: str) -> list[str]:
    """The files of /usr/share/common-licenses that a copyright file points to, `GPL-3`, sorted."""
    return sorted(set(_COMMON.findall(text)))


def purl(system: str, name: str, version: str, architecture: str) -> str:
    """`pkg:deb/debian/libc6@2.41-12?arch=amd64` (https://github.com/package-url/purl-spec, type deb)."""
    return f"pkg:deb/{system}/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
