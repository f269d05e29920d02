"""Sampling: top-k and top-p masks, the draw itself, penalties, and the best logits of a row."""

from __future__ import annotations

from functools import partial

import torch
from vllm import _custom_ops as ops
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p, random_sample

from . import references
from .checking import Run, check
from .comparing import marked


def _masked(logits: torch.Tensor, k: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(p [rows], the logits where all but the best are -inf), both masks applied.

    Of each row the k best logits are left, and of these the `ranks` best: p is chosen between the
    probabilities that they and one fewer add up to, so that no rounding decides.
    """
    ordered, index = references.exact(logits).sort(-1)
    least = ordered.gather(1, (logits.shape[1] - k.cpu().long()).unsqueeze(1))
    ordered = ordered.masked_fill(ordered < least, float("-inf"))
    chances = ordered.softmax(-1)
    kept = torch.minimum(ranks.cpu().long(), k.cpu().long()).unsqueeze(1)
    last = logits.shape[1] - kept
    below = chances.cumsum(-1).gather(1, last) - chances.gather(1, last) / 2
    place = torch.arange(logits.shape[1]).expand_as(ordered)
    ordered = ordered.masked_fill(place < last, float("-inf"))
    return 1 - below[:, 0], ordered.scatter(-1, index, ordered)


@check("sampling.top_k_top_p")
def top_k_top_p(run: Run) -> None:
    """Which logits both masks leave, and that those are untouched."""
    for rows, vocabulary in ((1, 512), (16, 32000)):
        logits = run.normal(rows, vocabulary, scale=3.0)
        k = run.integers(5, 200, rows)
        p, expected = _masked(logits, k, run.integers(1, 60, rows))
        p = p.float().to(run.device)
        run.case(
            f"masks, {rows} rows of {vocabulary}",
            partial(_kept, logits, k, p),
            (torch.isfinite(expected).double(), expected.masked_fill(torch.isinf(expected), 0.0)),
            0.0,
        )


def _kept(logits: torch.Tensor, k: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 where vLLM's masks leave a logit and 0 elsewhere, the logits that are left)."""
    masked = apply_top_k_top_p(logits.clone(), k, p)
    return torch.isfinite(masked).float(), masked.masked_fill(torch.isinf(masked), 0.0)


@check("sampling.draw")
def draw(run: Run) -> None:
    """How often each token is drawn, against its probability."""
    draws, vocabulary = 100_000, 32
    probabilities = references.exact(run.normal(1, vocabulary)).softmax(-1)
    rows = probabilities.float().expand(draws, -1).contiguous().to(run.device)
    if not run.dry:
        torch.cuda.manual_seed(run.seed)
    # The expected deviation of a frequency is sqrt(p / draws): 1 % of the vector at these sizes.
    run.case(
        f"{draws} draws from {vocabulary} tokens",
        lambda: torch.bincount(random_sample(rows.clone(), {}), minlength=vocabulary) / draws,
        probabilities[0],
        3e-2,
    )


@check("sampling.penalties")
def penalties(run: Run) -> None:
    """In place: repeated tokens become less likely."""
    for dtype in (torch.float32, torch.float16):
        rows, vocabulary = 9, 4096
        logits = run.normal(rows, vocabulary, dtype=dtype, scale=2.0)
        prompt, output = (run.integers(0, 2, rows, vocabulary).bool() for _ in range(2))
        factor = run.uniform(rows, low=1.05, high=1.5).to(dtype)
        strength = torch.where((prompt | output).cpu(), references.exact(factor)[:, None], 1.0)
        exact = references.exact(logits)
        work = logits.clone()
        run.case(
            f"{dtype} {rows} rows of {vocabulary}",
            partial(ops.apply_repetition_penalties, work, prompt, output, factor),
            torch.where(exact > 0, exact / strength, exact * strength),
            1e-6 if dtype is torch.float32 else 1e-3,
            outputs=[work],
            restore=[(work, logits)],
        )


@check("sampling.top_k_per_row")
def top_k_per_row(run: Run) -> None:
    """The 2048 best logits of each row, as sparse attention picks its keys."""
    best, rows = 2048, 5
    for length in (1500, 12000):
        logits = run.normal(rows, length)
        first = torch.zeros(rows, dtype=torch.int32, device=run.device)
        ends = run.tensor([length - 7 * i for i in range(rows)], torch.int32)
        picked = run.empty(rows, best, dtype=torch.int32)

        def call(
            x: torch.Tensor = logits,
            first: torch.Tensor = first,
            ends: torch.Tensor = ends,
            picked: torch.Tensor = picked,
        ) -> torch.Tensor:
            shape = (rows, x.stride(0), x.stride(1))
            if hasattr(torch.ops._C, "top_k_per_row_prefill"):
                torch.ops._C.top_k_per_row_prefill(x, first, ends, picked, *shape, best)
            else:  # releases before 0.12
                torch.ops._C.top_k_per_row(x, first, ends, picked, *shape)
            return marked(picked, x.shape[1])

        expected = references.largest(logits, ends.tolist(), best)
        run.case(f"{rows} rows of {length}", call, expected, 0.0)
