"""FlashAttention 2 and 3 with a paged KV cache, and vLLM's Triton attention over the same cache."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from vllm.vllm_flash_attn import flash_attn_interface as interface

from . import references
from .checking import NOT_IN_THIS_RELEASE, Run, Unsupported, check, moved
from .dtypes import ACCUMULATED, FP8, sixteen_bit_types
from .paged_attention import padded, tables

unified_attention = moved(
    "vllm.v1.attention.ops.triton_unified_attention",
    "vllm.attention.ops.triton_unified_attention",  # releases before 0.14
).unified_attention


class Shape(NamedTuple):
    """Sequences as (query length, key length) each, and how attention runs over them.

    `window` is how many keys to the left of its own a query sees; `softcap` limits the scores.
    """

    pairs: tuple[tuple[int, int], ...]
    heads: int
    key_heads: int
    size: int  # of a head
    block: int  # keys in a block of the cache
    window: int | None = None
    causal: bool = True
    softcap: float = 0.0

    @property
    def label(self) -> str:
        """The case's name, without the type."""
        options = {
            "window": self.window,
            "causal": None if self.causal else False,
            "softcap": self.softcap or None,
        }
        return (
            f"{self.heads}/{self.key_heads} heads of {self.size}, blocks of {self.block},"
            f" (query, keys) {self.pairs}"
            + "".join(f", {name} {value}" for name, value in options.items() if value is not None)
        )


COMMON = (
    Shape(((1, 523), (1, 37), (1, 2011)), 8, 2, 128, 16),
    Shape(((129, 463), (1, 18), (5, 18)), 12, 3, 128, 32),
    Shape(((60, 1031), (1, 600)), 8, 4, 128, 64, window=255),
    Shape(((70, 131),), 4, 2, 128, 16, causal=False),
)
SIZES = (
    Shape(((129, 463), (1, 18), (5, 18)), 16, 16, 64, 32),
    Shape(((80, 80), (33, 700)), 6, 1, 256, 16),
)
SOFTCAP = Shape(((31, 257), (64, 64)), 4, 4, 96, 16, softcap=20.0)


class Paged:
    """Random sequences in a paged cache, and what attention over them should give."""

    def __init__(self, run: Run, dtype: torch.dtype, shape: Shape) -> None:
        self.shape = shape
        self.scale = shape.size**-0.5
        drawn = torch.bfloat16 if dtype is FP8 else dtype
        queries, keys = zip(*shape.pairs, strict=True)
        self.query = run.normal(sum(queries), shape.heads, shape.size, dtype=drawn).to(dtype)
        self.rows, blocks = tables(run, keys, shape.block)
        self.key_cache, self.value_cache = (
            run.normal(blocks, shape.block, shape.key_heads, shape.size, dtype=drawn).to(dtype)
            for _ in range(2)
        )
        self.block_table = padded(run, self.rows)
        self.query_starts = run.tensor([0, *itertools.accumulate(queries)], torch.int32)
        self.lengths = run.tensor(keys, torch.int32)
        self.longest = max(queries), max(keys)
        self.label = f"{dtype} {shape.label}"

    def expected(self) -> torch.Tensor:
        """The float64 output [queries, heads, size] over all sequences."""
        shape, start, parts = self.shape, 0, []
        for (queries, keys), row in zip(shape.pairs, self.rows, strict=True):
            key, value = (
                cache.cpu().float()[row].flatten(0, 1)[:keys] for cache in (self.key_cache, self.value_cache)
            )
            parts.append(
                references.attention(
                    self.query[start : start + queries].float(), key, value,
                    scale=self.scale, causal=shape.causal, window=shape.window, softcap=shape.softcap,
                )[0]
            )  # fmt: skip
            start += queries
        return torch.cat(parts)

    def arguments(self, out: torch.Tensor) -> dict[str, Any]:
        """What FlashAttention's and Triton's functions take by the same names."""
        left, right = self.shape.window, 0 if self.shape.causal else self.shape.window
        return {
            "q": self.query,
            "k": self.key_cache,
            "v": self.value_cache,
            "out": out,
            "cu_seqlens_q": self.query_starts,
            "seqused_k": self.lengths,
            "max_seqlen_q": self.longest[0],
            "max_seqlen_k": self.longest[1],
            "softmax_scale": self.scale,
            "window_size": [-1, -1] if left is None else [left, right],  # (-1, -1) is no window
            "softcap": self.shape.softcap,
            "block_table": self.block_table,
        }


