"""Failures that a person can act on, and the exit codes they end in.

Every failure this package raises on purpose is an `Error`: one sentence that says what was
wrong and where, and the command that mends it. The command line prints it and exits with its
code; anything else that escapes is a defect.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process's exit status means; docs/exit-codes.md is made from this."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """A code and its meaning, in one clause."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = 0, "done"
    FAILED = 1, "the work was tried and failed: a build, an installation, a check"
    USAGE = 2, "the command line, the matrix or an input file is wrong"
    UNSUPPORTED = 3, "this machine cannot do it: no GPU, no such platform, driver too old"
    MISSING = 4, "something that must be there is not: an interpreter, a lock, a result"
    AUDIT = 5, "an audit or a verification found the result wrong"
    RESOURCES = 6, "disk, memory or network ran out"
    INTERRUPTED = 130, "Ctrl-C or SIGTERM; nothing half-done is left"


class Error(Exception):
    """A failure in one sentence, with the command that mends it.

    `message` says what and where, without a trailing full stop; `mend`, when there is one, is a
    command or an action. Subclasses choose the exit code.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\n  mend: {self.mend}" if self.mend else self.message


class UsageError(Error):
    """The command line names something that does not exist or does not go together."""

    exit_code = ExitCode.USAGE


class InputError(Error):
    """A file given as input is broken: truncated, lying, or not of the expected format."""

    exit_code = ExitCode.USAGE


class UnsupportedError(Error):
    """This machine, GPU or driver cannot do what was asked."""

    exit_code = ExitCode.UNSUPPORTED


class MissingError(Error):
    """Something that must exist does not: an interpreter, a lock, a result."""

    exit_code = ExitCode.MISSING


class AuditError(Error):
    """A result is not what it says it is."""

    exit_code = ExitCode.AUDIT


class ResourceError(Error):
    """Disk, memory or network ran out."""

    exit_code = ExitCode.RESOURCES


class Interrupted(BaseException):
    """The person or the system asked the work to stop; no `Error`, so that nothing carries on.

    Its text, if any, says what was done by then; without one nothing half-done is left.
    """


def resource_error(error: OSError) -> ResourceError:
    """What the operating system refused, as a sentence: a full disk, a quota, permissions."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full{where}", mend="free some: `vllm-variants gc`, `uv cache prune`"
        )
    return ResourceError(f"{error.strerror or error}{where}")
