"""What compiles or records at run time: Triton kernels and CUDA graphs.

Triton reads its kernels' annotations, so they have none but `constexpr`, and none becomes text here.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from vllm import _custom_ops as ops

from . import references
from .checking import Run, Wrong, check
from .dtypes import ROUNDING, sixteen_bit_types


@triton.jit  # type: ignore[untyped-decorator]  # Triton is not installed where mypy runs
def _add(x, y, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # see above
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    tl.store(out + offsets, tl.load(x + offsets, inside) + tl.load(y + offsets, inside), inside)


@triton.jit  # type: ignore[untyped-decorator]  # Triton is not installed where mypy runs
def _product(a, b, out, k, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # see above
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, k, SIZE):
        left = tl.load(a + row * k + start + column)
        right = tl.load(b + (start + row) * SIZE + column)
        total += tl.dot(left, right)
    tl.store(out + row * SIZE + column, total)


@check("triton.compile")
def triton_compile(run: Run) -> None:
    """An element-wise kernel and a matrix product, compiled by Triton as the check runs."""
    x, y = run.normal(100_003), run.normal(100_003)
    out = run.empty(100_003, dtype=torch.float32)
    if run.dry:
        return
    run.case(
        "element-wise",
        partial(_add[triton.cdiv(100003, 1024),], x, y, out, 100003, BLOCK=1024),
        references.exact(x) + references.exact(y),
        1e-6,
        outputs=[out],
    )
    size, k = 64, 512
    for dtype in sixteen_bit_types(run):
        a, b = run.normal(size, k, dtype=dtype), run.normal(k, size, dtype=dtype)
        product = run.empty(size, size, dtype=torch.float32)
        run.case(
            f"product {dtype}",
            partial(_product[1,], a, b, product, k, SIZE=size),
            references.matmul(a, b),
            1e-4,
            outputs=[product],
        )


class Block:
    """A small transformer block without attention: x + down(silu_and_mul(up(rms_norm(x))))."""

    def __init__(self, run: Run, dtype: torch.dtype, tokens: int, hidden: int, inner: int) -> None:
        self.norm = run.normal(hidden, dtype=dtype)
        self.up = run.normal(2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
        self.down = run.normal(hidden, inner, dtype=dtype, scale=inner**-0.5)
        self.gated = tokens, inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output for x [tokens, hidden], by vLLM's operators."""
        normed = torch.empty_like(x)
        ops.rms_norm(normed, x, self.norm, 1e-6)
        wide = normed @ self.up.t()
        gated = torch.empty(*self.gated, dtype=x.dtype, device=x.device)
        torch.ops._C.silu_and_mul(gated, wide)
        return x + gated @ self.down.t()

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """The same in float64."""
        normed = references.rms_norm(x, self.norm, 1e-6)
        gate, up = (normed @ references.exact(self.up).T).chunk(2, -1)
        return references.exact(x) + (references.silu(gate) * up) @ references.exact(self.down).T


def _recorded(block: Block, static: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """(a graph of the block's call on `static`, the tensor that a replay writes)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = block(static)
    return graph, out


@check("graphs.capture")
def capture(run: Run) -> None:
    """A small transformer block, recorded once and replayed on other inputs."""
    if run.dry:
        return
    dtype, tokens, hidden = torch.float16, 16, 512
    block = Block(run, dtype, tokens, hidden, inner=1024)
    static = torch.zeros(tokens, hidden, dtype=dtype, device=run.device)
    graph, out = _recorded(block, static)
    for turn in range(3):
        x = run.normal(tokens, hidden, dtype=dtype)
        static.copy_(x)
        run.case(
            f"replay {turn + 1}",
            graph.replay,
            block.expected(x),
            2 * ROUNDING[dtype],
            outputs=[out],
            image=False,
        )
        eager = block(x).cpu()
        graph.replay()
        if not torch.equal(eager, out.cpu()):
            raise Wrong(f"replay {turn + 1} differs from the same block without a graph")
