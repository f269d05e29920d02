"""`vllm-variants pin`: move a release to another revision of nixpkgs, everywhere at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli import checkout
from vllm_variants.cli.options import DryRun, Json, ReleaseName
from vllm_variants.cli.output import out, print_json, say, table
from vllm_variants.cli.rules import exactly_one, rules
from vllm_variants.errors import Error
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.variants import Release, Variant
from vllm_variants.system import together

if TYPE_CHECKING:
    from vllm_variants.maintain.pins import Pin
    from vllm_variants.nix.command import Nix


@rules(exactly_one("REV", "--latest", hint="vllm-variants pin nixos-unstable"))
def pin(
    revision: Annotated[
        str | None, typer.Argument(metavar="REV", help="A commit, a tag or a branch of nixpkgs.")
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="The head of nixos-unstable.")] = False,
    release: ReleaseName = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Move the pin of a release: variants.toml, flake.nix, flake.lock and the tables, all or none."""
    from vllm_variants.maintain import pins
    from vllm_variants.nix import command as nix_command
    from vllm_variants.nix import prefetch

    root = checkout.require("pin")
    rows = matrix.load()
    chosen = rows.release(release)
    chosen.require_builder("nix")
    nix = nix_command.find(str(root), purpose="pin evaluates the new nixpkgs with it")
    say(f"asking for {revision or prefetch.LATEST} of nixpkgs and the hash of its tree …")
    requested = prefetch.revision(revision or prefetch.LATEST)
    say(f"{requested.rev}: fetching it, to see what it packages …")
    source = prefetch.source(nix, requested)
    system = host_system()
    move = pins.Pin(chosen, requested, source, prefetch.versions(nix, source.path, chosen, system))
    move.check()
    texts = pins.edited(root, rows, move)
    if texts and not dry_run:
        _evaluate(nix, root, texts, chosen, rows.for_system(system)[:1])
        if pins.edited(root, rows, move) != texts:
            raise Error(
                f"nothing was changed: somebody edited {root} while the new nixpkgs was tried",
                hint="run it again",
            )
        together.write(texts)
    _show(move, [str(path.relative_to(root)) for path in texts], dry_run, as_json)


def _evaluate(
    nix: Nix, root: Path, texts: Mapping[Path, str], release: Release, variants: Sequence[Variant]
) -> None:
    """Evaluate a variant with the new files, somewhere else; raises an `Error` when it does not."""
    from vllm_variants.maintain import pins
    from vllm_variants.model.requests import Request
    from vllm_variants.nix import evaluation as nix_eval

    for variant in variants:
        say(f"evaluating {variant.short} with it …")
        with pins.trial(root, texts) as copy:
            (result,) = nix_eval.evaluate(
                replace(nix, flake=f"path:{copy}"), [Request(variant, release, copy)]
            )
        if isinstance(result, nix_eval.Refusal):
            raise Error(
                f"nothing was changed: with it, {result.error.message}", hint="choose another revision"
            )


def _show(move: Pin, changed: Sequence[str], dry_run: bool, as_json: bool) -> None:
    release, versions = move.release, move.versions
    rows = [
        ("nixpkgs", (release.nixpkgs or "")[:12], move.revision.rev[:12]),
        ("vLLM", release.name, versions.vllm),
        ("torch", release.stack.torch, versions.torch),
        ("CUDA", release.stack.cuda, release.stack.cuda),
    ]
    todo = _todo(move) if changed else []
    if as_json:
        print_json(
            {
                "schema": documents.PIN,
                "release": release.name,
                "revision": move.revision.rev,
                "asked": move.revision.name,
                "hash": move.revision.hash,
                "changes": {what: {"before": before, "after": after} for what, before, after in rows},
                "files": list(changed),
                "written": bool(changed) and not dry_run,
                "todo": todo,
            }
        )
        return
    listing = table("", "before", "after")
    for what, before, after in rows:
        listing.add_row(what, before, after if after != before else "the same")
    out.print(listing)
    if not changed:
        say("everything was as it is to be: nothing to change")
        return
    say(f"{'would change' if dry_run else 'changed'}: {', '.join(changed)}")
    for step in todo:
        say(f"still to do: {step}")


def _todo(move: Pin) -> list[str]:
    """What a moved pin leaves for a person to do."""
    release = move.release
    steps = []
    if move.versions.torch != release.stack.torch:
        steps.append(
            f"the wheels of release {release.name} are locked to torch {release.stack.torch}: change "
            f"locks/*.in, then vllm-variants lock {release.name}, and derive the expectations again "
            "(vllm-variants audit --derive)"
        )
    steps.append(f"build and check it: vllm-variants build --via nix --all --release {release.name}")
    return [*steps, "commit the changed files together"]
