"""Move a release's pin of nixpkgs: every file that names it, together or not at all.

`variants.toml` (the revision, and torch when it changed), `flake.nix`, `flake.lock` and what is
generated are made anew as texts; nothing is written until all of them are there and were tried.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError, UnsupportedError, UsageError, resource_error
from vllm_variants.maintain import docs as generated
from vllm_variants.model import matrix
from vllm_variants.model.variants import Matrix, Release
from vllm_variants.nix.prefetch import Revision, Source, Versions

_NOTE = re.compile(r"at \S+?(?:; |$)")  # the name that a pin was asked by, before a person's comment
# What Nix reads of the checkout, and what it imports from there.
_READ_BY_NIX = ("nix", "pkgs", "python", "pyproject.toml", "locks", "README.md", "LICENSE", "expectations")


@dataclass(frozen=True)
class Pin:
    """Where a release's pin goes: the revision, its tree, and what it packages."""

    release: Release
    revision: Revision
    source: Source
    versions: Versions

    def check(self) -> None:
        """Refuse, with an `Error`, a revision that does not package what the release is."""
        name, cuda = self.release.name, self.release.stack.cuda
        if self.versions.vllm != name:
            raise UsageError(
                f"{self.revision.rev[:7]} packages vLLM {self.versions.vllm}, and the release is {name}",
                hint=f'choose another revision, or add [release."{self.versions.vllm}"] to variants.toml',
            )
        if cuda not in self.versions.cuda:
            raise UnsupportedError(
                f"{self.revision.rev[:7]} has no CUDA {cuda} any more, only {', '.join(self.versions.cuda)}",
                hint=f'choose an older revision, or change cuda in [release."{name}"]',
            )


def input_name(matrix: Matrix, release: Release) -> str:
    """The flake input of a release: `nixpkgs` for the default one, else `nixpkgs-0_11_2`."""
    return "nixpkgs" if release == matrix.default else f"nixpkgs-{release.name.replace('.', '_')}"


def edited(root: Path, matrix: Matrix, pin: Pin) -> dict[Path, str]:
    """Every file that the pin changes → its new text. Writes nothing.

    Raises `InputError` naming the file in which the old pin is not where it should be.
    """
    toml, nix, lock = root / "variants.toml", root / "flake.nix", root / "flake.lock"
    name = input_name(matrix, pin.release)
    texts = {
        toml: edit_toml(_read(toml), pin),
        nix: edit_flake(_read(nix), name, pin.revision.rev),
        lock: edit_lock(_read(lock), name, pin),
    }
    texts |= generated.files(root, _matrix(texts[toml]))
    return {path: text for path, text in texts.items() if not path.exists() or _read(path) != text}


def edit_toml(text: str, pin: Pin) -> str:
    """The matrix with the release's revision and torch changed; every other character stays."""
    table = re.escape(f'[release."{pin.release.name}"]')
    match = re.search(rf"^{table}[^\n]*\n(?:(?!\[).*\n?)*", text, re.MULTILINE)
    if not match:
        raise InputError(f'variants.toml has no table [release."{pin.release.name}"]')
    body = _set(match[0], "nixpkgs", pin.revision.rev, pin.revision.name)
    if pin.versions.torch != pin.release.stack.torch:
        body = _set(body, "torch", pin.versions.torch, None)
    return text[: match.start()] + body + text[match.end() :]


def _set(table: str, key: str, value: str, name: str | None) -> str:
    """The table with `key` set to `value`; `name` is noted in the comment behind, before a person's."""
    match = re.search(rf'^({key}\s*=\s*)"[^"]*"([ \t]*)(#[^\n]*)?$', table, re.MULTILINE)
    if not match:
        raise InputError(f'variants.toml: {table.splitlines()[0]} has no line {key} = "…"')
    comment = (match[3] or "").removeprefix("#").strip()
    if key == "nixpkgs":
        comment = "; ".join(filter(None, (f"at {name}" if name else "", _NOTE.sub("", comment, count=1))))
    tail = f"{match[2] or ' '}# {comment}" if comment else ""
    return table[: match.start()] + f'{match[1]}"{value}"{tail}' + table[match.end() :]


def edit_flake(text: str, name: str, rev: str) -> str:
    """flake.nix with the input's revision changed."""
    line = re.compile(
        rf'^(\s*{re.escape(name)}\.url = "github:NixOS/nixpkgs/)[0-9a-f]{{40}}(";)', re.MULTILINE
    )
    changed, count = line.subn(rf"\g<1>{rev}\g<2>", text)
    if count != 1:
        raise InputError(
            f"flake.nix has {count or 'no'} lines for the input {name}",
            hint=f'write {name}.url = "github:NixOS/nixpkgs/<commit>";',
        )
    return changed


def edit_lock(text: str, name: str, pin: Pin) -> str:
    """flake.lock with the input's node locked to the revision, as Nix itself writes it."""
    try:
        document: dict[str, Any] = json.loads(text)
        node = document["nodes"][document["nodes"]["root"]["inputs"][name]]
        node["locked"] |= {
            "lastModified": pin.source.last_modified,
            "narHash": pin.revision.hash,
            "rev": pin.revision.rev,
        }
        node["original"]["rev"] = pin.revision.rev
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"flake.lock has no node for the input {name}: {error}", hint="nix flake lock"
        ) from error
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@contextmanager
def trial(root: Path, texts: Mapping[Path, str]) -> Iterator[Path]:
    """A copy of what Nix reads of the checkout, with the new texts in it: to evaluate before they count."""
    with tempfile.TemporaryDirectory(prefix="vllm-variants-pin-") as folder:
        copy = Path(folder)
        for part in _READ_BY_NIX:
            source = root / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy / part)
        for path in (root / name for name in ("variants.toml", "flake.nix", "flake.lock")):
            (copy / path.name).write_text(texts.get(path) or _read(path), encoding="utf-8")
        yield copy


def _matrix(text: str) -> Matrix:
    with tempfile.TemporaryDirectory(prefix="vllm-variants-pin-") as folder:
        path = Path(folder, "variants.toml")
        path.write_text(text, encoding="utf-8")
        return matrix.read(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise resource_error(error) from error
