"""Where an export goes, `FORM:PATH`, and what can be known to go wrong there before work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllm_variants.errors import InputError, ResourceError, UsageError
from vllm_variants.model.results import Result
from vllm_variants.system import atomic, folders, new_folder


class Form(StrEnum):
    """The forms of an export, by the word before the colon."""

    FOLDER = "folder"
    TAR = "tar.zst"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    WHEELS = "wheels"

    @property
    def is_file(self) -> bool:
        """Whether the export is one file, not a folder."""
        return self in (Form.TAR, Form.OCI_ARCHIVE)


@dataclass(frozen=True)
class Destination:
    """A form, and the path of the folder or file that will be made."""

    form: Form
    path: Path

    def __str__(self) -> str:
        return f"{self.form}:{self.path}"


def parse(text: str) -> Destination:
    """The destination that a person wrote: `oci:image`, `tar.zst:vllm.tar.zst`. Raises `UsageError`."""
    word, colon, path = text.partition(":")
    written = ", ".join(f"{form}:{'FILE' if form.is_file else 'DIR'}" for form in Form)
    if word not in set(Form):
        what = f"{word!r} is no form of an export" if colon else f"{text!r} names no form of an export"
        raise UsageError(what, hint=f"write one of {written}")
    if not path:
        raise UsageError(
            f"{text} names no {'file' if Form(word).is_file else 'folder'}", hint=f"write {word}:PATH"
        )
    return Destination(Form(word), Path(path))


def require_new(destination: Destination) -> None:
    """Raise an `Error` unless something new can be made there: nothing has its name, its folder is writable.

    Removes what killed exports to it left.
    """
    path = destination.path
    new_folder.refuse_existing(path)
    new_folder.remove_leftovers(path)
    atomic.remove_leftovers_of(path)
    try:
        with atomic.new_file(path):
            pass
    except OSError as error:
        raise InputError(
            f"{path.absolute().parent} cannot be written to: {error.strerror}",
            hint="name a place that you can write to",
        ) from error


def require_outside(destination: Destination, results: Sequence[Result]) -> None:
    """Raise `UsageError` for a place in a result: nothing changes one after its build."""
    place = destination.path.absolute().parent.resolve()
    for result in results:
        if place.is_relative_to(result.path.resolve()):
            raise UsageError(
                f"{destination.path} is in the result that is to be exported",
                hint="name a place elsewhere",
            )


def require_absent(destination: Destination) -> None:
    """Raise `UsageError` where something came to be there while the export was made."""
    new_folder.refuse_existing(destination.path)


def require_room(destination: Destination, needed: int) -> None:
    """Raise `ResourceError` unless the disk of the destination has `needed` bytes free."""
    folder = destination.path.absolute().parent
    free = folders.free_bytes(folder)
    if free < needed:
        raise ResourceError(
            f"{destination} needs {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free",
            hint="free some: `vllm-variants gc`, `uv cache prune`; or name a place on another disk",
        )
