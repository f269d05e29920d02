"""Of which results of the store a build takes images: the nearest devices' of the same lock and encoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from vllm_variants.builders.wheels import device_code
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Manifest, Result

MATRIX = matrix.load()


@dataclass(frozen=True)
class ALock:
    """What is asked of a lock here."""

    digest: str = "this lock"


def request(sm: str) -> Request:
    return Request(MATRIX.parse(sm, system="x86_64-linux").variant, MATRIX.default, Path())


def result(capability: str, lock: str = "this lock", **rules: object) -> Result:
    encoding = device_code.rules_of(request("9.0")).identity["compress"]
    step = {"name": "slim", "rules": {"compress": encoding, **rules}}
    facts: dict[str, Any] = {"capability": capability, "lock": lock, "steps": [step]}
    return Result(Path(capability), Manifest(facts))


def chosen(sm: str, *results: Result) -> list[str]:
    lock = cast(Lock, ALock())
    return [str(path) for path in device_code.stored_alike(results, request(sm), lock)]


ALL = [result(capability) for capability in ("12.0", "7.0", "8.0", "10.0", "8.9", "9.0")]


@pytest.mark.parametrize(
    ("sm", "nearest"),
    [("8.6", ["8.0", "8.9"]), ("9.0", ["9.0", "10.0"]), ("7.5", ["7.0", "8.0"]), ("12.0", ["12.0"])],
)
def test_the_nearest_device_below_and_the_nearest_above_are_asked(sm: str, nearest: list[str]) -> None:
    assert chosen(sm, *ALL) == nearest


@pytest.mark.parametrize(
    "other",
    [
        result("8.9", lock="another lock"),
        result("8.9", compress="zstd 1.5.6 level 9"),
        result("8.9", compress="none"),
        Result(
            Path("8.9"), Manifest({"capability": "8.9", "lock": "this lock", "steps": [{"name": "slim"}]})
        ),
        Result(Path("8.9"), Manifest({"capability": "8.9", "lock": "this lock"})),
        Result(Path("8.9"), Manifest({"capability": "8.9"})),
    ],
)
def test_another_lock_or_encoding_or_none_gives_nothing(other: Result) -> None:
    assert chosen("8.6", result("8.0"), other) == ["8.0"]


def test_without_results_nothing_is_asked() -> None:
    assert chosen("9.0") == []
