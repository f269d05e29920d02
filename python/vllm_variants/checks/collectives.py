"""NCCL of the result between cards: all-reduce, all-gather, reduce-scatter, by torch and by vLLM itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from . import references
from .checking import Run, Skipped, Wrong, check
from .dtypes import ROUNDING
from .ranks import Body, Rank, cards, in_step

COUNTS = (1, 7, 1000, 65_536, (1 << 21) + 3)  # values a rank gives, odd ones among them
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int32, torch.int64)
SECONDS = 240.0

Collective = Callable[[torch.Tensor, torch.Tensor], object]
"""Works on (output, input)."""


@check("nccl.all_reduce")
def all_reduce(run: Run) -> None:
    """Sums, and the largest of whole numbers, of every type that vLLM's binding knows."""
    _spread(run, reduce_all)


@check("nccl.all_gather")
def all_gather(run: Run) -> None:
    """Every rank gets what all have."""
    _spread(run, gather_all)


@check("nccl.reduce_scatter")
def reduce_scatter(run: Run) -> None:
    """Every rank gets its share of the sum."""
    _spread(run, scatter_sums)


def _spread(run: Run, body: Body) -> None:
    """Run `body` on all cards; dry, by two processes without a card, with gloo in NCCL's place."""
    count = 2 if run.dry else cards()
    if count < 2:
        raise Skipped(f"it needs two cards, and this process sees {count}")
    in_step(run, count, body, SECONDS)


# ── in the process of each rank ──


def reduce_all(rank: Rank) -> None:
    """The cases of `nccl.all_reduce`."""
    for name, library in _libraries(rank):
        for dtype, parts in _parts(rank):
            calls = {"sum": partial(_reduce, library, distributed.ReduceOp.SUM)}
            if not dtype.is_floating_point:
                calls["max"] = partial(_reduce, library, distributed.ReduceOp.MAX)
            for what, call in calls.items():
                exact = torch.stack([references.exact(part) for part in parts])
                expected = exact.sum(0) if what == "sum" else exact.amax(0)
                _case(rank, f"{name}, {what}", call, parts, torch.empty_like(parts[0]), expected)
    _inside(rank)


def _reduce(library: Any, op: Any, output: torch.Tensor, x: torch.Tensor) -> None:
    if library is distributed:
        output.copy_(x)
        distributed.all_reduce(output, op)
    else:
        library.all_reduce(x, output, op)


def gather_all(rank: Rank) -> None:
    """The cases of `nccl.all_gather`."""
    for name, library in _libraries(rank):
        call = distributed.all_gather_into_tensor if library is distributed else library.all_gather
        for _, parts in _parts(rank):
            output = torch.empty(rank.world * parts[0].numel(), dtype=parts[0].dtype)
            _case(rank, name, call, parts, output, torch.cat(list(map(references.exact, parts))))
    _inside(rank)


def scatter_sums(rank: Rank) -> None:
    """The cases of `nccl.reduce_scatter`."""
    for name, library in _libraries(rank):
        call = distributed.reduce_scatter_tensor if library is distributed else library.reduce_scatter
        for _, parts in _parts(rank, times=rank.world):
            share = parts[0].numel() // rank.world
            expected = torch.stack([references.exact(part) for part in parts]).sum(0)
            own = expected[rank.number * share : (rank.number + 1) * share]
            _case(rank, name, call, parts, torch.empty(share, dtype=parts[0].dtype), own)
    _inside(rank)


def _libraries(rank: Rank) -> Iterator[tuple[str, Any]]:
    """(name, what has the collectives): torch's, and vLLM's binding by ctypes."""
    yield ("gloo" if rank.run.dry else "torch"), distributed
    if rank.run.dry:
        return
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.parallel_state import get_world_group

    communicator = PyNcclCommunicator(get_world_group().cpu_group, rank.device)
    if communicator.disabled:
        raise Wrong("vLLM's binding finds no libnccl.so.2")
    yield "vLLM", communicator


def _parts(rank: Rank, times: int = 1) -> Iterator[tuple[torch.dtype, list[torch.Tensor]]]:
    """(type, a tensor of every rank): each type in every count, multiplied by `times`."""
    for dtype in (*FLOATING, *WHOLE):
        for count in COUNTS[:-1] if rank.run.dry else COUNTS:
            if not dtype.is_floating_point:
                yield dtype, rank.parts(count * times, dtype=dtype, low=0, high=16)  # sums fit a byte
                continue
            parts = rank.parts(count * times, dtype=dtype)
            # More than two are rounded on the way, and what then cancels out would magnify that.
            yield dtype, parts if rank.world == 2 else [part.abs() for part in parts]


def _case(
    rank: Rank,
    what: str,
    call: Collective,
    parts: list[torch.Tensor],
    output: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    """Call a collective with this rank's part, and compare what it wrote; rows of up to 64 values."""
    dtype, count = parts[0].dtype, parts[0].numel()
    x, out = parts[rank.number].to(rank.device), output.to(rank.device)
    steps = max(1, rank.world - 1)  # a sum over a ring is rounded once for every rank that adds
    tolerance = steps * ROUNDING.get(dtype, 1e-14 if dtype == torch.float64 else 0.0)
    gathers = output.numel() > count
    rank.run.case(
        f"{rank.world} cards, {what}, {dtype}, {count}",
        partial(call, out, x),
        _rows(expected),
        0.0 if gathers else tolerance,
        outputs=[_rows(out)],
        image=what.startswith("vLLM") and dtype == torch.float16,
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """A flat tensor in rows of a divisor of its length, 64 at most: one wrong value is a wrong row."""
    width = max(width for width in range(1, 65) if x.numel() % width == 0)
    return x.view(-1, width)


def _inside(rank: Rank) -> None:
    """Note which NCCL was loaded, and raise `Wrong` unless it is the result's own."""
    if rank.run.dry:
        return
    with Path("/proc/self/maps").open() as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libnccl.so" in line}
    version = ".".join(map(str, torch.cuda.nccl.version()))
    rank.run.fact(nccl=version, nccl_libraries=len(paths))
    folders = [os.path.realpath(folder) + "/" for folder in rank.run.facts.get("inside", ())]
    strangers = [path for path in paths if folders and not os.path.realpath(path).startswith(tuple(folders))]
    if strangers:
        raise Wrong(f"NCCL comes from outside the result: {strangers[0]}")
