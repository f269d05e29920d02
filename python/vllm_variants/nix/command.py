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
from vllm_variants.system.text import plain
from vllm_variants.versions import numbers

MINIMUM = (2, 18)
# Lix forked from Nix 2.18 and counts from 2.90 on: both orders hold.
_VERSION = re.compile(r"(\d+(?:\.\d+)+)")


@dataclass(frozen=True)
class Told:
    """How a call of Nix ended: status, and what it wrote to stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Nix's error in its first sentence, without the traces that follow."""
        return first_error(self.err)

    def json(self) -> Any:
        """What it wrote to stdout, as JSON; `Error` where that is none."""
        try:
            return json.loads(self.out)
        except (ValueError, RecursionError) as error:
            raise not_understood("nix", self.out) from error


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
        found: list[str] = []
        for part in re.split(r"[\n;]", self.text("builders")):
            name = part.strip()
            if name.startswith("@"):
                file = Path(name[1:])
                found += file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            else:
                found.append(name)
        return tuple(line.strip() for line in found if line.strip() and not line.strip().startswith("#"))

    def builds(self, system: str, features: Sequence[str] = ()) -> bool:
        """Whether this machine or a remote builder of it builds for `system` and has all `features`.

        A builder's line is `uri systems key max-jobs speed supported mandatory key`, `-` for a
        default (Nix's manual, "Remote builds").
        """
        wanted = set(features)
        here = system in self.systems and wanted <= set(self.words("system-features"))
        return here or any(_serves(line.split(), system, wanted, self) for line in self.machines)


def _settings(shown: Any) -> dict[str, Any]:
    """What `nix config show --json` tells: `{"cores": {"value": 0, …}, …}`."""
    if not isinstance(shown, dict):
        return {}
    return {name: row.get("value") for name, row in shown.items() if isinstance(row, dict)}


def _serves(words: Sequence[str], system: str, features: set[str], configured: Configuration) -> bool:
    def at(index: int) -> list[str]:
        value = words[index] if index < len(words) else "-"
        return [] if value == "-" else value.split(",")

    return system in (at(1) or [configured.text("system")]) and features <= {*at(5), *at(6)}


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

    def ask(self, *arguments: str, remote: bool = True) -> Told:
        """Run one short call to its end."""
        told = process.ask(self.command(*arguments, remote=remote))
        return Told(told.returncode, told.stdout, told.stderr)

    def version(self) -> str:
        """What `nix --version` says: `nix (Nix) 2.26.3`."""
        try:
            told = process.ask([self.program, "--version"])
        except OSError as error:
            raise MissingError(f"{self.program} cannot be run: {error.strerror}", hint=_INSTALL) from error
        return told.stdout.strip()

    def configuration(self) -> Configuration:
        """Nix's settings, those of `options` and `builders` included; empty when Nix does not tell."""
        for words in (("config", "show", "--json"), ("show-config", "--json")):
            told = self.ask(*words, remote=False)
            if told.status == 0:
                return Configuration(_settings(told.json()))
        return Configuration()

    def valid(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of `paths` that are whole in the store that is built in."""
        store = ["--store", self.store] if self.store else []
        command = [self.sibling("nix-store"), "--check-validity", "--print-invalid", *store, *paths]
        told = process.ask(command)
        return frozenset(paths) - frozenset(told.stdout.split()) if told.returncode == 0 else frozenset()

    def whole(self, drv: str) -> bool:
        """Whether every output of a derivation is whole in the store that is built in."""
        command = [self.sibling("nix-store"), "--query", "--outputs", drv]
        told = process.ask(command)
        outputs = told.stdout.split()
        return bool(outputs) and self.valid(outputs) == frozenset(outputs)

    def requisites(self, drv: str) -> frozenset[str]:
        """Everything that building `drv` may need: derivations and sources, itself included.

        Of an output: all that it needs when it runs. Empty where Nix does not tell all of it.
        """
        command = [self.sibling("nix-store"), "--query", "--requisites", drv]
        told = process.ask(command)
        return frozenset(told.stdout.split()) if told.returncode == 0 else frozenset()

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
    """The Nix on PATH, and the flake: the one asked for, or the checkout this runs from.

    `purpose` says what Nix is needed for, where that is no build: "pin evaluates nixpkgs with it".

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
    told = nix.version()
    if not new_enough(told):
        wanted = ".".join(map(str, MINIMUM))
        raise UnsupportedError(
            f"{told} is too old: the pinned nixpkgs needs {wanted}", hint="nix upgrade-nix"
        )
    return nix


def not_understood(program: str, answer: str) -> Error:
    """That a program answered with something that it never says."""
    shown = answer if len(answer) <= 80 else f"{answer[:80]}…"
    return Error(
        f"{program} answered what is not understood: {shown!r}",
        hint=f"run `{program} --version`: another program of that name may be on PATH",
    )


def new_enough(told: str) -> bool:
    """Whether `nix --version` tells of one that the pinned nixpkgs takes."""
    found = _VERSION.search(told)
    return found is not None and numbers(found[1]) >= MINIMUM


def first_error(text: str) -> str:
    """The innermost error in Nix's words, as one line: the last `error: …` that says something."""
    found = ""
    for line in plain(text).splitlines():
        match = re.match(r"\s*error:\s*(.*)", line)
        if match and match[1]:
            found = match[1]
    return found or next((line.strip() for line in plain(text).splitlines() if line.strip()), "")
