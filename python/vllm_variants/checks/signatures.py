"""What each check calls, and whether this vLLM takes the calls: `run.py --signatures CHECK=SCRIPT …`.

A dry run of the checks in one process (see `dry.py`), each case called once and not judged, in one number
type. Prints one JSON line a check:

    check       its name
    status      called   every call was taken
                refused  one was not, or something that it imports is not there
                absent   the check says that this vLLM has not got what it checks
                untried  without a card nothing of it can be tried
    reason      unless it was called
    operators   name → its schema, and the names of the arguments that calls gave
    callables   vLLM's Python functions that the check itself calls → their parameters
"""

from __future__ import annotations

from . import dry

# isort: split
import contextlib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

import torch

from . import checking, dtypes

# How torch and the checks say that there is no card to try.
_NO_CARD = ("no nvidia driver", "finds no cuda device", "'cpu' backend", "non-cuda devicetype")


class Calls:
    """The operators and functions that a check has called so far."""

    def __init__(self) -> None:
        self.operators: dict[str, dict[str, Any]] = {}
        self.callables: dict[str, list[str]] = {}

    def operator(self, name: str, schema: str, given: tuple[str, ...]) -> None:
        """Remember the call of an operator."""
        known = self.operators.setdefault(name, {"schema": schema, "arguments": []})
        known["arguments"] += [argument for argument in given if argument not in known["arguments"]]

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        """Remember a function of vLLM that a check calls; for `sys.setprofile`."""
        caller = frame.f_back
        if event != "call" or caller is None:
            return
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("vllm.") and str(caller.f_globals.get("__name__")).startswith(__package__):
            code = frame.f_code
            if not code.co_name.startswith("<") and not code.co_flags & inspect.CO_GENERATOR:
                count = code.co_argcount + code.co_kwonlyargcount
                self.callables[f"{module}.{code.co_qualname}"] = list(code.co_varnames[:count])


@contextlib.contextmanager
def _watched(calls: Calls) -> Iterator[None]:
    sys.setprofile(calls.profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def _tried(name: str, script: str, calls: Calls) -> tuple[str, str]:
    """(status, reason) of one check."""
    try:
        importlib.import_module(f".{script}", __package__)
        run = checking.Run(name, 0, {}, dry=True)
        with _watched(calls):
            checking.registered(name)(run)
    except checking.Unsupported as error:
        absent = str(error).startswith(checking.NOT_IN_THIS_RELEASE)
        return "absent" if absent else "untried", str(error)
    except checking.Skipped as error:
        return "untried", str(error)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:300]
        if any(phrase in text.lower() for phrase in _NO_CARD):
            return "untried", text
        traceback.print_exc()
        return "refused", f"{type(error).__name__}: {text}"
    return "called", ""


def _case(self: checking.Run, name: str, call: Any, reference: Any, tolerance: Any, **options: Any) -> None:
    """Call a case once, from the values that it works on in place, and judge nothing."""
    for tensor, initial in options.get("restore", ()):
        tensor.copy_(initial)
    call()


def _one_type(run: checking.Run) -> tuple[torch.dtype, ...]:
    return (torch.float16,)


def run(stream: TextIO, checks: Sequence[str]) -> None:
    """Try the checks, `NAME=SCRIPT` each, and write what became of each to `stream`."""
    calls = Calls()

    def called(name: str, schema: str, given: tuple[str, ...]) -> None:
        calls.operator(name, schema, given)

    dry.prepare(called)
    torch.set_num_threads(1)
    checking.Run.case = _case  # type: ignore[method-assign, assignment]  # nothing is judged here
    dtypes.sixteen_bit_types = dtypes.floating_types = _one_type
    for argument in checks:
        name, _, script = argument.partition("=")
        calls = Calls()
        status, reason = _tried(name, script, calls)
        record: dict[str, Any] = {"check": name, "status": status, **({"reason": reason} if reason else {})}
        record |= {"operators": calls.operators, "callables": calls.callables}
        stream.write(json.dumps(record) + "\n")
        stream.flush()
