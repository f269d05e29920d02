"""A small Llama with random weights: its forward in float64, and its folder as vLLM loads a model.

The weights are random, so that tokens differ from each other as they do in a real model. Among
many random prompts those are used whose every next token leads by a clear margin in float64, so a
different token means a wrong result and not a rounding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import references
from .checking import Run, Wrong
from .comparing import raw

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


@dataclass(frozen=True)
class Completion:
    """The model's weights by vLLM's names, prompts (token ids), and the NEW tokens that follow each."""

    parameters: Mapping[str, torch.Tensor]
    prompts: list[list[int]]
    expected: torch.Tensor


def completion(run: Run) -> Completion:
    """The model and its prompts for the run's seed: the same in every check, whatever its name."""
    run.generator.manual_seed(run.seed)
    parameters = weights(run)
    model = {name: value.double() for name, value in parameters.items()}
    return Completion(parameters, *clear_prompts(run, model))


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


# ── as files ──

# Ids and words of a Llama's special tokens; every other id is a word of its own.
SPECIAL = ("<unk>", "<s>", "</s>")


def as_text(tokens: Sequence[int]) -> str:
    """Token ids as the tokenizer's text: `w5 w17`."""
    return " ".join(SPECIAL[token] if token < len(SPECIAL) else f"w{token}" for token in tokens)


def as_tokens(words: str) -> list[int]:
    """The token ids of a text; -1 for what is no word."""
    ids = {as_text([token]): token for token in range(WORDS)}
    return [ids.get(word, -1) for word in words.split()]


def write(folder: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """Write the model as `vllm serve` takes it: config.json, model.safetensors and a tokenizer."""
    folder.mkdir()
    special = [
        {"id": token, "content": word, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for token, word in enumerate(SPECIAL)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {as_text([token]): token for token in range(WORDS)},
            "unk_token": SPECIAL[0],
        },
    }
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    for name, content in {
        "config.json": CONFIG,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(_safetensors(_published(parameters)))


def _published(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters by the names that models are published with: vLLM's fused ones in their parts."""
    published: dict[str, torch.Tensor] = {}
    for name, value in parameters.items():
        if "qkv_proj" in name:
            sizes = [HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE]
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), value.split(sizes), strict=True))
            published |= {name.replace("qkv_proj", part): rows for part, rows in parts.items()}
        elif "gate_up_proj" in name:
            parts = dict(zip(("gate_proj", "up_proj"), value.chunk(2), strict=True))
            published |= {name.replace("gate_up_proj", part): rows for part, rows in parts.items()}
        else:
            published[name] = value
    return published


def _safetensors(parameters: Mapping[str, torch.Tensor]) -> bytes:
    """float16 tensors in the safetensors format: the header's length (u64), the header (JSON), the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in parameters.items():
        start = len(data)
        data += raw(value)
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, len(data)]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the data is aligned
    return struct.pack("<Q", len(head)) + head + data
