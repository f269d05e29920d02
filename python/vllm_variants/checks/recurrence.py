"""Mamba's selective scan over sequences of different lengths, with and without an earlier state."""

from __future__ import annotations

from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check
from .dtypes import ACCUMULATED, floating_types


@check("mamba.selective_scan")
def selective_scan(run: Run) -> None:
    """Two shapes in every floating type; the final states are compared too."""
    for dtype in floating_types(run):
        for lengths, dim, states in (((3, 129, 1), 64, 16), ((260, 33), 128, 16)):
            _case(run, dtype, lengths, dim, states)


def _case(run: Run, dtype: torch.dtype, lengths: tuple[int, ...], dim: int, states: int) -> None:
    total, count = sum(lengths), len(lengths)
    u, z = (run.normal(dim, total, dtype=dtype) for _ in range(2))
    delta = run.uniform(dim, total, dtype=dtype, low=0.0, high=0.5)
    a = -run.uniform(dim, states, low=0.1, high=1.0)
    b, c = (run.normal(1, states, total, dtype=dtype) for _ in range(2))
    d, bias = run.normal(dim), run.uniform(dim, low=-1.0)
    initial = run.normal(count + 2, dim, states, dtype=dtype)
    slots = run.permutation(count + 2)[:count].contiguous()
    earlier = run.tensor([bool(i % 2) for i in range(count)], torch.bool)
    starts = run.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], torch.int32)
    expected, final = [], references.exact(initial).clone()
    for i, (low, high) in enumerate(zip(starts.tolist(), starts.tolist()[1:], strict=False)):
        slot = int(slots[i])
        state = initial[slot] if earlier[i] else torch.zeros(dim, states)
        out, final[slot] = references.selective_scan(
            u[:, low:high], delta[:, low:high], a, b[0, :, low:high], c[0, :, low:high], d,
            z[:, low:high], bias, state,
        )  # fmt: skip
        expected.append(out)
    # The operator writes its output over z and the final states over the initial ones.
    gate, step, state = z.clone(), delta.clone(), initial.clone()
    run.case(
        f"{dtype} {lengths} steps, {dim} channels of {states} states",
        partial(
            ops.selective_scan_fwd, u, step, a, b, c, d, gate, bias, True, starts, slots, earlier, state, -1
        ),
        (torch.cat(expected, -1), final),
        ACCUMULATED[dtype],
        outputs=[gate, state],
        restore=[(gate, z), (step, delta), (state, initial)],
    )
