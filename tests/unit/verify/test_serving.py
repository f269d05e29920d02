"""The check serve.openai around a stand-in server: the model that is served, and what counts as right."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import server_stand_in

torch = pytest.importorskip("torch", reason="the tiny model's float64 forward needs torch")

from vllm_variants.checks import checking, serving, tiny_llama  # noqa: E402


def run(name: str = "serve.openai") -> Any:
    return checking.Run(name, seed=11, facts={}, dry=True)


@pytest.fixture(scope="module")
def task() -> Any:
    return tiny_llama.completion(run())


def answers(task: Any) -> dict[str, str]:
    return {
        tiny_llama.as_text(prompt): tiny_llama.as_text(row.tolist())
        for prompt, row in zip(task.prompts, task.expected, strict=True)
    }


def outcome(tmp_path: Path, task: Any, **behaviour: Any) -> dict[str, Any]:
    program = server_stand_in.make(tmp_path / "bin", **{"completions": answers(task), **behaviour})

    def check(run: Any) -> None:
        serving.serve(run, program, task)

    found: dict[str, Any] = checking.outcome("serve.openai", check, seed=11, facts={}, dry=True)
    return found


def test_the_right_tokens_are_ok_with_the_times_to_them(tmp_path: Path, task: Any) -> None:
    found = outcome(tmp_path, task)
    assert found["status"] == "ok", found
    assert set(found["facts"]) == {"health_s", "first_token_s"}
    assert found["cases"][0]["case"] == "6 prompts at once, 12 tokens each"
    assert found["cases"][0]["deterministic"] is True


def test_one_wrong_token_is_a_failure(tmp_path: Path, task: Any) -> None:
    wrong = answers(task)
    prompt, text = next(iter(wrong.items()))
    wrong[prompt] = " ".join(["w3" if text.split()[0] != "w3" else "w4", *text.split()[1:]])
    found = outcome(tmp_path, task, completions=wrong)
    assert found["status"] == "failed"
    assert "and 0.0 is allowed" in found["reason"]


def test_too_few_tokens_are_shown(tmp_path: Path, task: Any) -> None:
    found = outcome(tmp_path, task, completions=dict.fromkeys(answers(task), "w3 w4"))
    assert found["reason"] == "a completion of 12 tokens is 'w3 w4'"


def test_code_that_waits_for_the_drivers_compiler_is_told_as_that(tmp_path: Path, task: Any) -> None:
    prints = "RuntimeError: CUDA error: PTX JIT compilation was disabled"
    found = outcome(tmp_path, task, exits=1, prints=prints)
    assert found["status"] == "failed"
    assert "the driver would compile it at first use, which --native forbids" in found["reason"]


def test_every_check_of_a_seed_has_the_same_model_and_prompts(task: Any) -> None:
    other = tiny_llama.completion(run("generate.eager"))
    assert other.prompts == task.prompts
    assert torch.equal(other.expected, task.expected)


def test_text_is_one_word_a_token() -> None:
    assert tiny_llama.as_text([0, 1, 2, 3, 511]) == "<unk> <s> </s> w3 w511"
    assert tiny_llama.as_tokens("<unk> <s> </s> w3 w511 w512") == [0, 1, 2, 3, 511, -1]


def test_the_served_folder_holds_every_weight_by_its_published_name(tmp_path: Path, task: Any) -> None:
    tiny_llama.write(tmp_path / "model", task.parameters)
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert (8 + length) % 8 == 0

    def weight(name: str) -> Any:
        start, end = header[name]["data_offsets"]
        data = bytearray(content[8 + length + start : 8 + length + end])
        return torch.frombuffer(data, dtype=torch.float16).reshape(header[name]["shape"])

    layer, fused = "model.layers.1.", task.parameters
    parts = [weight(f"{layer}self_attn.{part}_proj.weight") for part in "qkv"]
    assert torch.equal(torch.cat(parts), fused[f"{layer}self_attn.qkv_proj.weight"])
    parts = [weight(f"{layer}mlp.{part}_proj.weight") for part in ("gate", "up")]
    assert torch.equal(torch.cat(parts), fused[f"{layer}mlp.gate_up_proj.weight"])
    assert torch.equal(weight("lm_head.weight"), fused["lm_head.weight"])
    assert sum(end - start for start, end in (one["data_offsets"] for one in header.values())) == sum(
        2 * value.numel() for value in fused.values()
    )


def test_transformers_generates_the_same_tokens_from_the_served_folder(tmp_path: Path, task: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="it reads the folder as vLLM does")
    tiny_llama.write(tmp_path / "model", task.parameters)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for prompt, text in answers(task).items():
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(tiny_llama.NEW):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], -1)
        assert tokenizer.decode(ids[0]) == f"{prompt} {text}"
