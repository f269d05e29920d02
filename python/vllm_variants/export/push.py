"""Copies an image layout to a registry, with skopeo and the credentials that it has."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.system import process
from vllm_variants.system.progress import Say

_REPOSITORY = re.compile(r"docker://(?P<host>[^/\s]+)/(?P<name>[^:@\s]+)(:(?P<tag>[\w.-]+))?")
_LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")
"""Registries on this machine, which may do without TLS (as for Docker)."""


def require(push: str, images: int) -> None:
    """Raise an `Error` where nothing could be pushed.

    `UsageError` for what names no repository, or one tag for several images; `MissingError` without skopeo.
    """
    match = _REPOSITORY.fullmatch(push)
    if not match:
        raise UsageError(f"{push} names no repository", hint="write docker://REGISTRY/NAME, or with :TAG")
    if match["tag"] and images > 1:
        raise UsageError(
            f"{push} is one tag, for {images} images", hint="leave out the tag: each gets its own"
        )
    if not shutil.which("skopeo"):
        raise MissingError("--push needs skopeo", hint="apt install skopeo")


def push(layout: Path, form: str, to: str, tags: Sequence[str], say: Say) -> list[str]:
    """Copy the images with those tags, one alone under the tag that `to` has; the names they have there.

    Layers that the registry has are not sent again. Raises `Error` where it refuses: the layout stays.
    """
    match = _REPOSITORY.fullmatch(to)
    assert match is not None
    pushed = []
    for tag in tags:
        target = to if match["tag"] else f"{to}:{tag}"
        options = ["--all", "--preserve-digests"]
        if _LOCAL.fullmatch(match["host"]):
            options.append("--dest-tls-verify=false")
        command = ["skopeo", "copy", *options, f"{form}:{layout.absolute()}:{tag}", target]
        say(f"pushing {target} …")
        completed = process.capture(command)
        if completed.status:
            raise Error(
                f"{target} was not pushed, {layout} is whole: {_reason(completed.stderr)}",
                hint=" ".join(["`skopeo login`, then", *command]),
            )
        pushed.append(target)
    return pushed


def _reason(stderr: str) -> str:
    """What skopeo says in its last line, without its time and level."""
    last = (stderr.strip().splitlines() or ["skopeo said nothing"])[-1]
    message = re.search(r'msg="(?P<text>(\\"|[^"])*)"', last)
    return message["text"].replace('\\"', '"') if message else last
