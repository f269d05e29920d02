"""Hold outcomes against the catalogue: what happened, what should have, and a sentence about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_variants.verify.catalogue import Check, Expected
from vllm_variants.verify.check_process import CheckedResult
from vllm_variants.verify.running import LOADING, TIME_OVER, CheckOutcome, RunOptions, run


class Judgement(StrEnum):
    """How a check counts."""

    PASSED = "passed"  # what should have happened did
    FAILED = "failed"
    SKIPPED = "skipped"  # this machine cannot try it
    OPEN = "open"  # nothing says what should happen; what did is reported


@dataclass(frozen=True)
class JudgedCheck:
    """A check with its outcome, what was expected, and how it counts; `sentence` says why."""

    check: Check
    outcome: CheckOutcome
    expected: Expected
    judgement: Judgement
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON, with `expected`, `verdict` and, unless all is well, `sentence`."""
        extra = {} if self.judgement is Judgement.PASSED else {"sentence": self.sentence}
        return {**self.outcome, "expected": self.expected, "verdict": self.judgement.value, **extra}


def judge(check: Check, outcome: CheckOutcome, *, release: str, sm: str) -> JudgedCheck:
    """Decide whether this outcome is what `sm` ("sm90") must show with this release ("0.13.0")."""
    expected = check.expected(release, sm)
    status, reason = outcome["status"], outcome.get("reason", "")
    judgement = Judgement.FAILED
    if expected == "open" and status != "skipped":
        judgement = Judgement.OPEN
        sentence = f"{status} on {sm}, where nothing says what it should be" + (
            f": {reason}" if reason else ""
        )
    elif status == "skipped":
        judgement, sentence = Judgement.SKIPPED, reason
    elif status == "failed":
        sentence = reason
    elif status == expected:
        judgement, sentence = Judgement.PASSED, reason
    elif status == "unsupported":
        sentence = f"{sm} must run this with vLLM {release}, and it does not: {reason}"
    else:
        sentence = f"it works, and vLLM {release} is not known to have it on {sm}: catalogue.toml is wrong"
    return JudgedCheck(check, outcome, expected, judgement, sentence)


def run_and_judge(
    result: CheckedResult, checks: Sequence[Check], options: RunOptions, *, release: str, sm: str
) -> Iterator[JudgedCheck]:
    """Run the checks, and yield each as soon as it is judged; raises what `running.run` does."""
    by_name = {check.name: check for check in checks}
    for outcome in run(result, checks, options):
        yield judge(by_name[outcome["check"]], outcome, release=release, sm=sm)


@dataclass(frozen=True)
class Summary:
    """How a whole run went: how many checks count as what; `ok` are those that ran on the GPU and passed."""

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


def summarise(judged: Sequence[JudgedCheck]) -> Summary:
    """Count the judgements."""
    count = Counter(check.judgement for check in judged)
    ok = sum(check.judgement is Judgement.PASSED and check.outcome["status"] == "ok" for check in judged)
    return Summary(
        passed=count[Judgement.PASSED],
        failed=count[Judgement.FAILED],
        skipped=count[Judgement.SKIPPED],
        open=count[Judgement.OPEN],
        ok=ok,
    )


# (phrases in the sentences of failed checks, what to do about them), the likeliest cause first.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("--native forbids",),
        "build it with --native, so that no code waits for the driver's compiler; without --native here,"
        " the driver may compile",
    ),
    (
        ("no kernel image", "device kernel image is invalid"),
        "device code for {capability} is missing: vllm-variants audit RESULT shows from which library;"
        " build the variant again",
    ),
    (  # how the driver and NVML say that a card is there no more
        ("gpu is lost", "fallen off the bus", "gpu requires reset", "uncorrectable ecc error"),
        "a card was lost or is in a bad state: the kernel's log says why (dmesg, lines with NVRM and Xid),"
        " and nvidia-smi lists what is left",
    ),
    (
        ("unsupported toolchain",),
        "this driver is too old for PTX in the result: vllm-variants audit RESULT names the driver that"
        " compiles it",
    ),
    (  # how torch, vLLM and the loader say that there is no driver library to talk to
        (
            "libcuda.so",
            "found no nvidia driver",
            "finds no cuda device",
            "no cuda gpus are available",
            "cuda driver initialization failed",
        ),
        "the checks do not find the driver's libcuda.so.1, which comes with the host's NVIDIA driver:"
        " install it; in a container, start that with its GPUs (docker run --gpus all)",
    ),
    (
        ("while it was loading, it did not answer within",),
        f"reading the libraries took more than {LOADING:.0f} s: run it again when the disk is less busy",
    ),
)


def advice(judged: Sequence[JudgedCheck], capability: str) -> str | None:
    """What to do about the failures, or about a time that was too short; None where all went well.

    `capability` is the result's own, as people write it: "9.0".
    """
    failed = [check for check in judged if check.judgement is Judgement.FAILED]
    if not failed:
        late = sum(check.outcome.get("reason") == TIME_OVER for check in judged)
        short = f"the time was over before {late} of {len(judged)} checks: raise --time, or leave it out"
        return short if late else None
    sentences = " ".join(check.sentence.lower() for check in failed)
    names = [check.check.name for check in failed]
    if "import.device" in names and "compute capability" in sentences:
        return "this result is built for another GPU: vllm-variants detect names the variant for this one"
    for phrases, remedy in _REMEDIES:
        if any(phrase in sentences for phrase in phrases):
            return remedy.format(capability=capability)
    if any(name.startswith("import.") for name in names):
        return "the installation itself is broken: build the variant again"
    if "out of memory" in sentences:
        return "the GPU's memory is in use by something else: free it and run the failed checks again"
    return "run them alone with --only NAME --logs FOLDER; the logs say more"
