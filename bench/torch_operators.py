"""Hold what the audit says of torch's features against torch itself, on a real GPU.

    PYTHON bench/torch_operators.py          # PYTHON: of an environment with torch, which may be anybody's

Audits the environment of this interpreter for the first GPU. Then, for each feature that torch uses, one
small operator runs in a process of its own, twice: with CUDA_DISABLE_PTX_JIT=1, and with an empty cache of
the driver's. What "runs" must work both times, what "waits" the second time, what is "missing" neither time.
Prints first calls in seconds; exit code 1 if anything differs. Needs lz4, toml and zstandard beside torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import will_it_run

OPERATORS = {
    "torch": "torch.randn(1 << 20, device=d).sort().values.sum()",
    "cublas": "torch.randn(512, 512, device=d, dtype=torch.bfloat16) @ torch.randn(512, 512, device=d,"
    " dtype=torch.bfloat16)",
    "cudnn": "torch.nn.functional.conv2d(torch.randn(8, 64, 56, 56, device=d, dtype=torch.half),"
    " torch.randn(64, 64, 3, 3, device=d, dtype=torch.half))",
    "cufft": "[torch.fft.fft(torch.randn(64, n, device=d)) for n in (1024, 1000, 289, 4099)]",
    "cusolver": "torch.linalg.eigh(torch.eye(256, device=d) * 3)",
    "cusparse": "torch.eye(256, device=d).to_sparse_csr() @ torch.randn(256, 64, device=d)",
    "cusparselt": "torch.nn.functional.linear(torch.randn(128, 128, device=d, dtype=torch.half),"
    " torch.sparse.to_sparse_semi_structured(torch.tensor([0, 0, 1, 1], device=d,"
    " dtype=torch.half).tile(128, 32)))",
    "torch-flash-attention": "attend(torch.nn.attention.SDPBackend.FLASH_ATTENTION)",
    "torch-efficient-attention": "attend(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION)",
    "nccl": "reduce()",
}
"""A feature's key in features.toml → an expression that uses it."""
_PROGRAM = """\
import time, torch, torch.nn.attention, os
d = torch.device("cuda")
torch.zeros(1, device=d); torch.cuda.synchronize()
def attend(backend):
    q = torch.randn(2, 8, 256, 64, device=d, dtype=torch.half)
    with torch.nn.attention.sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)
def reduce():
    import torch.distributed as dist
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29871")
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=torch.device("cuda:0"))
    x = torch.ones(1 << 16, device=d); dist.all_reduce(x); torch.cuda.synchronize()
    dist.destroy_process_group(); return x
start = time.perf_counter()
{expression}
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def tried(expression: str, jit: bool) -> tuple[float | None, str]:
    """Seconds of the first call, None where it failed, and the last line of what it then said."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "CUDA_CACHE_PATH": cache} | ({} if jit else {"CUDA_DISABLE_PTX_JIT": "1"})
        command = [sys.executable, "-c", _PROGRAM.replace("{expression}", expression)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["?"])[-1][:160]
    return float(done.stdout.split()[-1]), ""


def main() -> None:
    """Audit, try, compare."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    from vllm_variants.audit.judging import judge_features
    from vllm_variants.audit.targets.environments import read_python

    device = will_it_run.capability()
    found = read_python(Path(sys.executable), lambda name: None, fresh=True)
    print(f"{sys.executable}: {len(found.libraries)} libraries with device code, for {device.sm}")
    differ = 0
    for feature in judge_features(found.libraries, device):
        if (expression := OPERATORS.get(feature.use.feature.key)) is None:
            continue
        (bare, why), (seconds, failed) = tried(expression, jit=False), tried(expression, jit=True)
        state = str(feature.state)
        allowed = {
            "runs": (True, True),
            "waits": (None, True),
            "missing": (False, False),
            "unsupported": (None, None),
        }[state]
        seen = (bare is not None, seconds is not None)
        agree = all(a is None or a == s for a, s in zip(allowed, seen, strict=True))
        differ += not agree
        facts = {"without JIT": bare, "with": seconds, "why": why or failed}
        print(f"{'agree' if agree else 'DIFFER'} {feature.name}: {state} {json.dumps(facts)}", flush=True)
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
