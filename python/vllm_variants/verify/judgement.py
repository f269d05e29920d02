"""Hold outcomes against expectations: what happened, what should have, and a sentence about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_variants.verify.catalogue import Check, Expected
from vllm_variants.verify.running import LOADING, TIME_OVER, Outcome


class Verdict(StrEnum):
    """How a check counts."""

    PASSED = "passed"  # what should have happened did
    FAILED = "failed"
    SKIPPED = "skipped"  # this machine cannot try it
    OPEN = "open"  # nothing says what should happen; what did is reported


@dataclass(frozen=True)
class Judged:
    """One check's outcome with its verdict."""

    check: Check
    outcome: Outcome
    expected: Expected
    verdict: Verdict
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON, with `expected`, `verdict` and, unless all is well, `sentence`."""
        extra = {} if self.verdict is Verdict.PASSED else {"sentence": self.sentence}
        return {**self.outcome, "expected": self.expected, "verdict": self.verdict.value, **extra}


def judge(check: Check, outcome: Outcome, *, release: str, sm: str) -> Judged:
    """Decide whether this outcome is what `sm` must show with this release."""
    expected = check.expected(release, sm)
    status, reason = outcome["status"], outcome.get("reason", "")
    verdict = Verdict.FAILED
    if expected == "open" and status != "skipped":
        verdict = Verdict.OPEN
        sentence = f"{status} on {sm}, where nothing says what it should be" + (
            f": {reason}" if reason else ""
        )
    elif status == "skipped":
        verdict, sentence = Verdict.SKIPPED, reason
    elif status == "failed":
        sentence = reason
    elif status == expected:
        verdict, sentence = Verdict.PASSED, reason
    elif status == "unsupported":
        sentence = f"{sm} must run this with vLLM {release}, and it does not: {reason}"
    else:
        sentence = f"it works, and vLLM {release} is not known to have it on {sm}: expectations.toml is wrong"
    return Judged(check, outcome, expected, verdict, sentence)


@dataclass(frozen=True)
class Summary:
    """How a whole run went."""

    passed: int
    failed: int
    skipped: int
    open: int
    ok: int

    @property
    def good(self) -> bool:
        """Nothing failed, and something really ran on the GPU: all skipped is not a pass."""
        return self.failed == 0 and self.ok > 0

    @property
    def sentence(self) -> str:
        """One line for a person."""
        parts = [f"{self.ok} ok"]
        if self.passed > self.ok:
            parts.append(f"{self.passed - self.ok} rightly unsupported")
        for count, word in ((self.skipped, "skipped"), (self.open, "not judged"), (self.failed, "failed")):
            if count:
                parts.append(f"{count} {word}")
        if not self.failed and not self.ok:
            parts.append("nothing was proven")
        return ", ".join(parts)


def summarise(judged: Sequence[Judged]) -> Summary:
    """Count the verdicts."""
    count = Counter(each.verdict for each in judged)
    ok = sum(each.verdict is Verdict.PASSED and each.outcome["status"] == "ok" for each in judged)
    return Summary(
        count[Verdict.PASSED], count[Verdict.FAILED], count[Verdict.SKIPPED], count[Verdict.OPEN], ok
    )


# How torch, vLLM and the loader say that there is no driver library to talk to.
_NO_DRIVER = (
    "libcuda.so",
    "found no nvidia driver",
    "finds no cuda device",
    "no cuda gpus are available",
    "cuda driver initialization failed",
)


def advice(judged: Sequence[Judged], capability: str) -> str | None:
    """What to do about the failures, or about a time that was too short; None where all went well."""
    failed = [each for each in judged if each.verdict is Verdict.FAILED]
    if not failed:
        late = sum(each.outcome.get("reason") == TIME_OVER for each in judged)
        short = f"the time was over before {late} of {len(judged)} checks: raise --time, or leave it out"
        return short if late else None
    said = " ".join(each.sentence.lower() for each in failed)
    if any(each.check.name == "import.device" for each in failed) and "compute capability" in said:
        return "this result is built for another GPU: vllm-variants detect names the variant for this one"
    if "no kernel image" in said or "device kernel image is invalid" in said:
        return (
            f"device code for {capability} is missing: vllm-variants audit RESULT shows from which library;"
            " build the variant again"
        )
    if "unsupported toolchain" in said:
        return (
            "this driver is too old for PTX in the result: vllm-variants audit RESULT names the driver that"
            " compiles it"
        )
    if any(word in said for word in _NO_DRIVER):
        return (
            "the checks do not find the driver's libcuda.so.1, which comes with the host's NVIDIA driver:"
            " install it; in a container, start that with its GPUs (docker run --gpus all)"
        )
    if "while it was loading, it did not answer within" in said:
        return (
            f"reading the libraries took more than {LOADING:.0f} s: run it again when the disk is less busy"
        )
    if any(each.check.name.startswith("import.") for each in failed):
        return "the installation itself is broken: build the variant again"
    if "out of memory" in said:
        return "the GPU's memory is in use by something else: free it and run the failed checks again"
    return "run them alone with --only NAME --logs FOLDER; the logs say more"
