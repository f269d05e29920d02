"""Which drivers can compile a PTX: the version that its compiler wrote, and the first that reads it.

Machine code of CUDA 12.x runs on every driver for 12.x; PTX is text in the language of one toolkit,
and a driver for an older one refuses it ("the provided PTX was compiled with an unsupported toolchain").
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_variants.versions import numbers


class Toolkit(NamedTuple):
    """A CUDA toolkit: the PTX that its compiler writes, its version, its driver's branch."""

    ptx: tuple[int, int]
    cuda: str
    driver: int


# NVIDIA's "PTX ISA Release History", and the drivers of each toolkit's release notes, oldest first;
# CUDA 12.6 writes the PTX of 12.5.
TOOLKITS = (
    Toolkit((7, 0), "11.0", 450),
    Toolkit((7, 1), "11.1", 455),
    Toolkit((7, 2), "11.2", 460),
    Toolkit((7, 3), "11.3", 465),
    Toolkit((7, 4), "11.4", 470),
    Toolkit((7, 5), "11.5", 495),
    Toolkit((7, 6), "11.6", 510),
    Toolkit((7, 7), "11.7", 515),
    Toolkit((7, 8), "11.8", 520),
    Toolkit((8, 0), "12.0", 525),
    Toolkit((8, 1), "12.1", 530),
    Toolkit((8, 2), "12.2", 535),
    Toolkit((8, 3), "12.3", 545),
    Toolkit((8, 4), "12.4", 550),
    Toolkit((8, 5), "12.5", 555),
    Toolkit((8, 6), "12.7", 565),
    Toolkit((8, 7), "12.8", 570),
    Toolkit((8, 8), "12.9", 575),
    Toolkit((9, 0), "13.0", 580),
    Toolkit((9, 1), "13.1", 590),
    Toolkit((9, 2), "13.2", 595),
    Toolkit((9, 3), "13.3", 610),
    Toolkit((9, 4), "13.4", 615),
)


def driver(ptx: tuple[int, int]) -> int | None:
    """The oldest driver branch that compiles this PTX; None for a PTX newer than the table."""
    return next((toolkit.driver for toolkit in TOOLKITS if toolkit.ptx >= ptx), None)


def driver_of(cuda: str) -> int | None:
    """The oldest driver branch that compiles what this toolkit (`12.9`) writes; None for a newer one."""
    version = numbers(cuda)[:2]
    if version > numbers(TOOLKITS[-1].cuda):
        return None
    older = (toolkit for toolkit in reversed(TOOLKITS) if numbers(toolkit.cuda) <= version)
    return next((toolkit.driver for toolkit in older), None)


OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver branch that runs a major version of CUDA at all, on Linux. Source: "CUDA Compatibility",
minor version compatibility."""
