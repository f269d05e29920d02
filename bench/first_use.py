"""What a process waits for, and holds, when it first uses a result: several results in turns on one card.

    python bench/first_use.py RESULT RESULT … [--rounds 3] [--loading LAZY,EAGER] [--skip fa2] [--out FILE]

Each measurement is a process of its own, of the result's own Python, with an empty cache of the driver's:
`import torch`, the CUDA context, `import vllm`, the first and the second call of an operator of each larger
library, `LLM` of a tiny model without weights, and its first and second completion. Milliseconds by the
clock; `resident`, `anonymous` and `file` are MB of this process at its end, `peak` is its highest (VmHWM),
`on_device` what the driver says is taken on the card. A step that fails is told and does not end the rest.
The first round warms the page cache and is left out where there are more. Prints a JSON object: medians
for each result and way of loading modules.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = r"""
import json, os, sys, tempfile, time
skip = set(sys.argv[1].split(","))
steps = {}


def step(name, function):
    if name.split(":")[0] in skip:
        return None
    began = time.perf_counter()
    try:
        result = function()
    except Exception as error:
        steps[name] = f"{type(error).__name__}: {error}"[:200]
        return None
    steps[name] = (time.perf_counter() - began) * 1000
    return result


def calls(name, function):
    import torch

    def once():
        function()
        torch.cuda.synchronize()

    step(name + ": first", once)
    step(name + ": second", once)


def imported(name):
    return lambda: __import__(name, fromlist=["x"])


torch = step("import torch", imported("torch"))
step("context", lambda: (torch.empty(1, device="cuda"), torch.cuda.synchronize()))
with_vllm = "vllm" not in skip
if with_vllm:
    step("import vllm", imported("vllm"))
    step("import vllm's engine", lambda: imported("vllm.entrypoints.llm")())
    ops = imported("vllm._custom_ops")()
half = torch.randn(512, 512, device="cuda", dtype=torch.float16)
full = torch.randn(64, 64, device="cuda")
calls("cublas", lambda: half @ half)
picture, filters = half.view(1, 4, 256, 256), half[:4, :36].reshape(4, 4, 3, 3)
calls("cudnn", lambda: torch.nn.functional.conv2d(picture, filters))
calls("cusolver", lambda: torch.linalg.svd(full))
calls("torch sort", lambda: torch.sort(half.float()))


def vllm_operators():
    calls("vllm rms_norm", lambda: ops.rms_norm(torch.empty_like(half), half, half[0], 1e-6))
    weights, ids = torch.empty(8, 2, device="cuda"), torch.empty(8, 2, device="cuda", dtype=torch.int32)
    rows, gates = torch.empty_like(ids), torch.randn(8, 8, device="cuda")
    calls("vllm topk_softmax", lambda: ops.topk_softmax(weights, ids, rows, gates, False))
    for version in (2, 3):
        calls(f"fa{version}", lambda: attention(version)())


def attention(version):
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    one = torch.randn(128, 4, 128, device="cuda", dtype=torch.float16)
    starts = torch.tensor([0, 128], device="cuda", dtype=torch.int32)
    return lambda: flash_attn_varlen_func(
        one, one, one, max_seqlen_q=128, cu_seqlens_q=starts, max_seqlen_k=128, cu_seqlens_k=starts,
        causal=True, fa_version=version,
    )


def engine():
    from vllm import LLM

    folder = tempfile.mkdtemp()
    with open(folder + "/config.json", "w") as file:
        json.dump({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
            "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "vocab_size": 1024,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
        }, file)
    return LLM(
        model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="float16", enforce_eager=True,
        max_model_len=256, max_num_seqs=8, gpu_memory_utilization=0.25, kv_cache_memory_bytes=64 << 20,
        disable_log_stats=True,
    )


if with_vllm:
    vllm_operators()
llm = step("LLM", engine) if with_vllm else None
if llm is not None:
    from vllm import SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False)
    prompt = [TokensPrompt(prompt_token_ids=[1, 2, 3, 4])]
    calls("generate", lambda: llm.generate(prompt, sampling, use_tqdm=False))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fields = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
memory = {name: int(status[field].split()[0]) / 1000 for name, field in fields.items()}
free, total = torch.cuda.mem_get_info()
memory["on_device"] = (total - free) / 1e6
print("FIGURES", json.dumps({"ms": steps, "mb": memory, "gpu": torch.cuda.get_device_name()}))
"""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONNOUSERSITE": "1",
}  # fmt: skip

CACHES = ("HOME", "XDG_CACHE_HOME", "TMPDIR", "CUDA_CACHE_PATH", "VLLM_CACHE_ROOT")


def main() -> None:
    """Measure each result in turns, as the command line says."""
    asked = _arguments()
    figures: dict[str, list[dict[str, Any]]] = {}
    for number in range(asked.rounds):
        for loading in asked.loading.split(","):
            for result in asked.results:
                key = f"{result.name} {loading}"
                print(f"round {number + 1} of {asked.rounds}: {key}", file=sys.stderr, flush=True)
                figures.setdefault(key, []).append(measured(result, loading, asked.skip))
    document = {"rounds": asked.rounds, "gpu": next(iter(figures.values()))[0]["gpu"], "medians": {}}
    for key, rounds in figures.items():
        kept = rounds[1:] or rounds
        document["medians"][key] = {unit: medians([one[unit] for one in kept]) for unit in ("ms", "mb")}
    text = json.dumps(document, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loading", default="LAZY", help="CUDA_MODULE_LOADING, of LAZY and EAGER")
    parser.add_argument(
        "--skip", default="", help="steps to leave out, by name: fa2,LLM; vllm: all of vLLM's"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measured(result: Path, loading: str, skip: str) -> dict[str, Any]:
    """One process: `ms` by step, `mb` by kind of memory, `gpu`; ends with its words if it failed."""
    with tempfile.TemporaryDirectory() as aside:
        caches = dict.fromkeys(CACHES, aside)
        done = subprocess.run(
            [result.absolute() / "bin" / "python", "-c", PROGRAM, skip],
            env={**os.environ, **ENVIRONMENT, **caches, "CUDA_MODULE_LOADING": loading},
            capture_output=True, text=True, check=False, cwd=aside,
        )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not told:
        sys.exit(f"error: {result} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(told[-1].removeprefix("FIGURES "))
    return figures


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure; a step that failed keeps its words."""
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: _median([one[name] for one in rounds if name in one]) for name in names}


def _median(values: list[Any]) -> Any:
    failed = [value for value in values if isinstance(value, str)]
    return failed[0] if failed else round(statistics.median(values), 1)


if __name__ == "__main__":
    main()
