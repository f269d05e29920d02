"""The licences of what an export holds, and what NVIDIA's terms say of changed libraries.

Each wheel brings its licence texts in dist-info (PEP 639, and what projects did before it): they are copied,
by package, beside a page that lists what each package says of itself.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.export import debian_copyright
from vllm_variants.export.others import Other
from vllm_variants.export.packages import Package

_COMMON = Path("/usr/share/common-licenses")
"""Where Debian keeps the texts that copyright files point to instead of having them."""
FOLDER = "licences"
PAGE = "README.md"
_TEXT = re.compile(r"(licen[cs]e|copying|copyright|notice|eula|authors|third.?party)", re.IGNORECASE)
_CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?(.+)")
_LONGEST = 80
"""Characters of a licence's name; some projects write the whole text in its place."""

NVIDIA = """\
NVIDIA's libraries (cuBLAS, cuDNN, cuSPARSE, …) were changed: the code of other GPUs was taken out. The
license agreement of the CUDA Toolkit, in the folders of most of them, says among its limitations: "Except as
expressly provided in this Agreement, you may not copy, sell, rent, sublicense, transfer, distribute, modify,
or create derivative works of any portion of the SDK." So this is for your own use, on your own machines: do
not put it on a public index or registry, and do not pass it on. This is no legal advice: the texts count.
"""
NOTICE = "NVIDIA's libraries are changed in it: for your own use, not for a public index or registry"
"""The same in one line, where a person exports."""


@dataclass(frozen=True)
class Licence:
    """What a package says of its licence: an SPDX expression, or a name; and the files that hold its text.

    `files` are paths relative to dist-info.
    """

    name: str
    is_expression: bool
    files: tuple[str, ...]


def of_package(package: Package) -> Licence:
    """A package's licence, by its metadata; the name is empty where it says nothing."""
    metadata = package.distribution.metadata
    files = tuple(_files(package))
    if expression := metadata["License-Expression"]:
        return Licence(str(expression), True, files)
    name = str(metadata["License"] or "").strip()
    if name and "\n" not in name and len(name) <= _LONGEST and name != "UNKNOWN":
        return Licence(name, False, files)
    classifiers = [_CLASSIFIER.fullmatch(line) for line in metadata.get_all("Classifier") or ()]
    return Licence(" or ".join(match[1] for match in classifiers if match), False, files)


def write(
    folder: Path, packages: Sequence[Package], changed: Collection[str], others: Sequence[Other] = ()
) -> None:
    """Write `licences/` into `folder`: the texts of all packages, and a page.

    `changed` are the names of packages, `others` is what is in the export besides Python packages. The same
    packages give the same bytes. Raises `OSError`.
    """
    root = folder / FOLDER
    root.mkdir()
    for package in packages:
        for name in of_package(package).files:
            _copy(package.info / name, root / package.info.name.removesuffix(".dist-info") / name)
    for other in others:
        for path in other.texts:
            _copy(path, root / other.name / path.name)
            for name in debian_copyright.common(path.read_text(encoding="utf-8", errors="replace")):
                if (_COMMON / name).is_file():
                    _copy(_COMMON / name, root / _COMMON.name / name)
    (root / PAGE).write_text(_page(packages, changed, others), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _page(packages: Sequence[Package], changed: Collection[str], others: Sequence[Other]) -> str:
    lines = ["# Licences", "", NVIDIA.rstrip(), ""]
    lines += ["Each package's texts are in the folder of its name, as far as its wheel has them.", ""]
    lines += ["| package | licence, as the package says | texts | |", "| --- | --- | --- | --- |"]
    for package in packages:
        licence = of_package(package)
        state = "changed" if package.name in changed else ""
        lines.append(_row(f"{package.name} {package.version}", licence.name, len(licence.files), state))
    for other in others:
        name = f"{other.name} {other.version}".strip()
        lines.append(_row(name, ", ".join(other.licences), len(other.texts), other.notes))
    return "\n".join(lines) + "\n"


def _row(name: str, licence: str, texts: int, notes: str) -> str:
    stated = licence.replace("|", "\\|") or "see its text"
    return f"| {name} | {stated} | {texts} | {notes} |"


def _files(package: Package) -> Iterator[str]:
    named = {str(name) for name in package.distribution.metadata.get_all("License-File") or ()}
    for parent, folders, names in os.walk(package.info):
        folders.sort()
        for name in sorted(names):
            path = os.path.relpath(os.path.join(parent, name), package.info)  # noqa: PTH118
            below = path.startswith(("licenses/", "license_files/", "LICENSES/"))
            if below or path in named or ("/" not in path and _TEXT.match(name)):
                yield path
