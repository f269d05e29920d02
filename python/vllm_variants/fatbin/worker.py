"""A process that slims one library after another; its parent's number is its last argument.

Each line on stdin is a request, each line on stdout its answer, both JSON; see `workers`. It ends
when its stdin does. When its parent dies, however that happens, or sends SIGTERM, it removes what it
was writing and ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_variants.errors import Error, Interrupted, ResourceError
from vllm_variants.fatbin import library
from vllm_variants.fatbin.library import FileReport
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import Images
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import Malformed
from vllm_variants.fatbin.writing import ChangedMeanwhile, Unwritable
from vllm_variants.model.capability import Capability

_MORE_ATTEMPTS = 2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Answer requests until there are no more, or somebody says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then sends SIGTERM
    signal.signal(signal.SIGTERM, _stop)
    try:
        _die_with(int(sys.argv[-1]))
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    except (Interrupted, BrokenPipeError):
        os._exit(1)  # stdout may hold half an answer that nobody reads


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is cleaning up
    raise Interrupted


def _die_with(parent: int) -> None:
    """Let the kernel send SIGTERM when the parent dies; raise `Interrupted` when it is dead already."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise Interrupted


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"report": slimmed(request).as_dict()}
    except ResourceError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception:
        return {"crash": traceback.format_exc()}


def slimmed(request: Mapping[str, Any]) -> FileReport:
    """Slim a library of a tree as `tree` requests it; what keeps it as it is becomes its report.

    Raises `ResourceError` when there is no room.
    """
    path = _path(request["path"])
    try:
        return _slim(path, request)
    except (Malformed, Wrong) as error:
        kind = "malformed" if isinstance(error, Malformed) else "not proven"
        return _kept(path, f"{kind}: {error.message}", failed=False)
    except Unwritable as error:
        return _kept(path, error.message, failed=True)
    except ResourceError:
        raise
    except Error as error:
        return _kept(path, error.message, failed=True)


def _slim(path: Path, request: Mapping[str, Any]) -> FileReport:
    """Slim a library; what somebody put in its place meanwhile is slimmed as well, if it holds still.

    So of two processes that slim one tree both succeed. Compiled code is for the very file that was
    planned: then the library stays as it is now. So does one whose file has other names in the tree,
    unless nothing is to be done to it: they are names of the old file still, and become the new one's.
    """

    def once(dry_run: bool = False) -> FileReport:
        return library.slim_file(
            path,
            [Capability.parse(text) for text in request["devices"]],
            Rules.from_dict(request["rules"]),
            compiled=_compiled(request),
            stored=[_path(text) for text in request["stored"]],
            durable=request["durable"],
            dry_run=dry_run or request["dry_run"],
        )

    for _ in range(0 if "compiled" in request else _MORE_ATTEMPTS):
        try:
            return once()
        except ChangedMeanwhile:
            if request["linked"]:
                if (report := once(dry_run=True)).changed:
                    raise
                return report
    return once()


def _path(text: str) -> Path:
    """A path as requests have it: each byte is a character."""
    return Path(os.fsdecode(text.encode("latin-1")))


def _compiled(request: Mapping[str, Any]) -> dict[int, Images]:
    """The images of containers that got cubins, from the file that our parent wrote."""
    if "compiled" not in request:
        return {}
    images: dict[int, Images] = pickle.loads(Path(request["compiled"]).read_bytes())
    return images


def _kept(path: Path, why: str, *, failed: bool) -> FileReport:
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return FileReport(str(path), size, size, kept=why, failed=failed)
