"""Read the documents that a report is made of: JSON that others wrote, which may be anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vllm_variants.audit.find import examined
from vllm_variants.errors import InputError

_LARGEST = 256_000_000
"""Bytes. The audit of a whole release has 0.1 MB, a run of all checks 0.4 MB."""


def looks_like_json(path: Path) -> bool:
    """Whether a path is a file whose first sign begins an object or a list."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def value(path: Path) -> Any:
    """The JSON value in a file. `MissingError` or `InputError` where there is none."""
    if examined(path).st_size > _LARGEST:
        raise InputError(f"{path} is too large for a document of vllm-variants")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}", hint="name a file that --json printed") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def document(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as `--json` prints it."""
    found = value(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} is no document of vllm-variants", hint="name a file that --json printed")
    return found


@contextmanager
def expected(path: Path | str, otherwise: str, hint: str = "make it again with --json") -> Iterator[None]:
    """What is read in this block may be broken: `InputError` with what is `otherwise` in `path`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} holds {otherwise}: {missing}", hint=hint) from error


def of_others(subjects: Iterable[Path], evidence: Iterable[Path]) -> AbstractContextManager[None]:
    """For the making of a report: what is wrong with a part of `evidence`, or of subjects that are documents.

    Their parts are looked at where they are used, to the last line of the page: `InputError` names the files.
    Without a document among them, what is raised is our own defect, and stays what it is.
    """
    files = [*filter(looks_like_json, subjects), *evidence]
    if not files:
        return nullcontext()
    return expected(" or ".join(map(str, files)), "what vllm-variants does not write")
