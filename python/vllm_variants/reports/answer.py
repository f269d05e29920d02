"""Yes or no, in a sentence: what a report says first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from vllm_variants.model.capability import Capability
from vllm_variants.reports.runs import Seen
from vllm_variants.reports.subjects import Subject
from vllm_variants.system.text import duration


class Answer(StrEnum):
    """What a report comes to."""

    YES = "yes"
    WAIT = "wait"  # it runs, and some of it only after the driver compiled it
    NO = "no"
    UNKNOWN = "unknown"  # nothing says for which device


def answer(subject: Subject, seen: Sequence[Seen] = ()) -> tuple[Answer, str]:
    """The answer for one subject, with `seen` of it on cards, and the sentence that says it."""
    if subject.status not in ("built", ""):
        return Answer.NO, f"{subject.name} was not built: {_first(subject)}"
    failed = [check for card in seen for check in card.checks if check.get("verdict") == "failed"]
    if failed:
        return Answer.NO, f"No. {_count(len(failed), 'check')} failed on a card, first {failed[0]['check']}."
    if subject.said:
        sentence = subject.said["sentence"]
        return _WORDS[subject.said["word"]], f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
    if subject.verdict is None:
        return _for_every_sm(subject)
    return _by_verdict(subject)


_WORDS = {"yes": Answer.YES, "waits": Answer.WAIT, "no": Answer.NO}


def _by_verdict(subject: Subject) -> tuple[Answer, str]:
    """Of documents that were written before audits had an answer."""
    device = _device(subject.about)
    if subject.verdict in ("missing", "driver"):
        return Answer.NO, f"No. Code for {device} is missing, or a file is broken: {_first(subject)}"
    if _jit_containers(subject):
        return Answer.WAIT, _waits(subject, device)
    return Answer.YES, f"Yes. Everything that can matter has machine code for {device}."


def _for_every_sm(subject: Subject) -> tuple[Answer, str]:
    """Of what was audited for no GPU in particular: which SMs its features are there for."""
    lost = [False] * len(subject.devices)
    for feature in subject.features:
        for column, cell in enumerate(feature["cells"]):
            lost[column] |= bool(cell and cell["state"] in ("missing", "driver"))
    served = [
        Capability.parse(device).sm for device, gone in zip(subject.devices, lost, strict=True) if not gone
    ]
    if not subject.features or subject.findings:
        return Answer.UNKNOWN, "No GPU was named, so its code was only counted. Add --sm SM for an answer."
    if not served:
        return Answer.NO, "No. There is no SM on which everything that is needed runs."
    return (
        Answer.UNKNOWN,
        f"For which GPU? What is needed runs on {', '.join(served)}. Add --sm SM for an answer.",
    )


def _jit_containers(subject: Subject) -> int:
    return int((subject.totals or {}).get("jit_containers", 0))


def _waits(subject: Subject, device: str) -> str:
    containers = _jit_containers(subject)
    driver = (subject.totals or {}).get("jit_driver")
    seconds = sum(library.seconds for library in subject.waiting)
    work = f", about {duration(seconds)} of work in all" if seconds else ""
    needs = f" That needs driver {driver} or newer." if driver else ""
    return (
        f"Yes, after a wait. It runs on {device}, and {_count(containers, 'fat binary', 'fat binaries')}"
        f" of it the driver compiles at first use{work}.{needs}"
    )


def batch(subjects: Sequence[Subject]) -> tuple[Answer, str]:
    """The answer for a batch of builds."""
    built = [subject for subject in subjects if subject.status == "built"]
    if len(built) == len(subjects):
        return Answer.YES, f"Yes. {_all_of(len(subjects))} built."
    missing = [str(subject.name) for subject in subjects if subject.status != "built"]
    return (
        Answer.NO,
        f"No. {len(built)} of {len(subjects)} variants were built; missing: {', '.join(missing)}.",
    )


def _all_of(count: int) -> str:
    return "The variant was" if count == 1 else f"All {count} variants were"


def worst(answers: Sequence[Answer]) -> Answer:
    """The answer for several subjects together."""
    order = (Answer.YES, Answer.WAIT, Answer.UNKNOWN, Answer.NO)
    return max(answers, key=order.index)


def _device(about: Mapping[str, Any]) -> str:
    sm = Capability.parse(about["capability"]).sm if about["capability"] else "this device"
    names = about["gpus"][:3]
    more = ", …" if about["gpus"][3:] else ""
    return f"{sm} ({', '.join(names)}{more})" if names else sm


def _first(subject: Subject) -> str:
    if not subject.findings:
        return "nothing says why."
    finding = subject.findings[0]
    library = finding["library"].rpartition("/")[2]
    return f"{library}: {finding['what']}." if library else f"{finding['what'].rstrip('.')}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
