"""A stand-in result: a small tree whose interpreter answers checks as it is told to, well or badly.

`bin/python` speaks the protocol of `checks/run.py` (a ready line, a line on stdin, an outcome)
and reads from `behaviour.json` what to do for each check.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

INTERPRETER = """\
#!{python}
import json, os, signal, sys, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
arguments = sys.argv[2:]
check = arguments[0]
given = dict(zip(arguments[1::2], arguments[2::2]))
behaviours = json.loads((root / "behaviour.json").read_text())
behaviour = dict(behaviours.get("*", {{"does": "ok"}}), **behaviours.get(check, {{}}))
does = behaviour["does"]
with (root / "seen.jsonl").open("a") as seen:
    seen.write(json.dumps({{
        "check": check, "seed": given["--seed"], "facts": json.loads(given["--facts"]),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(),
        "pythonpath": os.environ.get("PYTHONPATH"), "cache": os.environ["CUDA_CACHE_PATH"],
        "jit": os.environ.get("CUDA_DISABLE_PTX_JIT"),
    }}) + "\\n")

def emit(record):
    print(json.dumps(record), flush=True)

if does == "cannot load":
    emit({{"check": check, "status": "failed", "reason": "its imports fail: no torch"}})
    sys.exit()
if does == "dies loading":
    sys.exit("ImportError: libcudart.so.12")
emit({{"event": "ready", "seconds": 0.1}})
if not sys.stdin.readline():
    sys.exit()
began = time.monotonic()
time.sleep(behaviour.get("wait", 0))
with (root / "seen.jsonl").open("a") as seen:
    seen.write(json.dumps({{"check": check, "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                            "began": began, "ended": time.monotonic()}}) + "\\n")
if "loses" in behaviour:  # the last card of the recorded machine
    recorded = json.loads(Path(behaviour["loses"]).read_text())
    del recorded["machine"]["gpus"][-1]
    Path(behaviour["loses"]).write_text(json.dumps(recorded))
if does == "crash":
    print("about to touch what it should not", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if does == "hang":
    if os.fork() == 0:
        time.sleep(600)  # a child that would outlive its parent
    time.sleep(600)
if does == "closes its output":
    os.close(1)
    time.sleep(600)
if does == "prints blank lines":
    while True:
        print(flush=True)
if does == "prints one line":
    while True:
        sys.stdout.write("x" * 65536)
if does == "garbage":
    print("Segmentation fault? (no JSON here)", flush=True)
    sys.exit()
if does == "list":
    print("[1, 2]", flush=True)
    sys.exit()
if does == "silence":
    sys.exit(3)
if does == "another":
    emit({{"check": "somebody.else", "status": "ok"}})
    sys.exit()
case = {{"case": "float16 1×512", "ok": does == "ok", "error": 1e-4, "worst_row": 2e-4, "tolerance": 1e-3,
        "digest": "d" * 32, "deterministic": True, "first_ms": 12.0, "median_ms": 0.5}}
outcome = {{"check": check, "status": does, "error": 1e-4, "tolerance": 1e-3, "first_ms": 12.0,
           "median_ms": 0.5, "image": "sm_90", "seconds": 0.01, "seed": int(given["--seed"]),
           "inputs": "i" * 32, "cases": [dict(case, **behaviour.get("case", {{}}))]}}
if does != "ok":
    outcome = {{"check": check, "status": does, "seconds": 0.01, "cases": []}}
outcome.update(behaviour.get("outcome", {{}}))
emit(outcome)
if behaviour.get("lingers"):
    time.sleep(600)  # an interpreter that does not come down
"""

STACK = {"python": "3.12", "cuda": "12.9", "torch": "2.9.1", "driver": "560", "cutlass": ["4.2.1"]}


def make(
    root: Path, behaviour: dict[str, Any] | None = None, *, short: str = "sm90", release: str = "0.13.0"
) -> Path:
    """Write a stand-in result and return its folder.

    `behaviour` maps a check's name (`*`: any other) to `{"does": …}`: `ok`, `failed`, `unsupported`,
    `skipped`, or how to misbehave; `case` and `outcome` replace figures of the answer, `wait` delays it.
    """
    (root / "bin").mkdir(parents=True)
    (root / "share" / "vllm-variants").mkdir(parents=True)
    interpreter = root / "bin" / "python"
    interpreter.write_text(INTERPRETER.format(python=sys.executable))
    interpreter.chmod(0o755)
    tell(root, behaviour or {})
    digits = short.removeprefix("sm").removesuffix("-arm64")
    manifest = {
        "schema": 1,
        "variant": f"vllm-python312-cuda12_9-{short}",
        "short": short,
        "sm": short.removesuffix("-arm64"),
        "capability": f"{digits[:-1]}.{digits[-1]}",
        "system": "aarch64-linux" if short.endswith("-arm64") else "x86_64-linux",
        "release": release,
        "builder": "wheels",
        "stack": STACK,
        "packages": {"vllm": release},
    }
    (root / "share" / "vllm-variants" / "manifest.json").write_text(json.dumps(manifest))
    return root


def tell(root: Path, behaviour: dict[str, Any]) -> None:
    """Change what the stand-in does."""
    (root / "behaviour.json").write_text(json.dumps(behaviour))


def seen(root: Path) -> list[dict[str, Any]]:
    """What the interpreter was called with, in the order in which it started."""
    return [record for record in _records(root) if "began" not in record]


def turns(root: Path) -> list[dict[str, Any]]:
    """When each check had its turn: `check`, `devices`, and `began` and `ended` in seconds of one clock."""
    return [record for record in _records(root) if "began" in record]


def _records(root: Path) -> list[dict[str, Any]]:
    file = root / "seen.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
