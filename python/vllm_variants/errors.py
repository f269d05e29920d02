"""Failures that a person can act on, and the exit codes they end in.

Every failure this package raises on purpose is an `Error`: one sentence that says what was
wrong and where, and the command that helps. The command line prints it and exits with its
code; anything else that escapes is a defect.
"""

from __future__ import annotations

import errno
import re
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
    UNREAD = 141, "whoever read stdout closed it before everything was written (as by SIGPIPE)"


class Error(Exception):
    """A failure in one sentence, with the command that helps.

    `message` says what and where, without a trailing full stop; `hint`, when there is one, is a
    command or an action. Subclasses choose the exit code.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


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
    """Ctrl-C or SIGTERM. Not an `Error`, so that no code that handles failures goes on after it.

    Its text, if any, says what was done before; without one nothing half-done is left behind.
    """


class OutputClosed(Error):
    """The reader of stdout closed it: nobody would read a message, so none is printed."""

    exit_code = ExitCode.UNREAD


_EXHAUSTED = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO),
        *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH),
    }
)
_HINTS = {
    errno.ENOSPC: "free some: `vllm-variants gc`, `uv cache prune`",
    errno.EDQUOT: "free some: `vllm-variants gc`, `uv cache prune`",
    errno.ENOMEM: "vllm-variants doctor says how much there is",
    errno.EACCES: "ask `ls -ld` who may use it",
    errno.EPERM: "ask `ls -ld` and `lsattr -d` who may change it",
    errno.EROFS: "name a place on a file system that can be written to",
    errno.ENAMETOOLONG: "use a shorter path",
}


def resource_error(error: OSError) -> ResourceError:
    """An `OSError` as a `ResourceError` in one sentence: a full disk, a quota, permissions."""
    return ResourceError(_refused(error), hint=_HINTS.get(error.errno or 0))


def out_of_memory() -> ResourceError:
    """Python's `MemoryError` in one sentence."""
    return ResourceError("memory ran out", hint=_HINTS[errno.ENOMEM])


def system_error(error: OSError) -> Error:
    """An `OSError` that no code expected, as the `Error` whose exit code fits it.

    `ResourceError` where disk, memory or network ran out, `MissingError` for what is not there,
    `InputError` for a path that may not be used or cannot be.
    """
    if error.errno in _EXHAUSTED:
        return resource_error(error)
    kind = MissingError if error.errno == errno.ENOENT else InputError
    return kind(_refused(error), hint=_HINTS.get(error.errno or 0))


def _refused(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}"
    return f"{error.strerror or error}{where}"


_LONGEST = 400
"""Characters of a word in a message. A path that the system accepts has no longer part."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def readable(text: str) -> str:
    """`text` as one line for a terminal: control characters escaped, very long words shortened."""
    line = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
    return re.sub(rf"\S{{{_LONGEST + 1},}}", _shortened, line)


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:80]}…{word[0][-20:]} ({len(word[0])} letters)"
