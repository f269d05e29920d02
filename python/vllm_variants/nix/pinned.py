"""The pinned nixpkgs themselves, asked: what each variant evaluates to, against what the matrix declares.

The tests evaluate a model of nixpkgs. This asks the real revisions, on a machine with network: a
download of some 50 MB a release, then a few seconds and 1 to 2 GB of memory a variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.variants import Matrix, Release, Variant
from vllm_variants.nix.command import Nix, not_understood

_FACTS = "variant: { inherit (variant) drvPath versions torch; }"


@dataclass(frozen=True)
class Evaluated:
    """What a variant evaluates to.

    `versions` are those that nixpkgs packages (vllm, torch, python, cuda, cudnn, gcc); `torch_from`
    is `wheel` or `source`; `drv` is the derivation, `flox_drv` that of Flox's expression, which only
    the default release has.
    """

    versions: dict[str, str]
    torch_from: str
    drv: str
    flox_drv: str | None


def examine(nix: Nix, root: Path, matrix: Matrix) -> Iterator[Finding]:
    """A finding for every variant of every release in the checkout at `root`, as it is made."""
    for release in matrix.releases.values():
        for variant in matrix.variants.values():
            yield _finding(nix, root, matrix, release, variant)


def _finding(nix: Nix, root: Path, matrix: Matrix, release: Release, variant: Variant) -> Finding:
    about = f"{release.name} {variant.short}"
    found = evaluate(nix, root, release, variant, flox=release == matrix.default)
    if isinstance(found, str):
        hint = f"see all of it: nix eval --show-trace '.#{attribute(release, variant)}.drvPath'"
        return Finding(about, State.PROBLEM, f"does not evaluate: {found}", hint)
    if wrong := list(differences(found, release)):
        return Finding(about, State.PROBLEM, "; ".join(wrong), "correct variants.toml, or move the pin")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
    by_flox = ", the same by way of Flox" if found.flox_drv else ""
    return Finding(about, State.OK, f"{versions}, torch from {found.torch_from}: {found.drv}{by_flox}")


def differences(found: Evaluated, release: Release) -> Iterator[str]:
    """Every way in which a variant is not what its release declares."""
    declared = {
        "vllm": release.name,
        "torch": release.stack.torch,
        "cuda": release.stack.cuda,
        "python": release.stack.python,
    }
    for name, version in declared.items():
        have = found.versions[name]
        if have != version and not (name == "python" and have.startswith(f"{version}.")):
            yield f"nixpkgs packages {name} {have}, {version} is declared"
    if found.flox_drv and found.flox_drv != found.drv:
        yield f"Flox's expression is another derivation: {found.flox_drv}, not {found.drv}"


def evaluate(nix: Nix, root: Path, release: Release, variant: Variant, *, flox: bool) -> Evaluated | str:
    """Evaluate one variant down to its derivation; the reason, in one line, when that fails."""
    installable = f"{nix.flake}#{attribute(release, variant)}"
    told = nix.ask("eval", "--json", installable, "--apply", _FACTS, *nix.flake_options(), remote=False)
    if told.status:
        return told.error
    try:
        facts = told.json()
        found = Evaluated(dict(facts["versions"]), facts["torch"], facts["drvPath"], None)
    except (Error, KeyError, TypeError, ValueError):
        return not_understood("nix", told.out).message
    if flox:
        names = "--argstr", "name", variant.name(release), "--argstr", "system", variant.system
        expression = str(root / "nix" / "flox.nix")
        told = nix.ask("eval", "--raw", "--impure", "--file", expression, *names, "drvPath", remote=False)
        if told.status:
            return f"Flox's expression: {told.error}"
        found = replace(found, flox_drv=told.out)
    return found


def attribute(release: Release, variant: Variant) -> str:
    """Where the flake has a variant of a release."""
    return f'legacyPackages.{variant.system}.releases."{release.name}".{variant.short}'
