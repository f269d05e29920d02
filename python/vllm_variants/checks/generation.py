"""End to end: `LLM.generate` with a tiny model against a plain float64 forward of the same weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.engine.arg_utils import EngineArgs

from .checking import Run, Wrong, check
from .tiny_llama import CONFIG, NEW, PROMPTS, completion

_ENGINE: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "dtype": "float16",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "gpu_memory_utilization": 0.25,
    "kv_cache_memory_bytes": 64 << 20,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "seed": 0,
}


def _generate(run: Run, label: str, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        if run.dry:  # the options, and the model's configuration, as the engine takes them
            EngineArgs(model=folder, **_ENGINE, **options).create_engine_config()
            return
        task = completion(run)
        llm = LLM(model=folder, **_ENGINE, **options)
        replaced = llm.apply_model(lambda module: _replace(module, task.parameters))[0]
        if replaced != len(task.parameters):
            raise Wrong(f"the model took {replaced} of {len(task.parameters)} weights")
        sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, detokenize=False)

        def call() -> torch.Tensor:
            answers = llm.generate(
                [TokensPrompt(prompt_token_ids=prompt) for prompt in task.prompts], sampling, use_tqdm=False
            )
            return torch.tensor([list(answer.outputs[0].token_ids) for answer in answers])

        run.case(label, call, task.expected, 0.0, timed=False)
        run.fact(tokens=task.expected.tolist(), attention=_backend(llm))


def _replace(module: torch.nn.Module, parameters: Mapping[str, torch.Tensor]) -> int:
    """Give the model these parameters; returns how many it has."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)
    return len(own)


def _backend(llm: LLM) -> list[str]:
    """The names of the attention implementations that the model uses."""

    def names(module: torch.nn.Module) -> list[str]:
        layers = [layer for layer in module.modules() if hasattr(layer, "impl")]
        return sorted({type(layer.impl).__name__ for layer in layers})

    backends: list[str] = llm.apply_model(names)[0]
    return backends


@check("generate.eager")
def eager(run: Run) -> None:
    """Without CUDA graphs and without torch.compile."""
    _generate(run, f"{PROMPTS} prompts, {NEW} tokens each", enforce_eager=True)


@check("generate.cuda_graphs")
def cuda_graphs(run: Run) -> None:
    """With full CUDA graphs for decoding, without torch.compile."""
    _generate(
        run,
        f"{PROMPTS} prompts, {NEW} tokens each",
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 2, 4, 8],
        },
    )


@check("generate.compiled")
def compiled(run: Run) -> None:
    """vLLM's default: torch.compile with Inductor and Triton, and piecewise CUDA graphs."""
    _generate(
        run,
        f"{PROMPTS} prompts, {NEW} tokens each",
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8]},
    )
