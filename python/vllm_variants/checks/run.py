"""Run one check, in the interpreter of a result: `result/bin/python run.py norm.rms_norm`.

Prints one JSON line with the outcome. With `--gated` it first prints `{"event": "ready"}` once the
libraries are imported, and touches the GPU only after a line arrives on standard input: so the
interpreters of the next checks can start while one check has the GPU to itself.

`--facts` is a JSON object with what the result says about itself (see `imports.py`); `--dry` calls
every operator through its registered schema with kernels that compute nothing, for machines
without a GPU: the call is proven, the result is not. `--signatures` does that for many checks at once and
prints what they call (see `signatures.py`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from types import ModuleType

HERE = Path(__file__).resolve().parent
PACKAGE = "vllm_variant_checks"


def _package() -> None:
    """Make this folder importable as a package, and keep its file names out of `sys.path`."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def _module(name: str) -> ModuleType:
    """A module of this folder. This one is run by its path, so it has no package to name them in."""
    return importlib.import_module(f"{PACKAGE}.{name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one check of this interpreter's vLLM.")
    parser.add_argument("check", help="its name, such as norm.rms_norm")
    parser.add_argument("--script", required=True, help="the module of this folder that defines it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", default="{}", help="JSON: what the result says about itself")
    parser.add_argument("--gated", action="store_true", help="wait for a line before touching the GPU")
    parser.add_argument("--dry", action="store_true", help="operators compute nothing: no GPU needed")
    return parser.parse_args()


def _emit(stream: TextIO, record: dict[str, object]) -> None:
    stream.write(json.dumps(record) + "\n")
    stream.flush()


def _imported(arguments: argparse.Namespace) -> ModuleType:
    """Import the check's script and return `checking`; whatever the libraries raise passes through."""
    if arguments.dry:
        _module("dry").prepare()
    checking = _module("checking")
    _module(arguments.script)
    checking.registered(arguments.check)
    return checking


def main() -> None:
    """Print the outcome on the real standard output; whatever libraries print goes to stderr."""
    signatures = sys.argv[1:2] == ["--signatures"]
    arguments = argparse.Namespace() if signatures else _arguments()
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM and its libraries print on stdout; that stream is for JSON lines
    _package()
    if signatures:
        _module("signatures").run(stream, sys.argv[2:])
        _end(stream)
    started = time.monotonic()
    try:
        checking = _imported(arguments)
    except Exception as error:
        traceback.print_exc()
        reason = f"its imports fail: {type(error).__name__}: {error}"
        _emit(stream, {"check": arguments.check, "status": "failed", "reason": reason})
        return
    if arguments.gated:
        _emit(stream, {"event": "ready", "seconds": round(time.monotonic() - started, 3)})
        if not sys.stdin.readline():
            return
    function = checking.registered(arguments.check)
    facts = json.loads(arguments.facts)
    _emit(
        stream,
        checking.outcome(arguments.check, function, seed=arguments.seed, facts=facts, dry=arguments.dry),
    )
    _end(stream)


def _end(stream: TextIO) -> NoReturn:
    """End the process: libraries that hang or crash while it shuts down are not what is being checked."""
    stream.close()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a process that a check spawned, to run one of its functions
    _package()
