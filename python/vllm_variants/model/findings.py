"""What the doctor finds: one finding a line, with the command that helps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vllm_variants.errors import Error, ExitCode, system_error


class State(StrEnum):
    """How a finding stands: fine, worth knowing, or in the way of a build."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: about what, how it stands, a sentence, and the command that helps.

    `code` is the exit code that a problem makes the doctor end in.
    """

    about: str
    state: State
    text: str
    hint: str | None = None
    code: ExitCode = ExitCode.UNSUPPORTED

    @classmethod
    def failed(cls, about: str, failure: Error | OSError) -> Finding:
        """A problem: something could not be examined, and `failure` says why."""
        error = failure if isinstance(failure, Error) else system_error(failure)
        return cls(about, State.PROBLEM, error.message, error.hint, error.exit_code)

    def as_dict(self) -> dict[str, object]:
        """The finding as JSON."""
        return {"about": self.about, "state": self.state.value, "text": self.text, "hint": self.hint}
