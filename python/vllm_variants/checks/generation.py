"""End to end: `LLM.generate` with a tiny model against a plain float64 forward of the same weights.

The weights are random, so that tokens differ from each other as they do in a real model. Among
many random prompts those are used whose every next token leads by a clear margin in float64, so a
different token means a wrong result and not a rounding.
"""

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

from . import references
from .checking import Run, Wrong, check

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, SIZE, WORDS = 256, 512, 2, 4, 2, 64, 512
EPSILON, THETA = 1e-5, 10000.0
PROMPTS, CANDIDATES, LENGTHS, NEW = 6, 48, (3, 17, 40), 12
MARGIN = 0.02  # of the logits' standard deviation: ten times what half precision loses

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": SIZE,
    "vocab_size": WORDS,
    "max_position_embeddings": 512,
    "rms_norm_eps": EPSILON,
    "rope_theta": THETA,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The parameters of the model by vLLM's names, float16 on the CPU."""
    wide = (HEADS + 2 * KEY_HEADS) * SIZE
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.qkv_proj.weight": (wide, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, INNER),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    parameters = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            value = 1 + 0.1 * torch.randn(shape, generator=run.generator)
        else:
            scale = 1.0 if "embed" in name else 1.5 * shape[1] ** -0.5
            value = scale * torch.randn(shape, generator=run.generator)
        parameters[name] = value.to(torch.float16)
        run.input(parameters[name])
    return parameters


def _rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate [batch, positions, heads, size] pairs (i, i + size/2), in float64."""
    frequency = THETA ** -(torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    angle = positions[:, None].double() * frequency
    cosine, sine = angle.cos()[None, :, None], angle.sin()[None, :, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def logits(model: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The float64 logits [batch, length, words] of token ids [batch, length]."""
    length = tokens.shape[1]
    positions = torch.arange(length)
    hidden_mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = model["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        part = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in model.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = references.rms_norm(x, part["input_layernorm.weight"], EPSILON)
        q, k, v = (normed @ part["self_attn.qkv_proj.weight"].T).split(
            [HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], -1
        )
        q, k, v = (heads.unflatten(-1, (-1, SIZE)) for heads in (q, k, v))
        q, k = _rotated(q, positions), _rotated(k, positions)
        k, v = (heads.repeat_interleave(HEADS // KEY_HEADS, 2) for heads in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * SIZE**-0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden_mask, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(-2) @ part["self_attn.o_proj.weight"].T
        normed = references.rms_norm(x, part["post_attention_layernorm.weight"], EPSILON)
        gate, up = (normed @ part["mlp.gate_up_proj.weight"].T).chunk(2, -1)
        x = x + (references.silu(gate) * up) @ part["mlp.down_proj.weight"].T
    return references.rms_norm(x, model["model.norm.weight"], EPSILON) @ model["lm_head.weight"].T


def greedy(model: Mapping[str, torch.Tensor], prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the NEW next tokens of each prompt, the smallest lead of a chosen token, in deviations)."""
    tokens, leads = prompts, []
    for _ in range(NEW):
        last = logits(model, tokens)[:, -1]
        best = last.topk(2, -1)
        leads.append((best.values[:, 0] - best.values[:, 1]) / last.std(-1))
        tokens = torch.cat([tokens, best.indices[:, :1]], -1)
    return tokens[:, prompts.shape[1] :], torch.stack(leads).min(0).values


def clear_prompts(run: Run, model: Mapping[str, torch.Tensor]) -> tuple[list[list[int]], torch.Tensor]:
    """Prompts (lists of token ids) whose greedy continuation is beyond rounding, and what follows."""
    chosen: list[tuple[list[int], torch.Tensor]] = []
    for length in LENGTHS:
        prompts = torch.randint(3, WORDS, (CANDIDATES, length), generator=run.generator)
        following, lead = greedy(model, prompts)
        best = lead.argsort(descending=True)[: PROMPTS // len(LENGTHS)]
        if lead[best].min() < MARGIN:
            raise Wrong("no random prompt with a clear continuation was found; use another --seed")
        chosen += [(prompts[i].tolist(), following[i]) for i in best.tolist()]
    return [prompt for prompt, _ in chosen], torch.stack([following for _, following in chosen])


def _generate(run: Run, label: str, **options: Any) -> None:
    # The same model and prompts in every check of this file: their tokens are compared with one list.
    run.generator.manual_seed(run.seed)
    parameters = weights(run)
    model = {name: value.double() for name, value in parameters.items()}
    prompts, expected = clear_prompts(run, model)
    if run.dry:
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        llm = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="float16",
            max_model_len=256,
            max_num_seqs=8,
            gpu_memory_utilization=0.25,
            kv_cache_memory_bytes=64 << 20,
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
            **options,
        )
        replaced = llm.apply_model(lambda module: _replace(module, parameters))[0]
        if replaced != len(parameters):
            raise Wrong(f"the model took {replaced} of {len(parameters)} weights")
        sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, detokenize=False)

        def call() -> torch.Tensor:
            completions = llm.generate(
                [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling, use_tqdm=False
            )
            return torch.tensor([list(completion.outputs[0].token_ids) for completion in completions])

        run.case(label, call, expected, 0.0, timed=False)
        run.fact(tokens=expected.tolist(), attention=_backend(llm))


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
