"""CUTLASS's multi-head latent attention for 10.x: one query a sequence over a paged latent cache."""

from __future__ import annotations

from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require
from .dtypes import ACCUMULATED, FP8
from .paged_attention import padded, tables

RANK, ROPE, BLOCK = 512, 64, 128
HEADS = 128
"""The kernel computes so many heads; vLLM fills up those that a model has not."""
ANY_SPLITS = -1
"""The kernel divides the keys as it sees fit."""


def _supported(capability: int) -> bool:
    """vLLM's own answer for a compute capability (90 for 9.0)."""
    # The module takes memory of the card when it is imported.
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.mla.cutlass_mla import CutlassMLABackend

    answer: bool = CutlassMLABackend.supports_compute_capability(DeviceCapability(*divmod(capability, 10)))
    return answer


@check("cutlass_mla.decode")
def decode(run: Run) -> None:
    """The outputs for caches of fp16, bf16 and fp8."""
    require(run, _supported, "CUTLASS's latent attention is")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for dtype in (torch.float16, torch.bfloat16, FP8):
        drawn = torch.bfloat16 if dtype is FP8 else dtype
        for lengths in ((1, 128, 1030), (77, 4097)):
            rows, blocks = tables(run, lengths, BLOCK)
            query = run.normal(len(lengths), HEADS, RANK + ROPE, dtype=drawn).to(dtype)
            cache = run.normal(blocks, BLOCK, RANK + ROPE, dtype=drawn, scale=0.5).to(dtype)
            table, scale = padded(run, rows), (RANK + ROPE) ** -0.5
            size = ops.sm100_cutlass_mla_get_workspace_size(
                table.shape[1] * BLOCK, len(lengths), processors, num_kv_splits=ANY_SPLITS
            )
            out = run.empty(len(lengths), HEADS, RANK, dtype=drawn)
            sums = run.empty(len(lengths), HEADS, dtype=torch.float32)
            latent = [
                references.exact(cache)[row].flatten(0, 1)[:count].unsqueeze(1)
                for row, count in zip(rows, lengths, strict=True)
            ]
            expected = [
                references.attention(one.unsqueeze(0).float(), keys, keys[..., :RANK], scale=scale)[0]
                for one, keys in zip(query, latent, strict=True)
            ]
            run.case(
                f"{dtype} {HEADS} heads, keys {lengths}",
                partial(
                    ops.sm100_cutlass_mla_decode, out, sums, query[..., :RANK].contiguous(),
                    query[..., RANK:].contiguous(), cache, run.tensor(lengths, torch.int32), table,
                    run.empty(max(size, 1), dtype=torch.uint8), scale, ANY_SPLITS,
                ),
                torch.cat(expected),
                ACCUMULATED[dtype],
                outputs=[out],
            )  # fmt: skip
