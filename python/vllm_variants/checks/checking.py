"""One check: its cases, their inputs, their error against a reference, their time, their image.

A check is a function that takes a `Run` and calls `run.case(...)` for every shape and dtype it
tries. A case is an operator call with fresh random inputs, whose outputs are poisoned before the
call (so an operator that writes nothing cannot pass) and compared with a reference computed in
float64 on the CPU.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch

from . import images
from .comparing import Bounds, Case, raw, sentence, summary, tensors
from .measuring import gpu_timed, median_ms, poison, poison_free_memory
from .native import NOT_NATIVE, needs_compiler

Status = Literal["ok", "failed", "unsupported", "skipped"]
CheckFunction = Callable[["Run"], None]
# Tensors that an operator works on in place, with the values they have before each call.
Restored = Sequence[tuple[torch.Tensor, torch.Tensor]]

_CHECKS: dict[str, CheckFunction] = {}

# How libraries say that this device is not served. What follows from it (a failure, or just what
# was expected of this SM) is not decided here: catalogue.toml knows.
_UNSUPPORTED = (
    "no kernel image is available",
    "no compiled",
    "not compiled",
    "not supported on",
    "unsupported device",
    "unsupported for compute capability",
    "requires compute capability",
    "is not supported for",
    "only supported on",
    "only support ampere or newer",
    "ada cards only supports",
    "expected version_num >=",
    "device kernel image is invalid",
)


NOT_IN_THIS_RELEASE = "not in this release"
"""How the reason of `Unsupported` begins where a vLLM has not got what is checked, on any card."""


class Unsupported(Exception):
    """vLLM itself says that this device cannot run it; the text is vLLM's reason."""


class Skipped(Exception):
    """The check cannot be tried on this machine, and the text says why."""


class Wrong(Exception):
    """A fact that should hold does not; the text is a sentence for a person."""


