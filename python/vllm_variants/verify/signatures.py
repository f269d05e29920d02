"""What the checks call in one release, tried without a GPU, and how that differs from another release.

`checks/signatures.py` makes the calls, in a release's own interpreter; here they become data. The record
of a release is a JSON document, `signatures/<release>.json` of the checkout.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.errors import Error, InputError
from vllm_variants.system import process
from vllm_variants.verify.catalogue import CHECKS, Check
from vllm_variants.verify.check_process import FOREIGN, alone

STATUSES = ("called", "refused", "absent", "untried")
"""What may become of a check; `checks/signatures.py` says what each means."""


@dataclass(frozen=True)
class CalledCheck:
    """What one check called: `operators` → schema, `callables` of vLLM → the names of their parameters.

    `status` is one of `STATUSES`, `reason` a sentence unless all was called; `arguments` has the names of
    those that the calls gave to each operator.
    """

    name: str
    status: str
    reason: str = ""
    operators: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    callables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> CalledCheck:
        """The check of a JSON object as `as_dict` makes it; raises `KeyError`, `TypeError`, `ValueError`."""
        if record["status"] not in STATUSES:
            raise ValueError(f"{record['status']!r} is no status")
        operators: Mapping[str, Mapping[str, Any]] = record["operators"]
        return cls(
            str(record["check"]),
            str(record["status"]),
            str(record.get("reason", "")),
            {name: str(operator["schema"]) for name, operator in operators.items()},
            {name: tuple(map(str, operator["arguments"])) for name, operator in operators.items()},
            {name: tuple(map(str, names)) for name, names in record["callables"].items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """The check as JSON."""
        return {
            "check": self.name,
            "status": self.status,
            **({"reason": self.reason} if self.reason else {}),
            "operators": {
                name: {"schema": schema, "arguments": list(self.arguments[name])}
                for name, schema in sorted(self.operators.items())
            },
            "callables": {name: list(names) for name, names in sorted(self.callables.items())},
        }


@dataclass(frozen=True)
class Look:
    """A check that a person must look at, and the reason as a clause."""

    check: str
    reason: str


def record(python: Path, checks: Sequence[Check]) -> list[CalledCheck]:
    """Call every check in the release of the interpreter `python`.

    Takes a minute or more, and neither GPU nor driver. Raises `Error` where the process ends without all.
    """
    names = [f"{check.name}={check.script}" for check in checks]
    with tempfile.TemporaryDirectory(prefix="vllm-variants-signatures-") as scratch:
        command: list[str | Path] = [python, CHECKS / "run.py", "--signatures", *names]
        completed = process.capture(command, env=_environment(Path(scratch)))
    try:
        found = [CalledCheck.parse(json.loads(line)) for line in completed.stdout.splitlines()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f"the signatures of the checks cannot be read: {error}") from error
    if [called.name for called in found] != [check.name for check in checks]:
        last = next((line for line in reversed(completed.stderr.splitlines()) if line.strip()), "")
        raise Error(
            f"the checks' calls were not all tried: the process ended with status {completed.status}"
            f" after {len(found)} of {len(checks)}; its last words: {last.strip()[:200]}"
        )
    return found


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of a dry run: no foreign Python paths, no network, and every cache in `scratch`."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {"HOME": str(scratch)} | alone(scratch)


def document(release: str, checks: Sequence[CalledCheck]) -> dict[str, Any]:
    """The record of a release."""
    return {
        "schema": documents.SIGNATURES,
        "release": release,
        "checks": [check.as_dict() for check in checks],
    }


def read(path: Path) -> list[CalledCheck]:
    """The record in a file; `InputError` says what is wrong with it."""
    try:
        return [CalledCheck.parse(row) for row in json.loads(path.read_text(encoding="utf-8"))["checks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no record of signatures: {error}") from error


def to_look_at(
    release: str,
    checks: Sequence[Check],
    now: Sequence[CalledCheck],
    before: Sequence[CalledCheck],
    sms: Sequence[str],
) -> list[Look]:
    """What a person must look at before the checks judge `release`, whose variants are of `sms`.

    A check whose call was refused; one without kernels that the catalogue wants somewhere; one that calls
    what was declared otherwise in the record `before`.
    """
    expected = {check.name: check for check in checks}
    earlier = {called.name: called for called in before}
    looks = []
    for called in now:
        if called.status == "refused":
            looks.append(Look(called.name, called.reason))
        elif called.status == "absent":
            if wanted := _wanted(expected[called.name], release, sms):
                looks.append(Look(called.name, f"{called.reason}; catalogue.toml wants it on {wanted}"))
        elif called.name in earlier and (reason := _changes(earlier[called.name], called)):
            looks.append(Look(called.name, reason))
    return looks


def _wanted(check: Check, release: str, sms: Sequence[str]) -> str:
    return ", ".join(sm for sm in sms if check.expected(release, sm) == "ok")


def _changes(before: CalledCheck, now: CalledCheck) -> str:
    """What of the declarations changed, as one clause; empty where nothing did."""
    changes = []
    for name in sorted(before.operators.keys() | now.operators.keys()):
        changes += _change(name, before.operators.get(name), now.operators.get(name))
    for name in sorted(before.callables.keys() | now.callables.keys()):
        changes += _change(f"{name}()", before.callables.get(name), now.callables.get(name))
    return "; ".join(changes)


def _change(name: str, before: object, now: object) -> list[str]:
    if before == now:
        return []
    if now is None:
        return [f"{name} is not called any more"]
    return [f"{name} is called anew" if before is None else f"{name} is declared otherwise"]
