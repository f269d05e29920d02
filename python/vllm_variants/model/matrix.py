"""Read `variants.toml`, and say of a broken one which line to correct, and how."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from vllm_variants import data as data_files
from vllm_variants.errors import InputError
from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import SYSTEMS
from vllm_variants.model.variants import BUILDERS, Matrix, Related, Release, Stack, Variant

T = TypeVar("T")
_SHORT = re.compile(r"sm\d{2,3}(-arm64)?")
RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?")
"""A version; it names files, so nothing else may stand in it."""
_RELEASE_KEYS = (
    "nixpkgs",
    "builders",
    "python",
    "cuda",
    "driver",
    "glibc",
    "torch",
    "cutlass",
    "own-variants",
)
_VARIANT_KEYS = ("capability", "architecture", "system", "gpus", "related")


@functools.cache
def load(path: Path | None = None) -> Matrix:
    """Read the matrix; `InputError` names the line of what is broken and how to correct it."""
    return read(path or data_files.root() / "variants.toml")


def read(path: Path) -> Matrix:
    """The matrix in the file `path`; `InputError` names the line of what is broken, and the hint."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the matrix {path} cannot be read: {error.strerror}") from error
    text = toml_file.decoded(data, path)
    return _Reader(path, text).matrix()


class _Reader:
    """Turns the text of a matrix into values; an error names the line of what is wrong."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text
        self._tables = toml_file.parse(text, path)

    def matrix(self) -> Matrix:
        """The whole matrix; `InputError` for the first thing that is wrong."""
        releases = {name: self._release(name) for name in self._table("release")}
        variants = {short: self._variant(short) for short in self._table("variant")}
        default = self._value((), "default-release", str)
        self._refuse_unknown_keys((), ("default-release", "release", "variant"))
        if default not in releases:
            raise self._refusal(
                (), "default-release", f"names {default!r}, which has no table", f'add [release."{default}"]'
            )
        if releases[default].nixpkgs is None:
            what = f"names {default!r}, which no nixpkgs packages: the flake is made of the default release"
            raise self._refusal((), "default-release", what, "name a release with nixpkgs")
        listed = self._own_variants(releases.values(), variants)
        every = {short: variant for short, variant in variants.items() if short not in listed}
        more = {short: variant for short, variant in variants.items() if short in listed}
        matrix = Matrix(
            releases[default], MappingProxyType(releases), MappingProxyType(every), MappingProxyType(more)
        )
        for release in releases.values():
            self._each_gpu_once(matrix.of(release).values())
        return matrix

    def _own_variants(self, releases: Iterable[Release], variants: Mapping[str, Variant]) -> set[str]:
        """What releases list under `own-variants`; `InputError` for one that has no table."""
        for release in releases:
            for short in release.own_variants:
                if short not in variants:
                    raise self._refusal(
                        ("release", release.name),
                        "own-variants",
                        f"names {short!r}, which has no table",
                        f"add [variant.{short}], or leave it out",
                    )
        return {short for release in releases for short in release.own_variants}

    def _release(self, name: str) -> Release:
        at = ("release", name)
        if not RELEASE.fullmatch(name):
            raise self._refusal(at, None, "is not a version", 'write [release."0.13.0"]')
        self._refuse_unknown_keys(at, _RELEASE_KEYS)
        revision = self._value(at, "nixpkgs", str) if "nixpkgs" in self._tables["release"][name] else None
        if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise self._refusal(at, "nixpkgs", f"is {revision!r}", "write the full commit, 40 hex digits")
        python, cuda, driver, torch = (
            self._version(at, key) for key in ("python", "cuda", "driver", "torch")
        )
        stack = Stack(python, cuda, driver, torch, self._strings(at, "cutlass", default=()))
        glibc = self._version(at, "glibc", pattern=r"2\.\d+", example="2.34", default=Release.glibc)
        own = self._strings(at, "own-variants", default=())
        return Release(name, revision, stack, self._builders(at, revision), glibc, own)

    def _builders(self, at: tuple[str, ...], nixpkgs: str | None) -> tuple[str, ...]:
        """The builders of a release: all where a nixpkgs packages it, else its wheels alone."""
        possible = BUILDERS if nixpkgs else BUILDERS[:1]
        builders = self._strings(at, "builders", default=possible)
        for builder in builders:
            if builder not in BUILDERS:
                raise self._refusal(at, "builders", f"names {builder!r}", f"known are: {', '.join(BUILDERS)}")
            if builder not in possible:
                hint = f'leave out "{builder}", or add nixpkgs = "…"'
                raise self._refusal(at, "builders", f"names {builder!r}, which needs a nixpkgs", hint)
        return builders

    def _version(
        self,
        at: tuple[str, ...],
        key: str,
        *,
        pattern: str = r"\d+(\.\d+)*",
        example: str = "12.9",
        default: str | None = None,
    ) -> str:
        version = self._value(at, key, str, default)
        if not re.fullmatch(pattern, version):
            raise self._refusal(at, key, f"is {version!r}", f'write a version such as "{example}"')
        return version

    def _variant(self, short: str) -> Variant:
        at = ("variant", short)
        if not _SHORT.fullmatch(short):
            raise self._refusal(at, None, "is not a short name", "write [variant.sm90] or …-arm64]")
        self._refuse_unknown_keys(at, _VARIANT_KEYS)
        variant = Variant(
            short,
            self._capability(at, self._value(at, "capability", str)),
            self._value(at, "architecture", str),
            self._value(at, "system", str),
            self._strings(at, "gpus"),
            tuple(self._related(at, row) for row in self._value(at, "related", list, default=[])),
        )
        if variant.system not in SYSTEMS:
            raise self._refusal(at, "system", f"is {variant.system!r}", f"write one of {', '.join(SYSTEMS)}")
        computed = variant.capability.sm + ("-arm64" if variant.system == "aarch64-linux" else "")
        if computed != short:
            raise self._refusal(
                at, "capability", f"and system make {computed}", f"call the table [variant.{computed}]"
            )
        return variant

    def _related(self, at: tuple[str, ...], row: object) -> Related:
        match row:
            case {"capability": str(capability), "gpus": list(gpus)} if all(isinstance(g, str) for g in gpus):
                return Related(self._capability(at, capability), tuple(gpus))
        raise self._refusal(at, "related", "is not understood", '[{ capability = "10.3", gpus = ["B300"] }]')

    def _refuse_unknown_keys(self, at: tuple[str, ...], known: Sequence[str]) -> None:
        """Refuse a key that nobody reads: it is a known one, mistyped, or meant for another table."""
        table = self._tables
        for part in at:
            table = table[part]
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"write {near[0]}" if near else f"known are: {', '.join(known)}"
                raise self._refusal(at, key, "is not known", hint)

    def _each_gpu_once(self, variants: Iterable[Variant]) -> None:
        """Refuse a GPU that two variants list, for it has one compute capability."""
        listed: dict[str, str] = {}
        for variant in variants:
            for gpu in variant.all_gpus:
                if (other := listed.setdefault(gpu.lower(), variant.short)) != variant.short:
                    raise self._refusal(
                        ("variant", variant.short),
                        "gpus",
                        f"has {gpu}, and [variant.{other}] too",
                        "keep one",
                    )

    def _capability(self, at: tuple[str, ...], text: str) -> Capability:
        if re.fullmatch(r"\d+\.\d", text):
            return Capability.parse(text)
        raise self._refusal(at, "capability", f"is {text!r}", 'write a compute capability such as "9.0"')

    def _table(self, name: str) -> Mapping[str, Any]:
        table = self._tables.get(name)
        if isinstance(table, dict) and all(isinstance(row, dict) for row in table.values()):
            return table
        raise InputError(
            f"{self._path}: there is no [{name}.…] table", hint="see the committed variants.toml"
        )

    def _value(self, at: tuple[str, ...], key: str, kind: type[T], default: T | None = None) -> T:
        table = self._tables
        for part in at:
            table = table[part]
        value = table.get(key, default)
        if value is None:
            raise self._refusal(
                at, None, f"has no {key}", f'add {key} = "…"' if kind is str else f"add {key} = […]"
            )
        if not isinstance(value, kind):
            raise self._refusal(
                at, key, f"is {value!r}", 'quote it: "…"' if kind is str else "write a list: […]"
            )
        return value

    def _strings(
        self, at: tuple[str, ...], key: str, default: tuple[str, ...] | None = None
    ) -> tuple[str, ...]:
        values = self._value(at, key, list, None if default is None else list(default))
        if default is not None and values == list(default):
            return default
        if not values or not all(isinstance(v, str) for v in values):
            raise self._refusal(at, key, f"is {values!r}", 'write a list of names: ["…", "…"]')
        return tuple(values)

    def _refusal(self, at: tuple[str, ...], key: str | None, what: str, hint: str) -> InputError:
        table = ".".join(f'"{part}"' if "." in part else part for part in at)
        where = f"{self._path}:{self._line(table, key)}"
        name = f"[{table}]" if table else ""
        return InputError(f"{where}: {' '.join(filter(None, (name, key)))} {what}", hint=hint)

    def _line(self, table: str, key: str | None) -> int:
        """The 1-based line of `key` inside `[table]`, of the table's head, or 1."""
        inside, head = not table, 1
        for number, line in enumerate(self._text.splitlines(), 1):
            line = line.strip()
            if line.startswith("["):
                inside = line.split("#")[0].strip() == f"[{table}]"
                head = number if inside else head
            if inside and (key is None or re.match(rf"{re.escape(key)}\s*=", line)):
                return number
            if not table and key and re.match(rf"\[{re.escape(key)}[].]", line):
                return number
        return head
