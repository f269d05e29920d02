"""FlashAttention 2 and 3 with a paged KV cache, and vLLM's Triton attention over the same cache."""

import torch
from vllm.attention.ops.triton_unified_attention import unified_attention
from vllm.vllm_flash_attn import flash_attn_interface as interface

from . import references
from .checking import Unsupported, check
from .paged_attention import padded, tables

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 8e-3, FP8: 8e-2}

# (query length, key length) of each sequence; heads, key heads, head size; block; options
COMMON = (
    (((1, 523), (1, 37), (1, 2011)), 8, 2, 128, 16, {}),
    (((129, 463), (1, 18), (5, 18)), 12, 3, 128, 32, {}),
    (((60, 1031), (1, 600)), 8, 4, 128, 64, {"window": 255}),
    (((70, 131),), 4, 2, 128, 16, {"causal": False}),
)
SIZES = (
    (((129, 463), (1, 18), (5, 18)), 16, 16, 64, 32, {}),
    (((80, 80), (33, 700)), 6, 1, 256, 16, {}),
)
SOFTCAP = (((31, 257), (64, 64)), 4, 4, 96, 16, {"softcap": 20.0})


class Paged:
    """Random sequences in a paged cache, and what attention over them should give."""

    def __init__(self, run, dtype, pairs, heads, key_heads, size, block, options):
        self.pairs, self.size = pairs, size
        self.causal = options.get("causal", True)
        self.window, self.softcap = options.get("window"), options.get("softcap", 0.0)
        self.scale = size**-0.5
        made = torch.bfloat16 if dtype is FP8 else dtype
        self.query = run.normal(sum(q for q, _ in pairs), heads, size, dtype=made).to(dtype)
        rows, blocks = tables(run, [k for _, k in pairs], block)
        self.key_cache, self.value_cache = (
            run.normal(blocks, block, key_heads, size, dtype=made).to(dtype) for _ in range(2)
        )
        self.rows, self.block = rows, block
        self.block_table = padded(run, rows)
        self.query_starts = run.tensor([0, *_running(q for q, _ in pairs)], torch.int32)
        self.lengths = run.tensor([k for _, k in pairs], torch.int32)
        self.longest = max(q for q, _ in pairs), max(k for _, k in pairs)
        self.label = (
            f"{dtype} {heads}/{key_heads} heads of {size}, blocks of {block}, (query, keys) {pairs}"
            + "".join(f", {name} {value}" for name, value in options.items())
        )

    def expected(self):
        """The float64 output [queries, heads, size] over all sequences."""
        start, parts = 0, []
        for (queries, keys), row in zip(self.pairs, self.rows, strict=True):
            key, value = (
                cache.cpu().float()[row].flatten(0, 1)[:keys] for cache in (self.key_cache, self.value_cache)
            )
            parts.append(
                references.attention(
                    self.query[start : start + queries].float(), key, value,
                    scale=self.scale, causal=self.causal, window=self.window, softcap=self.softcap,
                )[0]
            )  # fmt: skip
            start += queries
        return torch.cat(parts)

    @property
    def window_size(self):
        """FlashAttention's (left, right); (-1, -1) is no window."""
        if self.window is None:
            return [-1, -1]
        return [self.window, 0 if self.causal else self.window]


def _running(counts):
    total = 0
    for count in counts:
        total += count
        yield total


def _flash(run, version, dtypes, shapes):
    if not run.dry and not interface.is_fa_version_supported(version):
        raise Unsupported(interface.fa_version_unsupported_reason(version))
    for dtype in dtypes:
        for shape in shapes:
            paged = Paged(run, dtype, *shape)
            heads = paged.key_cache.shape[2]
            scales = {}
            if dtype is FP8:
                one = torch.ones(len(paged.pairs), heads, device=run.device)
                scales = {"q_descale": one, "k_descale": one, "v_descale": one}
            out = run.empty(*paged.query.shape, dtype=torch.bfloat16 if dtype is FP8 else dtype)
            run.case(
                paged.label,
                lambda paged=paged, out=out, scales=scales: interface.flash_attn_varlen_func(
                    q=paged.query,
                    k=paged.key_cache,
                    v=paged.value_cache,
                    out=out,
                    cu_seqlens_q=paged.query_starts,
                    seqused_k=paged.lengths,
                    max_seqlen_q=paged.longest[0],
                    max_seqlen_k=paged.longest[1],
                    softmax_scale=paged.scale,
                    causal=paged.causal,
                    window_size=paged.window_size,
                    softcap=paged.softcap,
                    block_table=paged.block_table,
                    fa_version=version,
                    **scales,
                ),
                paged.expected(),
                TOLERANCE[dtype],
                outputs=[out],
            )


# FlashAttention 2 is compiled for 8.0 alone: from 9.0 on the driver compiles the PTX of every head
# size, type and mask for itself, up to half a minute each. So its cases are spread over processes.


@check("flash_attention.fa2")
def flash_attention_2(run):
    _flash(run, 2, (torch.float16,), COMMON)


@check("flash_attention.fa2_bf16")
def flash_attention_2_bf16(run):
    _flash(run, 2, (torch.bfloat16,), COMMON)


@check("flash_attention.fa2_sizes")
def flash_attention_2_sizes(run):
    """Other head sizes, and the soft cap on scores."""
    _flash(run, 2, (torch.float16,), (*SIZES, SOFTCAP))


@check("flash_attention.fa3")
def flash_attention_3(run):
    _flash(run, 3, (torch.float16, torch.bfloat16), (*COMMON, *SIZES))


@check("flash_attention.fa3_fp8")
def flash_attention_3_fp8(run):
    _flash(run, 3, (FP8,), (*COMMON, *SIZES))


@check("attention.triton")
def triton_attention(run):
    half = (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,)
    for dtype in half:
        for shape in (*COMMON[:3], SIZES[0]):
            paged = Paged(run, dtype, *shape)
            out = run.empty(*paged.query.shape, dtype=dtype)
            run.case(
                paged.label,
                lambda paged=paged, out=out: unified_attention(
                    q=paged.query,
                    k=paged.key_cache,
                    v=paged.value_cache,
                    out=out,
                    cu_seqlens_q=paged.query_starts,
                    max_seqlen_q=paged.longest[0],
                    seqused_k=paged.lengths,
                    max_seqlen_k=paged.longest[1],
                    softmax_scale=paged.scale,
                    causal=True,
                    window_size=paged.window_size,
                    block_table=paged.block_table,
                    softcap=paged.softcap,
                    q_descale=None,
                    k_descale=None,
                    v_descale=None,
                ),
                paged.expected(),
                TOLERANCE[dtype],
                outputs=[out],
            )
