"""The seam to Nix: which program, with which options, and what it is configured to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_variants import data
from vllm_variants.errors import Error, MissingError, UnsupportedError, UsageError
from vllm_variants.system import process
from vllm_variants.system.process import CompletedCommand
from vllm_variants.system.text import plain
from vllm_variants.versions import numbers

MINIMUM = (2, 18)
# Lix forked from Nix 2.18 and counts from 2.90 on: both orders hold.
_VERSION = re.compile(r"(\d+(?:\.\d+)+)")


@dataclass(frozen=True)
class Configuration:
    """What Nix is configured to do: its settings by name."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def words(self, name: str) -> tuple[str, ...]:
        """A setting that is a list."""
        value = self.settings.get(name, ())
        return tuple(value.split()) if isinstance(value, str) else tuple(value or ())

    def text(self, name: str) -> str:
        """A setting as text; empty when absent."""
        return str(self.settings.get(name) or "")

    @property
    def systems(self) -> frozenset[str]:
        """The systems that this machine itself builds for."""
        return frozenset({self.text("system"), *self.words("extra-platforms")})

    @property
    def machines(self) -> tuple[str, ...]:
        """The lines that describe remote builders, with those of an `@file` read."""
        lines: list[str] = []
        for line in map(str.strip, re.split(r"[\n;]", self.text("builders"))):
            if line.startswith("@"):
                file = Path(line[1:])
                lines += file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            else:
                lines.append(line)
        return tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))

    def builds(self, system: str, features: Sequence[str] = ()) -> bool:
        """Whether this machine or a remote builder of it builds for `system` and has all `features`.

        A builder's line is `uri systems key max-jobs speed supported mandatory key`, `-` for a
        default (Nix's manual, "Remote builds").
        """
        required = set(features)
        here = system in self.systems and required <= set(self.words("system-features"))
        return here or any(self._builder_builds(line.split(), system, required) for line in self.machines)

    def _builder_builds(self, fields: Sequence[str], system: str, required: set[str]) -> bool:
        def names(index: int) -> list[str]:
            value = fields[index] if index < len(fields) else "-"
            return [] if value == "-" else value.split(",")

        return system in (names(1) or [self.text("system")]) and required <= {*names(5), *names(6)}


def _settings(document: Any) -> dict[str, Any]:
    """The settings in what `nix config show --json` prints: `{"cores": {"value": 0, …}, …}`."""
    if not isinstance(document, dict):
        return {}
    return {name: row.get("value") for name, row in document.items() if isinstance(row, dict)}


