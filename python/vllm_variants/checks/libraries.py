"""What torch does with NVIDIA's libraries: cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, cuRAND, NCCL."""

from __future__ import annotations

from functools import partial

import torch

from . import references
from .checking import Run, check
from .dtypes import FP8, ROUNDING, floating_types, sixteen_bit_types


@check("torch.gemm")
def gemm(run: Run) -> None:
    """cuBLAS: products in every floating type, and int8."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (*floating_types(run), torch.float64):
        for m, n, k in ((1, 1024, 512), (333, 512, 1024)):
            a, b = run.normal(m, k, dtype=dtype), run.normal(k, n, dtype=dtype)
            run.case(
                f"{dtype} {m}×{n}×{k}",
                partial(torch.matmul, a, b),
                references.matmul(a, b),
                ROUNDING.get(dtype, 1e-12),
            )
    a, b = (run.integers(-127, 128, 64, 64, dtype=torch.int8) for _ in range(2))
    if not run.dry and run.capability >= (8, 0):
        run.case("int8 64×64×64", lambda: torch._int_mm(a, b.t()), references.matmul(a, b.t()), 0.0)


@check("torch.fp8_gemm")
def fp8_gemm(run: Run) -> None:
    """cuBLASLt's fp8 product."""
    one = run.tensor(1.0, torch.float32)
    for m, n, k in ((16, 256, 512), (256, 512, 1024)):
        a, b = run.normal(m, k).to(FP8), run.normal(n, k).to(FP8)
        run.case(
            f"{m}×{n}×{k}",
            partial(
                torch._scaled_mm,
                a,
                b.t(),
                scale_a=one,
                scale_b=one,
                out_dtype=torch.bfloat16,
                use_fast_accum=False,
            ),
            references.matmul(a, b.t()),
            ROUNDING[torch.bfloat16],
        )


@check("torch.convolution")
def convolution(run: Run) -> None:
    """cuDNN: a convolution, and an LSTM."""
    torch.backends.cudnn.allow_tf32 = False
    for dtype in floating_types(run):
        x, w = run.normal(4, 32, 33, 33, dtype=dtype), run.normal(48, 32, 3, 3, dtype=dtype, scale=0.1)
        run.case(
            f"2-d {dtype}",
            partial(torch.nn.functional.conv2d, x, w, padding=1),
            torch.nn.functional.conv2d(references.exact(x), references.exact(w), padding=1),
            ROUNDING[dtype],
        )
    layer = torch.nn.LSTM(32, 64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(run.normal(*parameter.shape, scale=0.2))
        x = run.normal(9, 3, 32)
        expected = layer.double()(references.exact(x))[0]
        layer = layer.float().to(run.device)
        run.case("LSTM float32", partial(layer(x)[0].detach), expected, 1e-4)


def _spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(torch.fft.rfft(x))


@check("torch.fourier")
def fourier(run: Run) -> None:
    """cuFFT: real transforms of three sizes."""
    for size in (64, 1000, 4096):
        x = run.normal(16, size)
        run.case(
            f"real, {size} points",
            partial(_spectrum, x),
            _spectrum(references.exact(x)),
            1e-5,
        )


@check("torch.linear_algebra")
def linear_algebra(run: Run) -> None:
    """cuSOLVER: Cholesky, solve, singular values."""
    a = run.normal(4, 96, 96)
    positive = a @ a.transpose(-1, -2) + 96 * torch.eye(96, device=run.device)
    b = run.normal(4, 96, 8)
    exact = references.exact(positive)
    run.case("Cholesky", partial(torch.linalg.cholesky, positive), torch.linalg.cholesky(exact), 1e-4)
    run.case(
        "solve",
        partial(torch.linalg.solve, positive, b),
        torch.linalg.solve(exact, references.exact(b)),
        1e-4,
    )
    run.case(
        "singular values", partial(torch.linalg.svdvals, a), torch.linalg.svdvals(references.exact(a)), 1e-4
    )


@check("torch.sparse")
def sparse(run: Run) -> None:
    """cuSPARSE: a CSR matrix times a dense one."""
    keep = run.uniform(256, 512) < 0.05
    a, b = torch.where(keep, run.normal(256, 512), 0.0), run.normal(512, 64)
    compressed = a.to_sparse_csr()
    run.case("CSR 256×512 by 512×64", lambda: compressed @ b, references.matmul(a, b), 1e-5)


@check("torch.random")
def random(run: Run) -> None:
    """Moments of a million values from the card's generator; the same seed gives the same values."""
    count = 1 << 20
    moments = torch.tensor([0.5, 1 / 3, 0.0 + 1.0], dtype=torch.float64)

    def call() -> torch.Tensor:
        if not run.dry:
            torch.cuda.manual_seed(run.seed)
        flat, bell = torch.rand(count, device=run.device), torch.randn(count, device=run.device)
        return torch.stack([flat.mean(), flat.square().mean(), bell.square().mean()])

    run.case("uniform and normal", call, moments, 5e-3)


@check("torch.attention")
def attention(run: Run) -> None:
    """torch's causal scaled dot-product attention."""
    for dtype in sixteen_bit_types(run):
        q, k, v = (run.normal(2, 8, 129, 64, dtype=dtype) for _ in range(3))
        expected = torch.stack(
            [
                references.attention(*(x[i].transpose(0, 1) for x in (q, k, v)), scale=0.125)[0].transpose(
                    0, 1
                )
                for i in range(2)
            ]
        )
        run.case(
            f"scaled dot product, causal, {dtype}",
            partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True),
            expected,
            2 * ROUNDING[dtype],
        )


@check("torch.nccl")
def nccl(run: Run) -> None:
    """An all-reduce of one rank: NCCL loads its device code and runs it."""
    import tempfile

    import torch.distributed as distributed

    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "gloo" if run.dry else "nccl", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        x = run.normal(1 << 16)
        work = x.clone()
        run.case(
            "one rank",
            partial(distributed.all_reduce, work),
            references.exact(x),
            0.0,
            outputs=[work],
            restore=[(work, x)],
            image=False,
        )
        distributed.destroy_process_group()
