"""Before and beside an operator's call: poisoned outputs, and its time by CUDA events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TypeVar

import torch

Returned = TypeVar("Returned")


def poison(tensor: torch.Tensor) -> None:
    """Fill with bytes that no operator would leave by accident: NaN in every floating type."""
    if tensor.is_contiguous():
        tensor.view(torch.uint8).fill_(0xFF)
    else:
        tensor.fill_(float("nan") if tensor.dtype.is_floating_point else -1)


def poison_free_memory() -> None:
    """Leave NaN in the allocator's free blocks, where an operator's own outputs will come from."""
    for count in (1 << 10, 1 << 18, 1 << 22):
        block = torch.empty(count, dtype=torch.float32, device="cuda")
        block.fill_(float("nan"))
        del block


def gpu_timed(call: Callable[[], Returned]) -> tuple[float, Returned]:
    """(milliseconds that the GPU took for one call, by CUDA events; what the call returned)."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    returned = call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end), returned


def median_ms(call: Callable[[], object], repeats: int = 11) -> float:
    """The median time of a call in milliseconds, each call by itself, after one that is not counted."""
    call()
    torch.cuda.synchronize()
    return round(statistics.median(gpu_timed(call)[0] for _ in range(repeats)), 4)
