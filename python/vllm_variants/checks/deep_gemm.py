"""DeepGEMM as vLLM brings it: fp8 products with block scales, compiled for the card as they run."""

from __future__ import annotations

import importlib.util
import itertools
from functools import partial
from types import ModuleType

import torch

from . import references
from .checking import NOT_IN_THIS_RELEASE, Run, Unsupported, check
from .dtypes import FP8

BLOCK = 128
TOLERANCE = 8e-3
"""bf16 results of sums in fewer bits than float32 has."""


def _library(run: Run) -> ModuleType:
    """vLLM's way to DeepGEMM; Unsupported where this release brings none, or not for this card."""
    if not importlib.util.find_spec("vllm.third_party.deep_gemm"):
        raise Unsupported(f"{NOT_IN_THIS_RELEASE}: DeepGEMM; vLLM takes one that is installed beside it")
    from vllm.utils import deep_gemm

    if not run.dry and not deep_gemm.is_deep_gemm_supported():
        raise Unsupported(f"vLLM says that DeepGEMM is not supported on {'.'.join(map(str, run.capability))}")
    return deep_gemm  # type: ignore[no-any-return]


def _powers(run: Run, *shape: int) -> torch.Tensor:
    """Scales that are powers of two: from 10.0 on DeepGEMM stores no others."""
    return torch.exp2(run.integers(-6, -2, *shape).float())


def _fp8(run: Run, *shape: int) -> torch.Tensor:
    return run.normal(*shape, dtype=torch.float32).to(FP8)


@check("deep_gemm.fp8")
def fp8(run: Run) -> None:
    """Scales for 1×128 blocks of activations and 128×128 blocks of weights."""
    library = _library(run)
    for m, n, k in ((1, 512, 512), (84, 2048, 1024), (256, 576, 4096)):
        a, b = _fp8(run, m, k), _fp8(run, n, k)
        scale_a, scale_b = _powers(run, m, k // BLOCK), _powers(run, -(-n // BLOCK), k // BLOCK)
        out = run.empty(m, n, dtype=torch.bfloat16)
        whole_a = references.spread(scale_a, 1, BLOCK)
        whole_b = references.spread(scale_b, BLOCK, BLOCK)[:n]
        exact = (references.exact(a) * whole_a) @ (references.exact(b) * whole_b).T
        run.case(
            f"{m}×{n}×{k}",
            partial(library.fp8_gemm_nt, (a, scale_a), (b, scale_b), out),
            exact,
            TOLERANCE,
            outputs=[out],
        )


@check("deep_gemm.grouped_fp8")
def grouped_fp8(run: Run) -> None:
    """Products of several experts in one launch; each one's rows begin at a multiple of 128."""
    library = _library(run)
    for experts, n, k in ((4, 512, 1024), (9, 768, 512)):
        sizes = (run.integers(1, 4, experts, dtype=torch.int64) * BLOCK).tolist()
        starts = [0, *itertools.accumulate(sizes)]
        a, b = _fp8(run, starts[-1], k), _fp8(run, experts, n, k)
        scale_a = _powers(run, starts[-1], k // BLOCK)
        scale_b = _powers(run, experts, n // BLOCK, k // BLOCK)
        out = run.empty(starts[-1], n, dtype=torch.bfloat16)
        owners = torch.arange(experts).repeat_interleave(torch.tensor(sizes)).to(torch.int32).to(run.device)
        rows = references.exact(a) * references.spread(scale_a, 1, BLOCK)
        exact = [
            rows[low:high] @ (references.exact(b[e]) * references.spread(scale_b[e], BLOCK, BLOCK)).T
            for e, (low, high) in enumerate(itertools.pairwise(starts))
        ]
        run.case(
            f"{experts} experts, {starts[-1]}×{n}×{k}",
            partial(library.m_grouped_fp8_gemm_nt_contiguous, (a, scale_a), (b, scale_b), out, owners),
            torch.cat(exact),
            TOLERANCE,
            outputs=[out],
        )
