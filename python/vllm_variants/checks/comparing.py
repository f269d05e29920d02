"""An operator's outputs against their references: relative errors, the worst row, digests."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from . import images


class Case(TypedDict):
    """One case as it stands in a check's JSON; times in milliseconds, None where there is no GPU.

    `error` and `worst_row` are of the output that is worst in units of its tolerance; infinity and NaN
    are text there, for JSON.
    """

    case: str
    first_ms: float | None
    ok: bool
    error: float | str
    worst_row: float | str
    tolerance: float
    misshapen: NotRequired[str]
    digest: str
    deterministic: bool
    median_ms: NotRequired[float]
    kernels: NotRequired[list[images.Kernel] | None]


class Summary(TypedDict, total=False):
    """A check's own figures in its JSON: of the case nearest to its tolerance, and over all cases."""

    error: float | str
    tolerance: float
    first_ms: float | None
    median_ms: float | None
    image: str | None


def tensors(returned: object) -> list[torch.Tensor]:
    """What an operator returned as a list of tensors, whatever else it returned left out."""
    if isinstance(returned, torch.Tensor):
        return [returned]
    assert isinstance(returned, Iterable), f"an operator returned {type(returned).__name__}"
    return [item for item in returned if isinstance(item, torch.Tensor)]


def first_output(
    operator: Callable[..., Sequence[torch.Tensor]], *arguments: object, **keywords: object
) -> torch.Tensor:
    """Call the operator, and return the first of its outputs alone."""
    return operator(*arguments, **keywords)[0]


def marked(picked: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows of `columns` zeros with ones where `picked` [rows, any] points; what is outside picks nothing."""
    ones = torch.zeros(picked.shape[0], columns + 1, device=picked.device)
    outside = (picked < 0) | (picked >= columns)
    return ones.scatter_(1, torch.where(outside, columns, picked).long(), 1.0)[:, :columns]


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a CPU tensor of any type."""
    data: bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def digest(outputs: Iterable[torch.Tensor]) -> str:
    """A short SHA-256 over the bytes of all outputs: equal digests are equal bits."""
    whole = hashlib.sha256()
    for tensor in outputs:
        whole.update(raw(tensor))
    return whole.hexdigest()[:32]


@dataclass(frozen=True)
class Deviation:
    """How far one output is from its reference; see `relative_error`."""

    error: float
    worst_row: float
    tolerance: float
    ok: bool

    @property
    def badness(self) -> tuple[bool, float]:
        """What sorts deviations: those outside their tolerance last, then by the share of it used."""
        if self.error == 0:
            return not self.ok, 0.0
        share = self.error / self.tolerance if self.tolerance else math.inf
        return not self.ok, math.inf if math.isnan(share) else share


@dataclass(frozen=True)
class Bounds:
    """What a case's outputs are held to.

    `tolerances`: the largest error of each output; `worst`: how many times that its worst row may differ.
    """

    references: Sequence[torch.Tensor]
    tolerances: Sequence[float]
    worst: float

    def farthest(self, outputs: Sequence[torch.Tensor]) -> Deviation:
        """The deviation of the output that is worst in units of its tolerance."""
        deviations = []
        for output, reference, tolerance in zip(outputs, self.references, self.tolerances, strict=False):
            error, peak = relative_error(output, reference)
            ok = error <= tolerance and peak <= self.worst * tolerance
            deviations.append(Deviation(error, peak, tolerance, ok))
        return max(deviations, key=lambda deviation: deviation.badness)

    def case(
        self, name: str, first_ms: float | None, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]
    ) -> Case:
        """Judge the outputs of a case's first call, which took `first_ms`; the second's show if they vary."""
        farthest, own = self.farthest(first), digest(first)
        case: Case = {
            "case": name,
            "first_ms": first_ms,
            "ok": farthest.ok,
            "error": _finite(farthest.error),
            "worst_row": _finite(farthest.worst_row),
            "tolerance": farthest.tolerance,
            "digest": own,
            "deterministic": digest(second) == own,
        }
        problems = map(misshapen, first, self.references)
        if problem := next(filter(None, problems), None):
            case["misshapen"] = problem
        return case


def _finite(value: float) -> float | str:
    """A number that JSON can carry: NaN and infinity as text."""
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def misshapen(output: torch.Tensor, reference: torch.Tensor) -> str | None:
    """What is wrong with the shape of an output, or None."""
    if tuple(output.shape) == tuple(reference.shape):
        return None
    return f"an output of shape {tuple(output.shape)} where {tuple(reference.shape)} was expected"


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(‖out−ref‖/‖ref‖, the worst row's ‖out−ref‖ over the mean row norm of ref), in float64.

    Wrong shapes and non-finite values where the reference is finite count as infinitely wrong.
    """
    if misshapen(output, reference):
        return math.inf, math.inf
    out, ref = output.double(), reference.double()
    same_infinite = torch.isinf(ref) & (out == ref)
    out, ref = out.masked_fill(same_infinite, 0), ref.masked_fill(same_infinite, 0)
    rows = ref.reshape(-1, ref.shape[-1]) if ref.dim() > 1 else ref.reshape(1, -1)
    difference = (out - ref).reshape(rows.shape)
    size = float(rows.norm())
    error = float(difference.norm())
    mean_row = float(rows.norm(dim=-1).mean())
    peak = float(difference.norm(dim=-1).max()) if difference.numel() else 0.0
    if math.isnan(error) or math.isnan(peak):
        return math.inf, math.inf
    return (error / size if size else error), (peak / mean_row if mean_row else peak)


def sentence(case: Case) -> str:
    """What is wrong with a case."""
    if "misshapen" in case:
        return f"{case['case']}: {case['misshapen']}"
    return (
        f"{case['case']}: error {case['error']} (worst row {case['worst_row']}),"
        f" and {case['tolerance']} is allowed"
    )


def summary(cases: Sequence[Case]) -> Summary:
    """The check's own figures: the case nearest to its tolerance, the first call, the median."""
    if not cases:
        return {}

    def badness(case: Case) -> tuple[bool, float]:
        error = case["error"]
        number = math.inf if isinstance(error, str) else error
        return Deviation(number, 0.0, case["tolerance"], case["ok"]).badness

    nearest = max(cases, key=badness)
    medians = [case["median_ms"] for case in cases if "median_ms" in case]
    return {
        "error": nearest["error"],
        "tolerance": nearest["tolerance"],
        "first_ms": cases[0]["first_ms"],
        "median_ms": round(statistics.median(medians), 4) if medians else None,
        "image": images.summary([kernel for case in cases for kernel in case.get("kernels") or ()]),
    }