def check(name: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register the decorated function as the check `name`."""

    def register(function: CheckFunction) -> CheckFunction:
        _CHECKS[name] = function
        return function

    return register


def registered(name: str) -> CheckFunction:
    """The check's function; raises KeyError for a name that the imported scripts do not define."""
    return _CHECKS[name]


def require(run: Run, question: Callable[[int], bool], subject: str) -> None:
    """Raise Unsupported unless vLLM's own `question` (90 for 9.0) says yes; a dry run asks nothing.

    `subject` is the sentence's beginning: "fp8 is".
    """
    major, minor = run.capability
    if not run.dry and not question(major * 10 + minor):
        raise Unsupported(f"vLLM says that {subject} not supported on {major}.{minor}")


def moved(*places: str) -> ModuleType:
    """The first of these modules that this vLLM has: what several releases keep in different places.

    Raises `ModuleNotFoundError` where it has none of them; a module that fails to load raises what it will.
    """
    for place in places[:-1]:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not error.name or not f"{place}.".startswith(f"{error.name}."):
                raise
    return importlib.import_module(places[-1])


def require_operator(module: object, name: str, instead: str) -> None:
    """Raise Unsupported where this vLLM has no such operator; `instead` says what it runs in its place.

    Whether a release may be without it is not decided here: catalogue.toml knows.
    """
    if not hasattr(module, name):
        raise Unsupported(f"{NOT_IN_THIS_RELEASE}: {name}; {instead}")


@dataclass(frozen=True)
class PoisonedCall:
    """An operator's call that returns its outputs, in which NaN stood before it."""

    call: Callable[[], object]
    outputs: Sequence[torch.Tensor] | None  # what the call writes; None: it returns its outputs
    restored: Restored
    dry: bool

    def __call__(self) -> list[torch.Tensor]:
        """Restore what the operator changes in place, poison its other outputs, and call it."""
        for tensor, initial in self.restored:
            tensor.copy_(initial)
        in_place = {tensor.data_ptr() for tensor, _ in self.restored}
        for tensor in self.outputs or ():
            if tensor.data_ptr() not in in_place:
                poison(tensor)
        if self.outputs is None and not self.dry:
            poison_free_memory()
        returned = self.call()
        return tensors(returned if self.outputs is None else self.outputs)


@dataclass
class Run:
    """What a check works with: a seeded source of inputs, a device, and the cases so far.

    `facts` is what the result says about itself (see `imports.py`), `notes` what the check found out.
    In a `dry` run there is no GPU and operators compute nothing.
    """

    name: str
    seed: int
    facts: Mapping[str, Any]
    dry: bool
    cases: list[Case] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device("cpu" if self.dry else "cuda")
        # torch's CPU generator takes 32 bits of a seed: name and seed go into the same ones.
        own = zlib.crc32(f"{self.seed} {self.name}".encode())
        self.generator = torch.Generator().manual_seed(own)
        self._inputs = hashlib.sha256()

    @property
    def capability(self) -> tuple[int, int]:
        """The device's compute capability as (major, minor); the variant's own in a dry run."""
        if self.dry:
            major, minor = str(self.facts.get("capability", "9.0")).split(".")
            return int(major), int(minor)
        capability: tuple[int, int] = torch.cuda.get_device_capability()
        return capability

    @property
    def inputs_digest(self) -> str:
        """A short SHA-256 over all inputs so far: equal digests are equal inputs."""
        return self._inputs.hexdigest()[:32]

    # ── inputs: always made on the CPU, so the same seed gives the same bits on every card ──

    def count(self, tensor: torch.Tensor) -> None:
        """Count a CPU tensor among the inputs."""
        self._inputs.update(raw(tensor))

    def input(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a CPU tensor among the inputs, and return it on the device."""
        self.count(tensor)
        return tensor.to(self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        """A tensor of normally distributed values with this standard deviation."""
        return self.input((torch.randn(shape, generator=self.generator) * scale).to(dtype))

    def uniform(
        self, *shape: int, dtype: torch.dtype = torch.float32, low: float = 0.0, high: float = 1.0
    ) -> torch.Tensor:
        """A tensor of values in [low, high)."""
        return self.input((torch.rand(shape, generator=self.generator) * (high - low) + low).to(dtype))

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """A tensor of integers in [low, high)."""
        return self.input(torch.randint(low, high, shape, generator=self.generator).to(dtype))

    def permutation(self, count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """The integers below `count` in random order."""
        return self.input(torch.randperm(count, generator=self.generator).to(dtype))

    def tensor(self, values: object, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of these values."""
        return self.input(torch.tensor(values, dtype=dtype))

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """An output for `case(outputs=…)`, which poisons it before every call that is judged."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    # ── cases ──

    def case(
        self,
        name: str,
        call: Callable[[], object],
        reference: torch.Tensor | Sequence[torch.Tensor],
        tolerance: float | Sequence[float],
        *,
        outputs: Sequence[torch.Tensor] | None = None,
        restore: Restored = (),
        worst: float = 6.0,
        timed: bool = True,
        image: bool = True,
    ) -> Case:
        """Run `call`, compare its outputs with `reference`, time it, and record the case.

        `outputs`: the tensors that `call` writes; without them `call` returns its output(s).
        `reference`: one CPU tensor an output (float64; or integers for an exact comparison).
        `tolerance`: the largest ‖out−ref‖/‖ref‖, one number, or one an output.
        `restore`: tensors to set back before each judged call, for operators that work in place.
        `worst`: how many times the tolerance the worst row may differ, in units of the mean row.
        `image`: find out which images served the call; not for calls that cannot be captured.
        """
        references = [reference] if isinstance(reference, torch.Tensor) else list(reference)
        tolerances = [tolerance] * len(references) if isinstance(tolerance, (int, float)) else tolerance
        poisoned = PoisonedCall(call, outputs, restore, self.dry)
        first_ms, first = self._first(poisoned)
        if len(first) < len(references):
            raise Wrong(f"{name}: {len(first)} outputs where {len(references)} were expected")
        case = Bounds(references, tolerances, worst).case(name, first_ms, first, _copied(poisoned()))
        if timed and not self.dry:
            case["median_ms"] = median_ms(call)
            if image:
                case["kernels"] = images.kernels(call)
        self.cases.append(case)
        return case

    def _first(self, poisoned: PoisonedCall) -> tuple[float | None, list[torch.Tensor]]:
        """(milliseconds of the first call, its outputs on the CPU)."""
        if self.dry:
            return None, _copied(poisoned())
        torch.cuda.synchronize()
        milliseconds, outputs = gpu_timed(poisoned)
        torch.cuda.synchronize()
        return round(milliseconds, 4), _copied(outputs)

    def fact(self, **facts: object) -> None:
        """Record facts for the report (versions, paths, counts)."""
        self.notes |= facts


def _copied(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies on the CPU, so that later calls do not overwrite what is judged."""
    return [tensor.detach().to("cpu", copy=True) for tensor in outputs]


def outcome(
    name: str, function: CheckFunction, *, seed: int, facts: Mapping[str, Any], dry: bool
) -> dict[str, object]:
    """Run one check and say how it went, as the record that becomes its JSON line.

    `status` is a `Status`, `reason` stands there unless it is ok, `cases` are `comparing.Case`.
    """
    run = Run(name, seed, facts, dry)
    started = time.monotonic()
    status, reason = status_of(run, function)
    return {
        "check": name,
        "status": status,
        **({"reason": reason} if reason else {}),
        **summary(run.cases),
        "seconds": round(time.monotonic() - started, 3),
        "seed": seed,
        "inputs": run.inputs_digest,
        **({"facts": json.loads(json.dumps(run.notes, default=str))} if run.notes else {}),
        "cases": run.cases,
    }


def status_of(run: Run, function: CheckFunction, *, judged: bool = True) -> tuple[Status, str | None]:
    """Run the check; (its status, the reason unless it is ok).

    Unless its cases are `judged`, a wrong one among them is no failure yet.
    """
    try:
        function(run)
        if not run.dry:
            torch.cuda.synchronize()
    except Unsupported as error:
        return "unsupported", str(error)
    except Skipped as error:
        return "skipped", str(error)
    except Wrong as error:
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return _status_of_error(error)
    wrong = [case for case in run.cases if judged and not case["ok"]]
    return ("failed", "; ".join(sentence(case) for case in wrong[:4])) if wrong else ("ok", None)


def _status_of_error(error: Exception) -> tuple[Status, str]:
    """(status, reason) of an exception that nobody raised on purpose; CUDA's advice is left out."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    # Pydantic only counts in its first line: "1 validation error for ModelConfig".
    message = ": ".join(lines[:2]) if "validation error" in lines[0] else lines[0]
    if any(needs_compiler(str(link)) for link in _chain(error)):
        return "failed", NOT_NATIVE
    text = message.split(" Search for ")[0].split(" This could be because ")[0][:300]
    if isinstance(error, NotImplementedError) or any(phrase in message.lower() for phrase in _UNSUPPORTED):
        return "unsupported", text
    return "failed", f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