@dataclass(frozen=True)
class Nix:
    """A Nix program with the flake to build and the options that go with every call.

    `overrides` replace inputs of the flake, `options` are settings; `store` is another store to
    build in (`ssh-ng://…`, `local?root=…`), `builders` the description of remote builders.
    """

    program: str
    flake: str
    overrides: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    store: str | None = None
    builders: str | None = None

    def command(self, *arguments: str, remote: bool = True) -> list[str]:
        """The command line for one call; `remote=False` speaks to this machine's own store."""
        settings = [word for name, value in self.options for word in ("--option", name, value)]
        if self.builders is not None:
            settings += ["--builders", self.builders]
        if self.store and remote:
            settings += ["--store", self.store, "--eval-store", "auto"]
        features = ["--extra-experimental-features", "nix-command flakes"]
        return [self.program, *features, *arguments, *settings]

    def flake_options(self) -> list[str]:
        """What calls that evaluate the flake need; the user's flake.lock is never written."""
        return ["--no-write-lock-file", *self.override_options()]

    def override_options(self) -> list[str]:
        """The overridden inputs alone, for programs that never write a lock."""
        return [word for name, ref in self.overrides for word in ("--override-input", name, ref)]

    def run(self, *arguments: str, remote: bool = True) -> CompletedCommand:
        """Run one call to its end; for `remote` see `command`."""
        return process.capture(self.command(*arguments, remote=remote))

    def version(self) -> str:
        """What `nix --version` prints: `nix (Nix) 2.26.3`. Raises `MissingError` when it cannot be run."""
        try:
            return process.capture([self.program, "--version"]).stdout.strip()
        except OSError as error:
            raise MissingError(f"{self.program} cannot be run: {error.strerror}", hint=_INSTALL) from error

    def configuration(self) -> Configuration:
        """Nix's settings, those of `options` and `builders` included; empty where Nix does not print them."""
        for words in (("config", "show", "--json"), ("show-config", "--json")):
            completed = self.run(*words, remote=False)
            if completed.status == 0:
                return Configuration(_settings(parsed(completed)))
        return Configuration()

    def valid(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of `paths` that are whole in the store that is built in."""
        store = ["--store", self.store] if self.store else []
        invalid = self._from_store("--check-validity", "--print-invalid", *store, *paths)
        return frozenset() if invalid is None else frozenset(paths) - invalid

    def whole(self, drv: str) -> bool:
        """Whether every output of a derivation is whole in the store that is built in."""
        outputs = self._from_store("--query", "--outputs", drv)
        return bool(outputs) and self.valid(sorted(outputs or ())) == outputs

    def requisites(self, drv: str) -> frozenset[str]:
        """Everything that building `drv` may need: derivations and sources, itself included.

        Of an output: all that it needs when it runs. Empty where Nix does not know all of it.
        """
        return self._from_store("--query", "--requisites", drv) or frozenset()

    def _from_store(self, *arguments: str) -> frozenset[str] | None:
        """The paths that `nix-store` prints; None when it fails."""
        completed = process.capture([self.sibling("nix-store"), *arguments])
        return frozenset(completed.stdout.split()) if completed.status == 0 else None

    def sibling(self, name: str) -> str:
        """An older program of the same Nix: `nix-store`."""
        beside = Path(shutil.which(self.program) or self.program).parent / name
        return str(beside) if beside.exists() else name


_INSTALL = "install Nix: https://nixos.org/download"
_WITHOUT = f"{_INSTALL}, or build without it: vllm-variants build --via wheels"


def find(
    flake: str | None,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    options: Sequence[tuple[str, str]] = (),
    store: str | None = None,
    builders: str | None = None,
    purpose: str | None = None,
) -> Nix:
    """The Nix on PATH with the flake `flake`, or else with the checkout that this runs from.

    `purpose` says what Nix is needed for, where that is not a build: "pin evaluates nixpkgs with it".

    Raises `MissingError` without Nix, `UnsupportedError` for one that is too old, `UsageError` when
    there is no flake.
    """
    program = shutil.which("nix")
    if not program:
        text = f"there is no nix on PATH, and {purpose or '--via nix builds with it'}"
        raise MissingError(text, hint=_INSTALL if purpose else _WITHOUT)
    checkout = data.checkout()
    if not flake and not checkout:
        raise UsageError(
            "vllm-variants was installed as a package, so --via nix needs to know the flake",
            hint="name it: --flake github:OWNER/vllm-variants, or run ./vllm-variants in a checkout",
        )
    nix = Nix(program, flake or str(checkout), tuple(overrides), tuple(options), store, builders)
    version = nix.version()
    if not new_enough(version):
        raise UnsupportedError(too_old(version), hint="nix upgrade-nix")
    return nix


def parsed(completed: CompletedCommand, program: str = "nix") -> Any:
    """The JSON that a program printed to stdout; raises an `Error` where that is not JSON."""
    try:
        return json.loads(completed.stdout)
    except (ValueError, RecursionError) as error:
        raise not_understood(program, completed.stdout) from error


def not_understood(program: str, output: str) -> Error:
    """The `Error` for output that a program of that name never prints."""
    shown = output if len(output) <= 80 else f"{output[:80]}…"
    return Error(
        f"the output of {program} is not understood: {shown!r}",
        hint=f"run `{program} --version`: another program of that name may be on PATH",
    )


def new_enough(version: str) -> bool:
    """Whether the output of `nix --version` names a Nix that evaluates the pinned nixpkgs."""
    match = _VERSION.search(version)
    return match is not None and numbers(match[1]) >= MINIMUM


def too_old(version: str) -> str:
    """The sentence on a Nix that is not."""
    return f"{version} is too old: the pinned nixpkgs needs {'.'.join(map(str, MINIMUM))}"


def first_error(text: str) -> str:
    """The innermost error that Nix printed, as one line: the last `error: …` with a text behind it.

    The first line that is not empty where there is none.
    """
    lines = [line.strip() for line in plain(text).splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return next(filter(None, reversed(errors)), next(iter(lines), ""))