def _flash(run: Run, version: int, types: Sequence[torch.dtype], shapes: Sequence[Shape]) -> None:
    if not run.dry and not interface.is_fa_version_supported(version):
        raise Unsupported(interface.fa_version_unsupported_reason(version))
    for dtype in types:
        for shape in shapes:
            paged = Paged(run, dtype, shape)
            options: dict[str, Any] = {"causal": shape.causal, "fa_version": version}
            if dtype is FP8:
                ones = torch.ones(len(shape.pairs), shape.key_heads, device=run.device)
                options |= {"q_descale": ones, "k_descale": ones, "v_descale": ones}
            out = run.empty(*paged.query.shape, dtype=torch.bfloat16 if dtype is FP8 else dtype)
            run.case(
                paged.label,
                partial(interface.flash_attn_varlen_func, **paged.arguments(out), **options),
                paged.expected(),
                ACCUMULATED[dtype],
                outputs=[out],
            )


# FlashAttention 2 is compiled for 8.0 alone: from 9.0 on the driver compiles the PTX of every head
# size, type and mask for itself, up to half a minute each. So its cases are spread over processes.


@check("flash_attention.fa2")
def flash_attention_2(run: Run) -> None:
    """fp16: prefill and decode, grouped heads, a window, no mask."""
    _flash(run, 2, (torch.float16,), COMMON)


@check("flash_attention.fa2_bf16")
def flash_attention_2_bf16(run: Run) -> None:
    """The same in bf16."""
    _flash(run, 2, (torch.bfloat16,), COMMON)


@check("flash_attention.fa2_sizes")
def flash_attention_2_sizes(run: Run) -> None:
    """Other head sizes, and the soft cap on scores."""
    _flash(run, 2, (torch.float16,), (*SIZES, SOFTCAP))


@check("flash_attention.fa3")
def flash_attention_3(run: Run) -> None:
    """fp16 and bf16: the same and other head sizes."""
    _flash(run, 3, (torch.float16, torch.bfloat16), (*COMMON, *SIZES))


@check("flash_attention.fa3_fp8")
def flash_attention_3_fp8(run: Run) -> None:
    """Queries and cache in fp8, at a scale of one."""
    _flash(run, 3, (FP8,), (*COMMON, *SIZES))


@check("flash_attention.fa4")
def flash_attention_4(run: Run) -> None:
    """bf16, compiled by the CUTLASS DSL as the check runs: prefill and decode, grouped heads, a window."""
    if not getattr(interface, "FA4_AVAILABLE", False):
        reason = getattr(interface, "FA4_UNAVAILABLE_REASON", "its interface knows no such version")
        raise Unsupported(f"{NOT_IN_THIS_RELEASE}: FlashAttention 4 ({reason}); versions 2 and 3 are")
    if run.dry:  # it looks at its tensors' device before it calls anything
        paged = Paged(run, torch.bfloat16, COMMON[0])
        call = paged.arguments(run.empty(*paged.query.shape, dtype=torch.bfloat16))
        inspect.signature(interface.flash_attn_varlen_func).bind(**call, causal=True, fa_version=4)
        return
    _flash(run, 4, (torch.bfloat16,), COMMON)


@check("attention.triton")
def triton_attention(run: Run) -> None:
    """vLLM's own Triton kernel over the same cache as FlashAttention's."""
    scales = {"q_descale": None, "k_descale": None, "v_descale": None}
    for dtype in sixteen_bit_types(run):
        for shape in (*COMMON[:3], SIZES[0]):
            paged = Paged(run, dtype, shape)
            out = run.empty(*paged.query.shape, dtype=dtype)
            run.case(
                paged.label,
                partial(unified_attention, **paged.arguments(out), causal=True, **scales),
                paged.expected(),
                ACCUMULATED[dtype],
                outputs=[out],
            )
