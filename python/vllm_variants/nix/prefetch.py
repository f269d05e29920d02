"""Ask for a revision of nixpkgs: its commit and hash (nix-prefetch-github), its date and versions (nix).

Everything here needs the network the first time. Nothing is written but Nix's own store.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import Error, InputError, MissingError, ResourceError, UsageError
from vllm_variants.model.variants import Release
from vllm_variants.nix.command import Nix, first_error, not_understood
from vllm_variants.system import process

OWNER, REPOSITORY = "NixOS", "nixpkgs"
LATEST = "nixos-unstable"  # the branch whose head has passed nixpkgs' own tests
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Revision:
    """A commit of nixpkgs: 40 hex digits, its SRI hash, the name it was asked by when that was no commit."""

    rev: str
    hash: str
    name: str | None = None


@dataclass(frozen=True)
class Source:
    """The same in the store: when it was committed (seconds since 1970) and where it lies."""

    last_modified: int
    path: Path


@dataclass(frozen=True)
class Versions:
    """What a nixpkgs packages: vLLM, torch, and every CUDA there is, as `12.9`."""

    vllm: str
    torch: str
    cuda: tuple[str, ...]


def revision(asked: str) -> Revision:
    """The commit that `asked` (a full commit, a tag or a branch) means, with the hash of its tree.

    Runs `nix-prefetch-github`. Raises `UsageError` for a revision that does not exist,
    `MissingError` without the program or what it needs, `ResourceError` without a network or when
    GitHub refuses further requests.
    """
    if not _NAME.fullmatch(asked):
        raise UsageError(f"{asked[:60]!r} is no name of a revision", hint="write a commit, a tag or a branch")
    command = [*_program(), OWNER, REPOSITORY, "--rev", asked, "--json", "-v"]
    told = process.ask(command)
    if told.returncode:
        raise _failure(asked, told.stdout + told.stderr)
    try:
        facts = json.loads(told.stdout)
        found = Revision(
            _text(facts["rev"]), _text(facts["hash"]), None if _COMMIT.fullmatch(asked) else asked
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise not_understood("nix-prefetch-github", told.stdout) from error
    if not _COMMIT.fullmatch(found.rev) or not found.hash.startswith("sha256-"):
        raise InputError(f"nix-prefetch-github named no commit and hash: {found.rev} {found.hash}")
    return found


def source(nix: Nix, found: Revision) -> Source:
    """The revision's tree in the store, and its date; refuses a tree of another hash."""
    told = nix.ask("flake", "metadata", "--json", f"github:{OWNER}/{REPOSITORY}/{found.rev}", remote=False)
    if told.status:
        raise _failure(found.rev, told.err)
    facts = told.json()
    try:
        digest = _text(facts["locked"]["narHash"])
        tree = Source(int(facts["locked"]["lastModified"]), Path(_text(facts["path"])))
    except (KeyError, TypeError, ValueError) as error:
        raise not_understood("nix", told.out) from error
    if digest != found.hash:
        text = f"two hashes of {found.rev[:7]}: {found.hash} (nix-prefetch-github), {digest} (Nix)"
        raise Error(text, hint="try again; if it stays, one of them was given another tree")
    return tree


_VERSIONS = """
{ path, system, python }:
let
  pkgs = import path { inherit system; config = { allowUnfree = true; }; overlays = [ ]; };
  set = pkgs.${"python${builtins.replaceStrings [ "." ] [ "" ] python}Packages"};
  numbers = builtins.match "cudaPackages_([0-9]+)_([0-9]+)";
  cuda = builtins.filter (found: found != null) (map numbers (builtins.attrNames pkgs));
in {
  vllm = set.vllm.version;
  torch = (set.torch-bin or set.torch).version;
  cuda = map (builtins.concatStringsSep ".") cuda;
}
"""


def versions(nix: Nix, tree: Path, release: Release, system: str) -> Versions:
    """What the nixpkgs at `tree` packages for the release's Python."""
    call = f'({_VERSIONS}) {{ path = "{tree}"; system = "{system}"; python = "{release.stack.python}"; }}'
    told = nix.ask("eval", "--impure", "--json", "--expr", call, remote=False)
    if told.status:
        raise Error(f"this nixpkgs cannot be asked for its versions: {told.error}")
    facts = told.json()
    try:
        cuda = tuple(_text(version) for version in facts["cuda"])
        return Versions(_text(facts["vllm"]), _text(facts["torch"]), cuda)
    except (KeyError, TypeError) as error:
        raise not_understood("nix", told.out) from error


def _text(value: object) -> str:
    """A part of an answer that must be text; `TypeError` otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _program() -> Sequence[str]:
    """nix-prefetch-github: on PATH (Nix's own brings what it needs), beside our Python, or as a module."""
    beside = Path(sys.executable).with_name("nix-prefetch-github")
    found = shutil.which("nix-prefetch-github") or (str(beside) if beside.exists() else None)
    if found:
        return [found]
    if importlib.util.find_spec("nix_prefetch_github"):
        return [sys.executable, "-m", "nix_prefetch_github"]
    raise MissingError(
        "there is no nix-prefetch-github, which finds the hash of a revision",
        hint="pip install 'vllm-variants[pin]', or nix shell nixpkgs#nix-prefetch-github",
    )


def _failure(asked: str, said: str) -> Error:
    """What the words of nix-prefetch-github, git and Nix mean; the first that is found decides."""
    if re.search(
        r"Could(?:n't| not) resolve host|unable to access|Connection (?:refused|timed out)|timed out", said
    ):
        return ResourceError("GitHub cannot be reached from here", hint="check the network and try again")
    if re.search(r"rate limit|HTTP error (?:403|429)|error: (?:403|429)", said):
        return ResourceError(
            "GitHub refuses further requests from here for a while",
            hint="wait an hour, or give Nix a token: access-tokens = github.com=… in nix.conf",
        )
    if re.search(r"HTTP error 404|Unable to locate revision|error: 404", said):
        return UsageError(
            f"{OWNER}/{REPOSITORY} has no revision {asked}", hint="write a full commit, a tag or a branch"
        )
    needed = [name for name in ("nix-prefetch-url", "nix-prefetch-git") if not shutil.which(name)]
    if needed and ("Unable to calculate hash sum" in said or "No such file" in said):
        return MissingError(
            f"nix-prefetch-github needs {' and '.join(needed)}, not on PATH, to find a hash",
            hint="nix shell nixpkgs#nix-prefetch-github brings them",
        )
    if "Unable to calculate hash sum" in said:
        return ResourceError(
            f"the tree of {asked} could not be downloaded to find its hash",
            hint="check the network and try again; nix-prefetch-github -v says more",
        )
    return Error(f"nix-prefetch-github failed: {first_error(said)}")
