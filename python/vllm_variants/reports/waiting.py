"""What waits for the driver's compiler at first use: by library, how much, how long, and which driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_variants.fatbin.native import schedule
from vllm_variants.model import toolkits
from vllm_variants.versions import numbers


@dataclass(frozen=True)
class WaitingLibrary:
    """A library with code that is only there as PTX.

    `containers` of all `of_containers` wait, with `ptx_bytes` of text, which take one core about `seconds`
    to compile; `driver` is the oldest branch (575) that compiles all of it, None where that is not known.
    """

    path: str
    containers: int
    of_containers: int
    ptx_bytes: int
    seconds: int
    driver: int | None


def waiting(audit: Mapping[str, Any]) -> list[WaitingLibrary]:
    """The libraries of an audit that have something to wait for, the longest first."""
    found = [_library(library) for library in audit["libraries"] if library["jit"]]
    return sorted(found, key=lambda library: (-library.seconds, library.path))


def _library(library: Mapping[str, Any]) -> WaitingLibrary:
    images = library["jit"]
    newest = max(numbers(image["ptx"])[:2] for image in images)
    return WaitingLibrary(
        library["path"],
        len({image["offset"] for image in images}),
        library["containers"],
        sum(image["bytes"] for image in images),
        round(sum(schedule.cpu_seconds(image["bytes"]) for image in images)),
        toolkits.driver((newest[0], newest[1])),
    )
