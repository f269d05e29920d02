"""A process that slims one library after another (`workers`, `serving`).

When it must end, it removes what it was writing.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_variants.errors import Error, ResourceError, out_of_memory
from vllm_variants.fatbin import library
from vllm_variants.fatbin.library import FileReport
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import Images
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.serving import path_of_text, serve
from vllm_variants.fatbin.source import Malformed
from vllm_variants.fatbin.writing import ChangedMeanwhile, Unwritable
from vllm_variants.model.capability import Capability

_MORE_ATTEMPTS = 2


def main() -> None:
    """Slim what is asked for until nothing more is."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"report": slimmed(request).as_dict()}
    except (ResourceError, MemoryError) as error:
        told = error if isinstance(error, ResourceError) else out_of_memory()
        return {"error": told.message, "hint": told.hint}
    except Exception:
        return {"crash": traceback.format_exc()}


def slimmed(request: Mapping[str, Any]) -> FileReport:
    """Slim a library of a tree as `tree` requests it; what keeps it as it is becomes its report.

    Raises `ResourceError` when there is no room.
    """
    path = path_of_text(request["path"])
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
            stored=[path_of_text(text) for text in request["stored"]],
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
