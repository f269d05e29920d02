"""A stand-in for `bin/vllm`: `serve` answers /health and completions as its behaviour says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROGRAM = """\
#!{python}
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

behaviour = json.loads(Path(__file__).with_name("server.json").read_text())
arguments = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(__file__).with_name("started.json").write_text(json.dumps({{
    "arguments": arguments, "pids": [os.getpid(), child.pid],
    "environment": {{key: os.environ.get(key) for key in {keys!r}}},
}}))
print(behaviour.get("prints", "INFO starting"), flush=True)
if "exits" in behaviour:
    child.kill()
    sys.exit(behaviour["exits"])
if behaviour.get("ignores SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour.get("hangs"):
    time.sleep(600)

class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, "")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions" or request["model"] != arguments[1]:
            return self.answer(404, "no such model")
        if "answers with" in behaviour:
            return self.answer(*behaviour["answers with"])
        words = behaviour["completions"][request["prompt"]].split()[: request["max_tokens"]]
        choices = json.dumps({{"choices": [{{"text": " ".join(words)}}]}})
        if not request["stream"]:
            return self.answer(200, choices)
        empty = json.dumps({{"choices": [{{"text": ""}}]}})
        chunks = [empty] if behaviour.get("streams nothing") else [empty, choices]
        self.answer(200, "".join(f"data: {{chunk}}\\n\\n" for chunk in (*chunks, "[DONE]")))

    def log_message(self, *_):
        pass

port = int(arguments[arguments.index("--port") + 1])
ThreadingHTTPServer((arguments[arguments.index("--host") + 1], port), Handler).serve_forever()
"""
KEYS = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "VLLM_ENABLE_V1_MULTIPROCESSING",
        "CUDA_DISABLE_PTX_JIT", "PYTHONDONTWRITEBYTECODE")  # fmt: skip


def make(folder: Path, **behaviour: Any) -> Path:
    """Write the program and return its path.

    `completions` maps prompts to texts; `exits`, `hangs`, `prints`, `ignores SIGTERM`, `answers with`
    (status, body) and `streams nothing` say how it misbehaves.
    """
    folder.mkdir(exist_ok=True)
    program = folder / "vllm"
    program.write_text(PROGRAM.format(python=sys.executable, keys=KEYS))
    program.chmod(0o755)
    (folder / "server.json").write_text(json.dumps(behaviour))
    return program


def started(folder: Path) -> dict[str, Any]:
    """What the program was started with: `arguments`, `environment`, and its own and its child's `pids`."""
    content: dict[str, Any] = json.loads((folder / "started.json").read_text())
    return content
