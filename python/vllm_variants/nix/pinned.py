"""Compare what each variant evaluates to at the pinned nixpkgs with what the matrix declares.

The tests evaluate a model of nixpkgs. This evaluates the real revisions, on a machine with network: a
download of some 50 MB a release, then a few seconds and 1 to 2 GB of memory a variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.variants import Matrix, Release, Variant
from vllm_variants.nix import evaluation
from vllm_variants.nix.command import Nix, first_error, not_understood, parsed

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
    for release in matrix.packaged.values():
        for variant in matrix.of(release).values():
            yield _finding(nix, root, matrix, release, variant)


def _finding(nix: Nix, root: Path, matrix: Matrix, release: Release, variant: Variant) -> Finding:
    about = f"{release.name} {variant.short}"
    try:
        evaluated = evaluate(nix, root, release, variant, flox=release == matrix.default)
    except Error as failure:
        return Finding(about, State.PROBLEM, failure.message, failure.hint)
    if problems := list(differences(evaluated, release)):
        return Finding(about, State.PROBLEM, "; ".join(problems), "correct variants.toml, or move the pin")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(evaluated.versions.items()))
    by_flox = ", the same by way of Flox" if evaluated.flox_drv else ""
    torch = f"torch from {evaluated.torch_from}"
    return Finding(about, State.OK, f"{versions}, {torch}: {evaluated.drv}{by_flox}")


def differences(evaluated: Evaluated, release: Release) -> Iterator[str]:
    """Every way in which a variant is not what its release declares, as a clause."""
    declared = {
        "vllm": release.name,
        "torch": release.stack.torch,
        "cuda": release.stack.cuda,
        "python": release.stack.python,
    }
    for name, version in declared.items():
        packaged = evaluated.versions[name]
        if packaged != version and not (name == "python" and packaged.startswith(f"{version}.")):
            yield f"nixpkgs packages {name} {packaged}, {version} is declared"
    if evaluated.flox_drv and evaluated.flox_drv != evaluated.drv:
        yield f"Flox's expression is another derivation: {evaluated.flox_drv}, not {evaluated.drv}"


def evaluate(nix: Nix, root: Path, release: Release, variant: Variant, *, flox: bool) -> Evaluated:
    """Evaluate one variant of the checkout at `root` down to its derivation; with `flox` Flox's as well.

    Raises an `Error` with the reason, in one line, when one of them does not evaluate.
    """
    installable = f"{nix.flake}#{evaluation.attribute(release, variant)}"
    completed = nix.run("eval", "--json", installable, "--apply", _FACTS, *nix.flake_options(), remote=False)
    if completed.status:
        raise evaluation.error(release, variant, first_error(completed.stderr))
    facts = parsed(completed)
    try:
        evaluated = Evaluated(dict(facts["versions"]), facts["torch"], facts["drvPath"], None)
    except (KeyError, TypeError, ValueError) as failure:
        raise not_understood("nix", completed.stdout) from failure
    if not flox:
        return evaluated
    names = "--argstr", "name", variant.name(release), "--argstr", "system", variant.system
    file = str(root / "nix" / "flox.nix")
    completed = nix.run("eval", "--raw", "--impure", "--file", file, *names, "drvPath", remote=False)
    if completed.status:
        reason = f"Flox's expression: {first_error(completed.stderr)}"
        raise evaluation.error(release, variant, reason)
    return replace(evaluated, flox_drv=completed.stdout)
