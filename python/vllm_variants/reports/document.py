"""A report as a document: everything that the page shows, and nothing that it does not."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_variants import __version__, documents
from vllm_variants.errors import UsageError
from vllm_variants.model.capability import Capability
from vllm_variants.reports import answer as answers
from vllm_variants.reports import runs
from vllm_variants.reports.inputs import Named
from vllm_variants.reports.runs import Run, Seen
from vllm_variants.reports.subjects import Subject


@dataclass(frozen=True)
class Extra:
    """What goes into a report beside its subjects.

    `given` are runs of checks that a person named, all shown; `kept` are those of docs/evidence, shown where
    they are of the same variant. `command` is the one that makes the report.
    """

    given: Sequence[Run] = ()
    kept: Sequence[Run] = ()
    advisories: Sequence[Mapping[str, str]] = ()
    command: str = ""


def report(named: Sequence[Named], extra: Extra) -> dict[str, Any]:
    """The document (`schemas/report-1.json`) of one thing, of two to be compared, or of a batch of builds.

    Raises `UsageError` where that is not what was named.
    """
    batch = any(one.batch for one in named)
    subjects = [subject for one in named for subject in one.subjects]
    if batch and len(named) > 1:
        raise UsageError("a batch of builds stands alone in a report", hint="name one of them")
    if not batch and len(subjects) > 2:
        raise UsageError(f"{len(subjects)} things cannot be compared in one report", hint="name one or two")
    if not subjects:
        raise UsageError("there is nothing in it to report", hint="name a result: vllm-variants report sm90")
    facts = [subject.as_dict() for subject in subjects]
    seen = runs.together([*extra.given, *runs.matching(extra.kept, facts)])
    said = [answers.answer(subject, _of(subject, seen)) for subject in subjects]
    for subject, (word, sentence) in zip(facts, said, strict=True):
        subject["answer"], subject["sentence"] = str(word), sentence
    word, sentence = _answer(subjects, said, batch)
    return {
        "schema": documents.REPORT,
        "tool": __version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": extra.command,
        "kind": "batch" if batch else "comparison" if subjects[1:] else "single",
        "title": _title(subjects, batch),
        "answer": str(word),
        "sentence": sentence,
        "subjects": facts,
        "differences": _differences(facts) if subjects[1:] and not batch else [],
        "evidence": [card.as_dict() for card in seen],
        "advisories": [dict(advisory) for advisory in extra.advisories],
    }


def _of(subject: Subject, seen: Sequence[Seen]) -> list[Seen]:
    key = (subject.about["variant"], subject.about["release"], bool(subject.about["native"]))
    return [card for card in seen if not card.compared and (card.variant, card.release, card.native) == key]


def _answer(
    subjects: Sequence[Subject], said: Sequence[tuple[answers.Answer, str]], batch: bool
) -> tuple[answers.Answer, str]:
    if batch:
        return answers.batch(subjects)
    if len(said) == 1:
        return said[0]
    return answers.worst([word for word, _ in said]), _difference(subjects)


def _difference(subjects: Sequence[Subject]) -> str:
    first, second = (_bytes(subject) for subject in subjects)
    waits = [sum(library.containers for library in subject.waiting) for subject in subjects]
    word = "smaller" if second < first else "larger"
    sizes = (
        f"The second is {abs(first - second) / 1e6:,.1f} MB {word}"
        if first != second
        else "Both are as large"
    )
    waiting = f"{waits[0]} fat binaries wait for the driver's compiler in the first, {waits[1]} in the second"
    return f"{sizes}; {waiting}."


def _differences(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The packages that differ in size or version between two subjects, those that differ most first.

    `sides` has a package's bytes and version in each, None where it is not in it.
    """
    packages = [{package["name"]: package for package in subject["packages"]} for subject in subjects]
    found = []
    for name in dict.fromkeys([*packages[0], *packages[1]]):
        sides = [
            {"bytes": side[name]["after"], "version": side[name]["version"]} if name in side else None
            for side in packages
        ]
        if sides[0] != sides[1]:
            first, second = (side["bytes"] if side else 0 for side in sides)
            found.append({"name": name, "sides": sides, "bytes": second - first})
    return sorted(found, key=lambda row: (-abs(row["bytes"]), row["name"]))


def _bytes(subject: Subject) -> int:
    if subject.sizes:
        return subject.sizes["result"]
    return sum(package.after for package in subject.packages)


def _title(subjects: Sequence[Subject], batch: bool) -> str:
    if batch:
        return f"{len(subjects)} variants"
    return " and ".join(_name(subject) for subject in subjects)


def _name(subject: Subject) -> str:
    about = subject.about
    if about["variant"]:
        return f"vLLM {about['release']} for {about['short']}{' (native)' if about['native'] else ''}"
    device = f" on {Capability.parse(about['capability']).sm}" if about["capability"] else ""
    return f"{subject.name.rstrip('/').rpartition('/')[2]}{device}"
