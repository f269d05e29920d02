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

from .checking import Run, Skipped, Wrong, check
from .multicast import MULTICAST_OFF, ONE_HOST
from .ranks import cards
from .tiny_llama import CONFIG, NEW, PROMPTS, Completion, completion, write

# The model is tiny, and the card may be shared with other checks: not nine tenths of its memory.
SMALL: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 8,
    "gpu_memory_utilization": 0.25,
    "kv_cache_memory_bytes": 64 << 20,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "seed": 0,
}

_ENGINE: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float16", **SMALL}


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
        _complete(run, label, llm, task)
        run.fact(attention=_backend(llm))


def _complete(run: Run, label: str, llm: LLM, task: Completion) -> None:
    """One case: the model completes all prompts at once, with the tokens of a float64 forward."""
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, detokenize=False)

    def call() -> torch.Tensor:
        answers = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in task.prompts], sampling, use_tqdm=False
        )
        return torch.tensor([list(answer.outputs[0].token_ids) for answer in answers])

    run.case(label, call, task.expected, 0.0, timed=False)
    run.fact(tokens=task.expected.tolist())


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


GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}


@check("generate.tensor_parallel")
def tensor_parallel(run: Run) -> None:
    """The model's tensors spread over two cards, with CUDA graphs and vLLM's own choice of all-reduce."""
    _on_two_cards(run, compilation_config=GRAPHS)


@check("generate.tensor_parallel_nccl")
def tensor_parallel_nccl(run: Run) -> None:
    """The same without CUDA graphs, and with NCCL alone between the cards."""
    _on_two_cards(run, enforce_eager=True, disable_custom_all_reduce=True)


def _on_two_cards(run: Run, **options: Any) -> None:
    """Load the model from files, as each worker needs its part of them, and complete the prompts of one card.

    The seed decides model and prompts, so these are the tokens that the checks of one card must show too.
    """
    task = completion(run)
    if run.dry:
        return
    if cards() < 2:
        raise Skipped(f"it needs two cards, and this process sees {cards()}")
    os.environ.update(MULTICAST_OFF | ONE_HOST | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write(model, task.parameters)
        llm = LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float16",
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            **SMALL,
            **options,
        )
        _complete(run, f"2 cards, {PROMPTS} prompts, {NEW} tokens each", llm, task)
        run.fact(all_reduce=_all_reduces(llm))


def _all_reduces(llm: LLM) -> list[str]:
    """What each worker's all-reduce goes through, in its own words; why that is not known, if so."""
    try:
        answers: list[str] = llm.collective_rpc("apply_model", timeout=60.0, args=(_all_reduce,))
    except Exception as error:  # a fact for the report: the tokens are what is checked
        return [f"not known: {type(error).__name__}: {error}"[:200]]
    return answers


def _all_reduce(_: torch.nn.Module) -> str:
    """In a worker: vLLM's custom kernel, or NCCL."""
    from vllm.distributed.parallel_state import get_tp_group

    custom = getattr(get_tp_group().device_communicator, "ca_comm", None)
    return "NCCL" if custom is None or custom.disabled else "custom"
