"""Sampling: top-k and top-p masks, the draw itself, penalties, and the best logits of a row."""

import torch
from vllm import _custom_ops as ops
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p, random_sample

from . import references
from .checking import check


def _masked(logits, k, p):
    """Logits outside the k best, and outside the smallest set of probability ≥ p, become -inf."""
    ordered, index = references.exact(logits).sort(-1)
    least = ordered.gather(1, (logits.shape[1] - k.cpu().long()).unsqueeze(1))
    ordered = ordered.masked_fill(ordered < least, float("-inf"))
    outside = ordered.softmax(-1).cumsum(-1) <= 1 - references.exact(p).unsqueeze(1)
    outside[:, -1] = False
    ordered = ordered.masked_fill(outside, float("-inf"))
    return ordered.scatter(-1, index, ordered)


@check("sampling.top_k_top_p")
def top_k_top_p(run):
    for rows, vocabulary in ((1, 512), (16, 32000)):
        logits = run.normal(rows, vocabulary, scale=3.0)
        k = run.integers(1, 200, rows)
        p = run.uniform(rows, low=0.3, high=0.95)
        expected = _masked(logits, k, p)
        run.case(
            f"masks, {rows} rows of {vocabulary}",
            lambda x=logits, k=k, p=p: _finite_part(apply_top_k_top_p(x.clone(), k, p)),
            (torch.isfinite(expected).double(), expected.masked_fill(torch.isinf(expected), 0.0)),
            (1e-2, 1e-2),  # a token on the very edge of p may fall either way
            worst=100.0,
        )


def _finite_part(masked):
    return torch.isfinite(masked).float(), masked.masked_fill(torch.isinf(masked), 0.0)


@check("sampling.draw")
def draw(run):
    """How often each token is drawn, against its probability."""
    draws, vocabulary = 40000, 32
    probabilities = references.exact(run.normal(1, vocabulary)).softmax(-1)
    rows = probabilities.float().expand(draws, -1).contiguous().to(run.device)
    if not run.dry:
        torch.cuda.manual_seed(run.seed)
    # The expected deviation of a frequency is sqrt(p / draws): 3 % of the vector at these sizes.
    run.case(
        f"{draws} draws from {vocabulary} tokens",
        lambda: torch.bincount(random_sample(rows.clone(), {}), minlength=vocabulary) / draws,
        probabilities[0],
        4e-2,
    )


@check("sampling.penalties")
def penalties(run):
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
            lambda w=work, p=prompt, o=output, f=factor: ops.apply_repetition_penalties(w, p, o, f),
            torch.where(exact > 0, exact / strength, exact * strength),
            1e-6 if dtype is torch.float32 else 1e-3,
            outputs=[work],
            restore=[(work, logits)],
        )


@check("sampling.top_k_per_row")
def top_k_per_row(run):
    """The 2048 best logits of each row, as sparse attention picks its keys."""
    best, rows = 2048, 5
    for length in (1500, 12000):
        logits = run.normal(rows, length)
        first = torch.zeros(rows, dtype=torch.int32, device=run.device)
        ends = run.tensor([length - 7 * i for i in range(rows)], torch.int32)
        picked = run.empty(rows, best, dtype=torch.int32)

        def call(x=logits, first=first, ends=ends, picked=picked):
            shape = (rows, x.stride(0), x.stride(1))
            if hasattr(torch.ops._C, "top_k_per_row_prefill"):
                torch.ops._C.top_k_per_row_prefill(x, first, ends, picked, *shape, best)
            else:  # releases before 0.12
                torch.ops._C.top_k_per_row(x, first, ends, picked, *shape)
            return _chosen(x, picked)

        expected = torch.zeros(rows, length, dtype=torch.float64)
        for row, end in enumerate(ends.tolist()):
            chosen = references.exact(logits)[row, :end].topk(min(best, end)).indices
            expected[row, chosen] = 1.0
        run.case(f"{rows} rows of {length}", call, expected, 0.0)


def _chosen(logits, picked):
    """A row of ones at the picked positions; -1 means nothing was picked."""
    found = torch.zeros(logits.shape[0], logits.shape[1] + 1, device=logits.device)
    index = torch.where(picked < 0, logits.shape[1], picked).long()
    return found.scatter_(1, index, 1.0)[:, : logits.shape[1]]
