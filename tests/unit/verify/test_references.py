"""The float64 references, and what a check makes of an operator, on the CPU."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the checks' own arithmetic needs torch")

from vllm_variants.checks import checking, comparing, images, measuring, references  # noqa: E402


@pytest.fixture
def run() -> Any:
    return checking.Run("some.check", seed=3, facts={"capability": "8.6"}, dry=True)


def test_attention_agrees_with_torch_causal_and_grouped(run: Any) -> None:
    q, k, v = run.normal(5, 6, 16), run.normal(9, 2, 16), run.normal(9, 2, 16)
    out, lse = references.attention(q, k, v, scale=0.25)
    heads = [each.double().transpose(0, 1) for each in (q, k, v)]
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=mask, scale=0.25, enable_gqa=True
    )
    assert torch.allclose(out, expected.transpose(0, 1))
    score = 0.25 * q[0, 0].double() @ k[:5, 0].double().T
    assert torch.isclose(lse[0, 0], score.logsumexp(-1))


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_hides_what_lies_further_left(run: Any, causal: bool) -> None:
    q, k, v = (run.normal(7, 1, 8) for _ in range(3))
    out, _ = references.attention(q, k, v, scale=1.0, causal=causal, window=2)
    last = 7 if not causal else 6
    seen = range(3, last) if causal else range(3, 7)
    scores = torch.stack([(q[5, 0] * k[j, 0]).sum().double() for j in seen]).softmax(0)
    expected = sum(weight * v[j, 0].double() for weight, j in zip(scores, seen, strict=True))
    assert torch.allclose(out[5, 0], expected, atol=1e-6)


@pytest.mark.parametrize("neox", [True, False])
def test_rotation_is_multiplication_by_a_unit_complex_number(run: Any, neox: bool) -> None:
    angle = 0.7
    cache = torch.tensor([[1.0, 1.0, 0.0, 0.0], [math.cos(angle), 1.0, math.sin(angle), 0.0]])
    x = run.normal(1, 1, 6)
    out = references.rotary(torch.tensor([1]), x, cache, neox)
    first, second = (0, 2) if neox else (0, 1)
    turned = complex(x[0, 0, first], x[0, 0, second]) * cmath.exp(1j * angle)
    assert out[0, 0, first].item() == pytest.approx(turned.real)
    assert out[0, 0, second].item() == pytest.approx(turned.imag)
    assert torch.equal(out[0, 0, 4:], x[0, 0, 4:].double())


def test_experts_agree_with_one_token_at_a_time(run: Any) -> None:
    x, w1, w2 = run.normal(4, 8), run.normal(3, 10, 8), run.normal(3, 8, 5)
    weights, ids = run.uniform(4, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    out = references.experts(x, w1, w2, weights, ids)
    for token in range(4):
        expected = torch.zeros(8, dtype=torch.float64)
        for slot in range(2):
            expert = ids[token, slot]
            hidden = w1[expert].double() @ x[token].double()
            gated = hidden[:5] * torch.sigmoid(hidden[:5]) * hidden[5:]
            expected += weights[token, slot].double() * (w2[expert].double() @ gated)
        assert torch.allclose(out[token], expected)


def test_the_scan_is_its_recurrence(run: Any) -> None:
    dim, n, length = 3, 2, 4
    u, delta, z = (run.normal(dim, length) for _ in range(3))
    a, b, c = -run.uniform(dim, n), run.normal(n, length), run.normal(n, length)
    d, bias, state = run.normal(dim), run.normal(dim), run.normal(dim, n)
    out, final = references.selective_scan(u, delta, a, b, c, d, z, bias, state)
    h = state.double().clone()
    for t in range(length):
        for i in range(dim):
            step = math.log1p(math.exp(delta[i, t].item() + bias[i].item()))
            for j in range(n):
                h[i, j] = math.exp(step * a[i, j].item()) * h[i, j] + step * b[j, t].item() * u[i, t].item()
            y = sum(h[i, j].item() * c[j, t].item() for j in range(n)) + d[i].item() * u[i, t].item()
            gate = z[i, t].item() / (1 + math.exp(-z[i, t].item()))
            assert out[i, t].item() == pytest.approx(y * gate, rel=1e-5)
    assert torch.allclose(final, h)


def test_fp8_saturates_and_int8_rounds_to_even() -> None:
    values = torch.tensor([1e6, -1e6, 1.06], dtype=torch.float64)
    assert references.fp8(values).tolist() == [448.0, -448.0, 1.0]
    assert references.int8(torch.tensor([0.5, 1.5, 300.0, -300.0])).tolist() == [0.0, 2.0, 127.0, -128.0]


def test_the_error_is_relative_and_finds_one_bad_row() -> None:
    reference = torch.ones(100, 64, dtype=torch.float64)
    output = reference.clone()
    output[17] = 1.5
    error, worst = comparing.relative_error(output.float(), reference)
    assert error == pytest.approx(0.05)
    assert worst == pytest.approx(0.5)
    assert comparing.relative_error(reference, reference) == (0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_infinitely_wrong(value: float) -> None:
    output = torch.ones(4, 4)
    output[1, 1] = value
    assert comparing.relative_error(output, torch.ones(4, 4)) == (math.inf, math.inf)
    assert comparing.relative_error(torch.ones(3), torch.ones(4)) == (math.inf, math.inf)


def test_another_shape_is_named(run: Any) -> None:
    case = run.case("a", lambda: torch.ones(1, 1), torch.ones(1), 1e-3, timed=False)
    assert not case["ok"]
    assert comparing.sentence(case) == "a: an output of shape (1, 1) where (1,) was expected"
    good = run.case("b", lambda: torch.ones(1), torch.ones(1), 1e-3, timed=False)
    assert good["ok"] and "misshapen" not in good


def test_a_count_of_errors_is_followed_by_the_first_of_them() -> None:
    def function(run: Any) -> None:
        raise ValueError("1 validation error for ModelConfig\n  Value error, no such model\n")

    found = checking.outcome("some.check", function, seed=1, facts={}, dry=True)
    assert found["reason"] == "ValueError: 1 validation error for ModelConfig: Value error, no such model"


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others() -> None:
    def made(seed: int) -> tuple[Any, str]:
        run = checking.Run("some.check", seed, {}, dry=True)
        return run.normal(64, dtype=torch.bfloat16), run.inputs_digest

    one, two, other = made(1), made(1), made(2)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert not torch.equal(one[0], other[0])
    assert one[1] != other[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_poison_is_nan_in_every_floating_type(dtype: Any) -> None:
    tensor = torch.zeros(3, 4).to(dtype)
    measuring.poison(tensor)
    assert torch.isnan(tensor.float()).all()


def outcome(function: Any) -> dict[str, Any]:
    return checking.outcome("some.check", function, seed=1, facts={}, dry=True)


def test_an_operator_that_writes_nothing_fails() -> None:
    def lazy(run: Any) -> None:
        x = run.normal(8)
        out = x.double()  # by luck the right answer is there already: the poison removes it
        run.case("a", lambda: None, x.double(), 1e-3, outputs=[out])

    found = outcome(lazy)
    assert found["status"] == "failed"
    assert found["reason"] == "a: error inf (worst row inf), and 0.001 is allowed"


def test_an_operator_in_place_gets_its_input_back_before_each_judged_call() -> None:
    def doubling(run: Any) -> None:
        x = run.normal(8)
        work = x.clone()
        run.case("a", lambda: work.mul_(2), 2 * x.double(), 1e-6, outputs=[work], restore=[(work, x)])

    found = outcome(doubling)
    assert found["status"] == "ok"
    assert found["cases"][0]["deterministic"] is True
    assert found["error"] < 1e-6


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "unsupported"),
        (NotImplementedError("No compiled cutlass_scaled_mm"), "unsupported"),
        (checking.Unsupported("vLLM says no"), "unsupported"),
        (checking.Skipped("one card only"), "skipped"),
        (checking.Wrong("2.8 is not 2.9"), "failed"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "failed"),
        (ValueError("bug"), "failed"),
    ],
)
def test_what_an_exception_counts_as(error: Exception, status: str) -> None:
    def raising(run: Any) -> None:
        raise error

    assert outcome(raising)["status"] == status


def test_code_that_waits_for_the_drivers_compiler_is_told_as_that_wherever_the_error_lies() -> None:
    disabled = RuntimeError("CUDA error: PTX JIT compilation was disabled\nSearch for it")

    def direct(run: Any) -> None:
        raise disabled

    def wrapped(run: Any) -> None:
        raise ValueError("the engine did not start") from disabled

    for check in (direct, wrapped):
        found = outcome(check)
        assert found["status"] == "failed"
        assert found["reason"].startswith("it needs code that the result has only as PTX")


def test_the_summary_is_the_case_nearest_to_its_tolerance() -> None:
    def two(run: Any) -> None:
        ones = torch.ones(4, dtype=torch.float64)
        run.case("loose", lambda: (1.01 * ones).float(), ones, 1.0)
        run.case("tight", lambda: (1.001 * ones).float(), ones, 2e-3)

    found = outcome(two)
    assert (found["status"], found["tolerance"]) == ("ok", 2e-3)
    assert found["error"] == pytest.approx(1e-3, rel=1e-3)


def test_images_are_named_by_what_they_were_compiled_for() -> None:
    cubin = {"name": "rms_norm", "ptx": 90, "binary": 90}
    jit = {"name": "flash_fwd", "ptx": 80, "binary": 90}
    fill = {"name": "_ZN2at6native_fill", "ptx": 70, "binary": 70}
    assert images.summary([cubin, jit, fill]) == "compute_80 → sm_90, sm_90"
    assert images.summary([fill]) == "sm_70"
    assert images.summary([]) is None
