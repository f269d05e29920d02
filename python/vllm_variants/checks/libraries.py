"""What torch does with NVIDIA's libraries: cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, cuRAND, NCCL."""

import torch

from . import references
from .checking import HALF_PRECISION, check
from .norms import dtypes


@check("torch.gemm")
def gemm(run):
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (*dtypes(run), torch.float64):
        for m, n, k in ((1, 1024, 512), (333, 512, 1024)):
            a, b = run.normal(m, k, dtype=dtype), run.normal(k, n, dtype=dtype)
            run.case(
                f"{dtype} {m}×{n}×{k}",
                lambda a=a, b=b: a @ b,
                references.matmul(a, b),
                HALF_PRECISION.get(dtype, 1e-12),
            )
    a, b = (run.integers(-127, 128, 64, 64, dtype=torch.int8) for _ in range(2))
    if not run.dry and run.capability >= (8, 0):
        run.case("int8 64×64×64", lambda: torch._int_mm(a, b.t()), references.matmul(a, b.t()), 0.0)


@check("torch.fp8_gemm")
def fp8_gemm(run):
    """cuBLASLt's fp8 product."""
    kind = torch.float8_e4m3fn
    one = run.tensor(1.0, torch.float32)
    for m, n, k in ((16, 256, 512), (256, 512, 1024)):
        a, b = run.normal(m, k).to(kind), run.normal(n, k).to(kind)
        run.case(
            f"{m}×{n}×{k}",
            lambda a=a, b=b: torch._scaled_mm(
                a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=False
            ),
            references.matmul(a, b.t()),
            HALF_PRECISION[torch.bfloat16],
        )


@check("torch.convolution")
def convolution(run):
    torch.backends.cudnn.allow_tf32 = False
    for dtype in dtypes(run):
        x, w = run.normal(4, 32, 33, 33, dtype=dtype), run.normal(48, 32, 3, 3, dtype=dtype, scale=0.1)
        run.case(
            f"2-d {dtype}",
            lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1),
            torch.nn.functional.conv2d(references.exact(x), references.exact(w), padding=1),
            HALF_PRECISION[dtype],
        )
    layer = torch.nn.LSTM(32, 64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(run.normal(*parameter.shape, scale=0.2))
        x = run.normal(9, 3, 32)
        expected = layer.double()(references.exact(x))[0]
        layer = layer.float().to(run.device)
        run.case("LSTM float32", lambda: layer(x)[0].detach(), expected, 1e-4)


@check("torch.fourier")
def fourier(run):
    for size in (64, 1000, 4096):
        x = run.normal(16, size)
        run.case(
            f"real, {size} points",
            lambda x=x: torch.view_as_real(torch.fft.rfft(x)),
            torch.view_as_real(torch.fft.rfft(references.exact(x))),
            1e-5,
        )


@check("torch.linear_algebra")
def linear_algebra(run):
    a = run.normal(4, 96, 96)
    positive = a @ a.transpose(-1, -2) + 96 * torch.eye(96, device=run.device)
    b = run.normal(4, 96, 8)
    exact = references.exact(positive)
    run.case("Cholesky", lambda: torch.linalg.cholesky(positive), torch.linalg.cholesky(exact), 1e-4)
    run.case(
        "solve", lambda: torch.linalg.solve(positive, b), torch.linalg.solve(exact, references.exact(b)), 1e-4
    )
    run.case(
        "singular values", lambda: torch.linalg.svdvals(a), torch.linalg.svdvals(references.exact(a)), 1e-4
    )


@check("torch.sparse")
def sparse(run):
    keep = run.uniform(256, 512) < 0.05
    a, b = torch.where(keep, run.normal(256, 512), 0.0), run.normal(512, 64)
    compressed = a.to_sparse_csr()
    run.case("CSR 256×512 by 512×64", lambda: compressed @ b, references.matmul(a, b), 1e-5)


@check("torch.random")
def random(run):
    """Moments of a million values from the card's generator; the same seed gives the same values."""
    count = 1 << 20
    moments = torch.tensor([0.5, 1 / 3, 0.0 + 1.0], dtype=torch.float64)

    def call():
        if not run.dry:
            torch.cuda.manual_seed(run.seed)
        flat, bell = torch.rand(count, device=run.device), torch.randn(count, device=run.device)
        return torch.stack([flat.mean(), flat.square().mean(), bell.square().mean()])

    run.case("uniform and normal", call, moments, 5e-3)


@check("torch.attention")
def attention(run):
    for dtype in dtypes(run)[:-1]:
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
            lambda q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
            expected,
            2 * HALF_PRECISION[dtype],
        )


@check("torch.nccl")
def nccl(run):
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
            lambda: distributed.all_reduce(work),
            references.exact(x),
            0.0,
            outputs=[work],
            restore=[(work, x)],
            image=False,
        )
        distributed.destroy_process_group()
