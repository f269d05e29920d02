"""DeepGEMM as vLLM brings it: fp8 products and the indexer's scores, compiled for the card as they run."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch

from . import references
from .checking import NOT_IN_THIS_RELEASE, Run, Skipped, Unsupported, check
from .dtypes import FP8
from .indexer import BLOCK as PAGE
from .indexer import SIZE, filled_cache, keys_of, scales_of
from .paged_attention import padded, tables

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


class Indexed:
    """Queries [rows, heads, 128] in fp8, and how much each of their heads counts, as the indexer asks."""

    def __init__(self, run: Run, rows: int, heads: int) -> None:
        self.query = _fp8(run, rows, heads, SIZE)
        self.weights = run.uniform(rows, heads, low=-1.0, high=1.0)

    def expected(self, row: int, keys: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """One query's scores for keys [count, 128] with their scales [count]: Σ weight · max(0, q · k)."""
        scaled = references.exact(keys) * references.exact(scales)[:, None]
        products = references.exact(self.query[row]) @ scaled.T
        return references.exact(self.weights[row]) @ products.clamp(min=0.0)


def _require_plain_scales(library: ModuleType) -> None:
    """Raise Skipped where the kernels take other scales than the check gives."""
    if library.mqa_logits_use_mx_scales():
        raise Skipped("vLLM gives these kernels packed powers of two on 10.x; this check knows float32 alone")


def _within(ends: torch.Tensor, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What the call returned, up to each row's end; what the kernels leave behind it is zeroed."""
    scores = call()
    columns = torch.arange(scores.shape[-1], device=scores.device)
    return torch.where(columns < ends.unsqueeze(-1), scores, 0.0)


def _rows(parts: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """Rows of different lengths as one matrix, with zeros behind them."""
    return torch.stack([torch.nn.functional.pad(part, (0, columns - len(part))) for part in parts])


@check("deep_gemm.mqa_logits")
def mqa_logits(run: Run) -> None:
    """The indexer's scores of a prefill: each query against its own range of the gathered keys."""
    library = _library(run)
    _require_plain_scales(library)
    for rows, heads, keys in ((5, 64, 1024), (130, 32, 700), (64, 64, 4096)):
        asked = Indexed(run, rows, heads)
        key, scale = _fp8(run, keys, SIZE), _powers(run, keys)
        starts = run.integers(0, keys // 2, rows)
        ends = starts + run.integers(1, keys // 2, rows)
        ranges = list(zip(starts.tolist(), ends.tolist(), strict=True))
        longest = max(end - start for start, end in ranges)
        inputs = (asked.query, None), (key, scale), asked.weights
        call = partial(library.fp8_fp4_mqa_logits, *inputs, starts, ends, longest)
        parts = [asked.expected(i, key[a:b], scale[a:b]) for i, (a, b) in enumerate(ranges)]
        run.case(
            f"{rows} queries of {heads} heads, {keys} keys",
            partial(_within, ends - starts, call),
            _rows(parts, longest),
            TOLERANCE,
        )


@check("deep_gemm.paged_mqa_logits")
def paged_mqa_logits(run: Run) -> None:
    """The indexer's scores of a decoding step: the queries of each sequence against its keys in the cache."""
    library = _library(run)
    _require_plain_scales(library)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for lengths, queries, heads, longest in (((1, 64, 700, 3001), 1, 64, 4096), ((130, 2048), 2, 32, 2048)):
        rows, blocks = tables(run, lengths, PAGE)
        cache, asked = filled_cache(run, blocks), Indexed(run, len(lengths) * queries, heads)
        ends = [[count - queries + 1 + i for i in range(queries)] for count in lengths]
        counts = run.tensor(ends, torch.int32)
        call = partial(
            library.fp8_fp4_paged_mqa_logits,
            (asked.query.view(len(lengths), queries, heads, SIZE), None),
            cache.unsqueeze(-2),
            asked.weights,
            counts,
            padded(run, rows),
            library.get_paged_mqa_logits_metadata(counts, PAGE, processors),
            longest,
        )
        keys, scales = references.exact(keys_of(cache)), references.exact(scales_of(cache))
        parts = [
            asked.expected(i * queries + j, keys[row].flatten(0, 1)[:end], scales[row].flatten()[:end])
            for i, row in enumerate(rows)
            for j, end in enumerate(ends[i])
        ]
        run.case(
            f"keys {lengths}, {queries} queries each of {heads} heads",
            partial(_within, counts.flatten(), call),
            _rows(parts, longest),
            TOLERANCE,
        )
