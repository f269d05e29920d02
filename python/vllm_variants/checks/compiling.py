"""What compiles or records at run time: Triton kernels and CUDA graphs."""

import torch
import triton
import triton.language as tl
from vllm import _custom_ops as ops

from . import references
from .checking import HALF_PRECISION, Wrong, check


@triton.jit
def _add(x, y, out, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    tl.store(out + offsets, tl.load(x + offsets, inside) + tl.load(y + offsets, inside), inside)


@triton.jit
def _product(a, b, out, k, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, k, SIZE):
        left = tl.load(a + row * k + start + column)
        right = tl.load(b + (start + row) * SIZE + column)
        total += tl.dot(left, right)
    tl.store(out + row * SIZE + column, total)


@check("triton.compile")
def triton_compile(run):
    x, y = run.normal(100_003), run.normal(100_003)
    out = run.empty(100_003, dtype=torch.float32)
    if run.dry:
        return
    run.case(
        "element-wise",
        lambda: _add[(triton.cdiv(100_003, 1024),)](x, y, out, 100_003, BLOCK=1024),
        references.exact(x) + references.exact(y),
        1e-6,
        outputs=[out],
    )
    size, k = 64, 512
    for dtype in (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,):
        a, b = run.normal(size, k, dtype=dtype), run.normal(k, size, dtype=dtype)
        product = run.empty(size, size, dtype=torch.float32)
        run.case(
            f"product {dtype}",
            lambda a=a, b=b, o=product: _product[(1,)](a, b, o, k, SIZE=size),
            references.matmul(a, b),
            1e-4,
            outputs=[product],
        )


@check("graphs.capture")
def capture(run):
    """A small transformer block, recorded once and replayed on other inputs."""
    if run.dry:
        return
    dtype = torch.float16
    tokens, hidden, inner = 16, 512, 1024
    norm, up = run.normal(hidden, dtype=dtype), run.normal(2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
    down = run.normal(hidden, inner, dtype=dtype, scale=inner**-0.5)
    static = torch.zeros(tokens, hidden, dtype=dtype, device=run.device)

    def block(x):
        normed = torch.empty_like(x)
        ops.rms_norm(normed, x, norm, 1e-6)
        wide = normed @ up.t()
        gated = torch.empty(tokens, inner, dtype=dtype, device=run.device)
        torch.ops._C.silu_and_mul(gated, wide)
        return x + gated @ down.t()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = block(static)
    for turn in range(3):
        x = run.normal(tokens, hidden, dtype=dtype)
        exact = references.exact(x)
        gate, above = (references.rms_norm(x, norm, 1e-6) @ references.exact(up).T).chunk(2, -1)
        expected = exact + (references.silu(gate) * above) @ references.exact(down).T
        static.copy_(x)
        run.case(
            f"replay {turn + 1}",
            graph.replay,
            expected,
            2 * HALF_PRECISION[dtype],
            outputs=[out],
            image=False,
        )
        eager = block(x).cpu()
        graph.replay()
        if not torch.equal(eager, out.cpu()):
            raise Wrong(f"replay {turn + 1} differs from the same block without a graph")
