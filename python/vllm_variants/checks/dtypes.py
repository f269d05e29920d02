"""The number types that checks try, and how near to float64 an operator's outputs in them must come.

A tolerance is the largest ‖out − reference‖ / ‖reference‖ that passes.
"""

from __future__ import annotations

import torch

from .checking import Run

FP8 = torch.float8_e4m3fn

# One operation, its result rounded once.
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 1e-5}
# A float8 value near the edge between two neighbours may fall either way: 6 % or 12 % of it.
FP8_ROUNDING = 3e-2
FP8_STEP = 2**-3
# Long sums of products, with intermediate results in the tensor's type.
ACCUMULATED = {torch.float16: 2e-3, torch.bfloat16: 8e-3, torch.float32: 1e-4, FP8: 8e-2}


def sixteen_bit_types(run: Run) -> tuple[torch.dtype, ...]:
    """The 16-bit floating types of the card: bfloat16 arithmetic begins with 8.0."""
    return (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,)


def floating_types(run: Run) -> tuple[torch.dtype, ...]:
    """The 16-bit floating types of the card, and float32."""
    return (*sixteen_bit_types(run), torch.float32)
