"""One check: its cases, their inputs, their error against a reference, their time, their image.

A check is a function that takes a `Run` and calls `run.case(...)` for every shape and dtype it
tries. A case is an operator call with fresh random inputs, whose outputs are poisoned before the
call (so an operator that writes nothing cannot pass) and compared with a reference computed in
float64 on the CPU.
"""

import hashlib
import json
import time
import traceback
import zlib
from dataclasses import dataclass, field

import torch

from . import images
from .comparing import compare, digest, raw, sentence, summary, tensors
from .measuring import median_ms, poison, poison_free_memory

_CHECKS = {}

# How libraries say that this device is not served. What follows from it (a failure, or just what
# was expected of this SM) is not decided here: expectations.toml knows.
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

HALF_PRECISION = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 1e-5}


class Unsupported(Exception):
    """vLLM itself says that this device cannot run it; the text is vLLM's reason."""


class Skipped(Exception):
    """The check cannot be tried on this machine, and the text says why."""


class Wrong(Exception):
    """A fact that should hold does not; the text is a sentence for a person."""


def check(name):
    """Register the decorated function as the check `name`."""

    def register(function):
        _CHECKS[name] = function
        return function

    return register


def registered(name):
    """The check's function; raises KeyError for a name that the imported scripts do not define."""
    return _CHECKS[name]


@dataclass
class Run:
    """What a check works with: a seeded source of inputs, a device, and the cases so far."""

    name: str
    seed: int
    facts: dict
    dry: bool
    cases: list = field(default_factory=list)
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        self.device = torch.device("cpu" if self.dry else "cuda")
        # torch's CPU generator takes 32 bits of a seed: name and seed go into the same ones.
        own = zlib.crc32(f"{self.seed} {self.name}".encode())
        self.generator = torch.Generator().manual_seed(own)
        self._inputs = hashlib.sha256()

    @property
    def capability(self):
        """The device's compute capability as (major, minor); the variant's own in a dry run."""
        if self.dry:
            major, minor = str(self.facts.get("capability", "9.0")).split(".")
            return int(major), int(minor)
        return torch.cuda.get_device_capability()

    # ── inputs: always made on the CPU, so the same seed gives the same bits on every card ──

    def _input(self, tensor):
        self._inputs.update(raw(tensor))
        return tensor.to(self.device)

    def normal(self, *shape, dtype=torch.float32, scale=1.0):
        """A tensor of normally distributed values with this standard deviation."""
        return self._input((torch.randn(shape, generator=self.generator) * scale).to(dtype))

    def uniform(self, *shape, dtype=torch.float32, low=0.0, high=1.0):
        """A tensor of values in [low, high)."""
        return self._input((torch.rand(shape, generator=self.generator) * (high - low) + low).to(dtype))

    def integers(self, low, high, *shape, dtype=torch.int32):
        """A tensor of integers in [low, high)."""
        return self._input(torch.randint(low, high, shape, generator=self.generator).to(dtype))

    def permutation(self, count, dtype=torch.int32):
        """The integers below `count` in random order."""
        return self._input(torch.randperm(count, generator=self.generator).to(dtype))

    def tensor(self, values, dtype):
        """A tensor of these values."""
        return self._input(torch.tensor(values, dtype=dtype))

    def empty(self, *shape, dtype):
        """An output for `case(outputs=…)`, which poisons it before every call that is judged."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    # ── cases ──

    def case(
        self,
        name,
        call,
        reference,
        tolerance,
        *,
        outputs=None,
        restore=None,
        worst=6.0,
        timed=True,
        image=True,
    ):
        """Run `call`, compare its outputs with `reference`, time it, and record the case.

        `outputs`: the tensors that `call` writes; without them `call` returns its output(s).
        `reference`: one CPU tensor an output (float64; or integers for an exact comparison).
        `tolerance`: the largest ‖out−ref‖/‖ref‖, one number, or one an output.
        `restore`: tensors to set back before each judged call, for operators that work in place.
        `worst`: how many times the tolerance the worst row may differ, in units of the mean row.
        `image`: find out which images served the call; not for calls that cannot be captured.
        """
        references = list(reference) if isinstance(reference, (tuple, list)) else [reference]
        tolerances = tolerance if isinstance(tolerance, (tuple, list)) else [tolerance] * len(references)

        def judged():
            for tensor, initial in restore or ():
                tensor.copy_(initial)
            restored = {tensor.data_ptr() for tensor, _ in restore or ()}
            for tensor in outputs or ():
                if tensor.data_ptr() not in restored:
                    poison(tensor)
            if outputs is None and not self.dry:
                poison_free_memory()
            returned = call()
            return tensors(returned if outputs is None else outputs)

        first_ms, got = self._first(judged)
        record = {"case": name, "first_ms": first_ms}
        # On the CPU: the copy also keeps later calls from overwriting what is judged.
        got = [tensor.detach().to("cpu", copy=True) for tensor in got]
        if len(got) < len(references):
            raise Wrong(f"{name}: {len(got)} outputs where {len(references)} were expected")
        record |= compare(got, references, tolerances, worst)
        record["digest"] = digest(got)
        again = [tensor.detach().to("cpu", copy=True) for tensor in judged()]
        record["deterministic"] = digest(again) == record["digest"]
        if timed and not self.dry:
            record["median_ms"] = median_ms(call)
            if image:
                record["kernels"] = images.kernels(call)
        self.cases.append(record)
        return record

    def fact(self, **facts):
        """Record facts for the report (versions, paths, counts)."""
        self.notes |= facts

    def _first(self, judged):
        if self.dry:
            return None, judged()
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        got = judged()
        end.record()
        torch.cuda.synchronize()
        return round(start.elapsed_time(end), 4), got


def outcome(name, function, *, seed, facts, dry):
    """Run one check and say how it went, as the record that becomes its JSON line."""
    run = Run(name, seed, facts, dry)
    started = time.monotonic()
    status, reason = "ok", None
    try:
        function(run)
        if not dry:
            torch.cuda.synchronize()
        wrong = [case for case in run.cases if not case["ok"]]
        if wrong:
            status, reason = "failed", "; ".join(sentence(case) for case in wrong[:4])
    except Unsupported as error:
        status, reason = "unsupported", str(error)
    except Skipped as error:
        status, reason = "skipped", str(error)
    except Wrong as error:
        status, reason = "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        status, reason = _judge(error)
    return {
        "check": name,
        "status": status,
        **({"reason": reason} if reason else {}),
        **summary(run.cases),
        "seconds": round(time.monotonic() - started, 3),
        "seed": seed,
        "inputs": run._inputs.hexdigest()[:32],
        **({"facts": json.loads(json.dumps(run.notes, default=str))} if run.notes else {}),
        "cases": run.cases,
    }


def _judge(error):
    """(status, reason) of an exception that nobody raised on purpose; CUDA's advice is left out."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    # Pydantic only counts in its first line: "1 validation error for ModelConfig".
    said = ": ".join(lines[:2]) if "validation error" in lines[0] else lines[0]
    text = said.split(" Search for ")[0].split(" This could be because ")[0][:300]
    if isinstance(error, NotImplementedError) or any(phrase in said.lower() for phrase in _UNSUPPORTED):
        return "unsupported", text
    return "failed", f"{type(error).__name__}: {text}"
