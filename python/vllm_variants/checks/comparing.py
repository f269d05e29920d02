"""An operator's outputs against their references: relative errors, the worst row, digests."""

import hashlib
import statistics

import torch

from . import images


def tensors(returned):
    """What an operator returned as a list of tensors, whatever else it returned left out."""
    if isinstance(returned, torch.Tensor):
        return [returned]
    return [item for item in returned if isinstance(item, torch.Tensor)]


def raw(tensor):
    """The bytes of a CPU tensor of any type."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(outputs):
    """A short SHA-256 over the bytes of all outputs: equal digests are equal bits."""
    whole = hashlib.sha256()
    for tensor in outputs:
        whole.update(raw(tensor))
    return whole.hexdigest()[:32]


def compare(got, references, tolerances, worst):
    """The error of the worst output, in units of its tolerance, with the figures of that output.

    `misshapen` says so where an output has another shape than its reference.
    """
    found = []
    shapes = [said for pair in zip(got, references, strict=False) if (said := misshapen(*pair))]
    for output, reference, tolerance in zip(got, references, tolerances, strict=False):
        error, peak = relative_error(output, reference)
        good = error <= tolerance and peak <= worst * tolerance
        ratio = 0.0 if error == 0 else error / tolerance if tolerance else float("inf")
        found.append((good, ratio if ratio == ratio else float("inf"), error, peak, tolerance))
    good, _, error, peak, tolerance = max(found, key=lambda each: (not each[0], each[1]))
    figures = {"ok": good, "error": _finite(error), "worst_row": _finite(peak), "tolerance": tolerance}
    return figures | ({"misshapen": shapes[0]} if shapes else {})


def _finite(value):
    """A number that JSON can carry: NaN and infinity as text."""
    return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else str(value)


def misshapen(output, reference):
    """What is wrong with the shape of an output, or None."""
    if tuple(output.shape) == tuple(reference.shape):
        return None
    return f"an output of shape {tuple(output.shape)} where {tuple(reference.shape)} was expected"


def relative_error(output, reference):
    """(‖out−ref‖/‖ref‖, the worst row's ‖out−ref‖ over the mean row norm of ref), in float64.

    Wrong shapes and non-finite values where the reference is finite count as infinitely wrong.
    """
    if misshapen(output, reference):
        return float("inf"), float("inf")
    out, ref = output.double(), reference.double()
    same_infinite = torch.isinf(ref) & (out == ref)
    out, ref = out.masked_fill(same_infinite, 0), ref.masked_fill(same_infinite, 0)
    rows = ref.reshape(-1, ref.shape[-1]) if ref.dim() > 1 else ref.reshape(1, -1)
    difference = (out - ref).reshape(rows.shape)
    size = rows.norm().item()
    error = difference.norm().item()
    mean_row = rows.norm(dim=-1).mean().item()
    peak = difference.norm(dim=-1).max().item() if difference.numel() else 0.0
    if error != error or peak != peak:
        return float("inf"), float("inf")
    return (error / size if size else error), (peak / mean_row if mean_row else peak)


def sentence(case):
    """What is wrong with a case."""
    if "misshapen" in case:
        return f"{case['case']}: {case['misshapen']}"
    return (
        f"{case['case']}: error {case['error']} (worst row {case['worst_row']}),"
        f" and {case['tolerance']} is allowed"
    )


def summary(cases):
    """The check's own figures: the case nearest to its tolerance, the first call, the median."""
    if not cases:
        return {}

    def ratio(case):
        error = case["error"]
        if isinstance(error, str):
            return float("inf")
        return error / case["tolerance"] if case["tolerance"] else (float("inf") if error else 0.0)

    nearest = max(cases, key=lambda case: (not case["ok"], ratio(case)))
    medians = [case["median_ms"] for case in cases if case.get("median_ms") is not None]
    return {
        "error": nearest["error"],
        "tolerance": nearest["tolerance"],
        "first_ms": cases[0].get("first_ms"),
        "median_ms": round(statistics.median(medians), 4) if medians else None,
        "image": images.summary([kernel for case in cases for kernel in case.get("kernels") or ()]),
    }
