"""Look up a revision of nixpkgs: commit and hash by nix-prefetch-github, date and versions by Nix.

Everything here needs the network the first time. Nothing is written but Nix's own store.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import Error, InputError, MissingError, ResourceError, UsageError
from vllm_variants.model.variants import Release
from vllm_variants.nix.command import Nix, first_error, not_understood, parsed
from vllm_variants.system import process

OWNER, REPOSITORY = "NixOS", "nixpkgs"
LATEST = "nixos-unstable"  # the branch whose head has passed nixpkgs' own tests
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Revision:
    """A commit of nixpkgs: 40 hex digits, its SRI hash, and the tag or branch that named it, if one did."""

    rev: str
    hash: str
    name: str | None = None


@dataclass(frozen=True)
class Source:
    """The tree of a revision in the store: when it was committed (seconds since 1970), and its path."""

    last_modified: int
    path: Path


@dataclass(frozen=True)
class Versions:
    """What a nixpkgs packages: vLLM, torch, and every CUDA there is, as `12.9`."""

    vllm: str
    torch: str
    cuda: tuple[str, ...]


def revision(name: str) -> Revision:
    """The commit that `name` (a full commit, a tag or a branch) stands for, with the hash of its tree.

    Runs `nix-prefetch-github`. Raises `UsageError` for a revision that does not exist,
    `MissingError` without the program or what it needs, `ResourceError` without a network or when
    GitHub refuses further requests.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} is not the name of a revision", hint="write a commit, a tag or a branch"
        )
    completed = process.capture([*_program(), OWNER, REPOSITORY, "--rev", name, "--json", "-v"])
    if completed.status:
        raise _failure(name, completed.output)
    facts = parsed(completed, "nix-prefetch-github")
    try:
        rev, digest = _text(facts["rev"]), _text(facts["hash"])
    except (KeyError, TypeError) as error:
        raise not_understood("nix-prefetch-github", completed.stdout) from error
    if not _COMMIT.fullmatch(rev) or not digest.startswith("sha256-"):
        raise InputError(f"nix-prefetch-github printed neither a commit nor its hash: {rev} {digest}")
    return Revision(rev, digest, None if _COMMIT.fullmatch(name) else name)


def source(nix: Nix, revision: Revision) -> Source:
    """The revision's tree in the store, and its date.

    Raises an `Error` for a tree of another hash, and those of `revision`.
    """
    reference = f"github:{OWNER}/{REPOSITORY}/{revision.rev}"
    completed = nix.run("flake", "metadata", "--json", reference, remote=False)
    if completed.status:
        raise _failure(revision.rev, completed.stderr)
    facts = parsed(completed)
    try:
        digest = _text(facts["locked"]["narHash"])
        tree = Source(int(facts["locked"]["lastModified"]), Path(_text(facts["path"])))
    except (KeyError, TypeError, ValueError) as error:
        raise not_understood("nix", completed.stdout) from error
    if digest != revision.hash:
        text = f"two hashes of {revision.rev[:7]}: {revision.hash} (nix-prefetch-github), {digest} (Nix)"
        raise Error(text, hint="try again; if it stays, one of them was given another tree")
    return tree


_VERSIONS = """
{ path, system, python }:
let
  pkgs = import path { inherit system; config = { allowUnfree = true; }; overlays = [ ]; };
  set = pkgs.${"python${builtins.replaceStrings [ "." ] [ "" ] python}Packages"};
  numbers = builtins.match "cudaPackages_([0-9]+)_([0-9]+)";
  cuda = builtins.filter (match: match != null) (map numbers (builtins.attrNames pkgs));
in {
  vllm = set.vllm.version;
  torch = (set.torch-bin or set.torch).version;
  cuda = map (builtins.concatStringsSep ".") cuda;
}
"""


def versions(nix: Nix, tree: Path, release: Release, system: str) -> Versions:
    """What the nixpkgs at `tree` packages for the release's Python; raises an `Error` if it does not say."""
    call = f'({_VERSIONS}) {{ path = "{tree}"; system = "{system}"; python = "{release.stack.python}"; }}'
    completed = nix.run("eval", "--impure", "--json", "--expr", call, remote=False)
    if completed.status:
        reason = first_error(completed.stderr)
        raise Error(f"the versions in this nixpkgs cannot be evaluated: {reason}")
    facts = parsed(completed)
    try:
        cuda = tuple(_text(version) for version in facts["cuda"])
        return Versions(_text(facts["vllm"]), _text(facts["torch"]), cuda)
    except (KeyError, TypeError) as error:
        raise not_understood("nix", completed.stdout) from error


def _text(value: object) -> str:
    """A value in a JSON document that must be text; raises `TypeError` otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _program() -> Sequence[str]:
    """nix-prefetch-github: on PATH (Nix's own brings what it needs), beside our Python, or as a module."""
    beside = Path(sys.executable).with_name("nix-prefetch-github")
    program = shutil.which("nix-prefetch-github") or (str(beside) if beside.exists() else None)
    if program:
        return [program]
    if importlib.util.find_spec("nix_prefetch_github"):
        return [sys.executable, "-m", "nix_prefetch_github"]
    raise MissingError(
        "there is no nix-prefetch-github, which finds the hash of a revision",
        hint="run this as ./vllm-variants, which has it, or nix shell nixpkgs#nix-prefetch-github",
    )


def _failure(name: str, output: str) -> Error:
    """The `Error` for what nix-prefetch-github, git and Nix print; the first pattern that matches decides."""
    if re.search(
        r"Could(?:n't| not) resolve host|unable to access|Connection (?:refused|timed out)|timed out", output
    ):
        return ResourceError("GitHub cannot be reached from here", hint="check the network and try again")
    if re.search(r"rate limit|HTTP error (?:403|429)|error: (?:403|429)", output):
        return ResourceError(
            "GitHub refuses further requests from here for a while",
            hint="wait an hour, or give Nix a token: access-tokens = github.com=… in nix.conf",
        )
    if re.search(r"HTTP error 404|Unable to locate revision|error: 404", output):
        return UsageError(
            f"{OWNER}/{REPOSITORY} has no revision {name}", hint="write a full commit, a tag or a branch"
        )
    missing = [tool for tool in ("nix-prefetch-url", "nix-prefetch-git") if not shutil.which(tool)]
    if missing and ("Unable to calculate hash sum" in output or "No such file" in output):
        return MissingError(
            f"nix-prefetch-github needs {' and '.join(missing)}, not on PATH, to find a hash",
            hint="nix shell nixpkgs#nix-prefetch-github brings them",
        )
    if "Unable to calculate hash sum" in output:
        return ResourceError(
            f"the tree of {name} could not be downloaded to find its hash",
            hint="check the network and try again; nix-prefetch-github -v says more",
        )
    return Error(f"nix-prefetch-github failed: {first_error(output)}")
