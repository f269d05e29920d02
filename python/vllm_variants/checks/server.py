"""`vllm serve` as a person starts it: from nothing to answers over HTTP, and its end.

It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from .native import needs_compiler

REQUEST = 120.0  # seconds that one answer may take
ENDING = 30.0  # seconds that the server has to end by itself
_POLL = 0.05  # seconds
_EXCEPTION = re.compile(r"\b\w+(?:Error|Exception): .+")


class ServerError(Exception):
    """The server did not do what a server does; the text is a sentence for a person."""


def cold_environment(home: Path) -> dict[str, str]:
    """This process's environment with `home` as an empty home: no cache of an earlier start is found.

    Nothing is written into the result: Python keeps no bytecode of what it imports.
    """
    warm = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in (*warm, "VLLM_ENABLE_V1_MULTIPROCESSING") and not key.startswith("XDG_")
    }
    return kept | {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


class Server:
    """A running `vllm serve`: `program` serves the model in the folder `model`, with an empty `home`.

    A context manager: leaving it ends the server and everything that it started. Its output goes to this
    process's stderr then. Raises `ServerError` where it cannot be started.
    """

    def __init__(self, program: Path, model: Path, home: Path, options: Sequence[str] = ()) -> None:
        self._model, self._log, self._port = model, home / "server.log", _free_port()
        command: list[str | Path] = [
            program,
            "serve",
            model,
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            *options,
        ]
        self._started = time.monotonic()
        try:
            with self._log.open("wb") as log:
                # In this process's group: whatever ends that ends the server too.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=cold_environment(home),
                    cwd=home,
                )
        except OSError as error:
            raise ServerError(f"{program} does not start: {error.strerror}") from error

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_healthy(self, limit: float) -> float:
        """Seconds from the start until `/health` answers; `ServerError` after `limit`, or when it ended."""
        while (elapsed := time.monotonic() - self._started) < limit:
            if (status := self._process.poll()) is not None:
                raise ServerError(f"vllm serve ended with status {status}: {self.problem()}")
            with contextlib.suppress(OSError, http.client.HTTPException), self._response("/health") as answer:
                if answer.status == 200:
                    return time.monotonic() - self._started
            time.sleep(_POLL)
        raise ServerError(f"/health did not answer within {elapsed:.0f} seconds: {self.problem()}")

    def first_token(self, prompt: str) -> float:
        """Seconds from a request until the first text of its streamed completion comes."""
        started = time.monotonic()
        elapsed = None
        with self._completion(prompt, tokens=1, stream=True) as answer:
            while line := answer.readline():
                if line.startswith(b"data: {") and elapsed is None and _text(line[6:]):
                    elapsed = time.monotonic() - started
        if elapsed is None:
            raise ServerError(f"the stream ended without a token: {self.problem()}")
        return elapsed

    def complete(self, prompt: str, tokens: int) -> str:
        """The text of so many tokens after the prompt, the likeliest at each place."""
        with self._completion(prompt, tokens=tokens, stream=False) as answer:
            return _text(answer.read())

    @contextlib.contextmanager
    def _completion(self, prompt: str, *, tokens: int, stream: bool) -> Iterator[http.client.HTTPResponse]:
        request = {
            "model": str(self._model),
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": stream,
            # What vLLM knows beyond OpenAI's interface: every token is text, and none ends it.
            "ignore_eos": True,
            "skip_special_tokens": False,
        }
        try:
            with self._response("/v1/completions", request) as answer:
                if answer.status != 200:
                    body = answer.read(200).decode(errors="replace")
                    raise ServerError(f"/v1/completions answered {answer.status}: {body}")
                yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {error}; the server: {self.problem()}"
            raise ServerError(f"/v1/completions gave no answer: {problem}") from error

    @contextlib.contextmanager
    def _response(
        self, path: str, content: Mapping[str, object] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST)
        with contextlib.closing(connection):
            if content is None:
                connection.request("GET", path)
            else:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(content), headers)
            yield connection.getresponse()

    def problem(self) -> str:
        """The exception that the server's output names as the cause, else its last line."""
        lines = self._log.read_text(errors="replace").splitlines()
        exceptions = [match[0] for line in lines if (match := _EXCEPTION.search(line))]
        # vLLM's processes fail one after the other; the first of them knows why, unless CUDA says it.
        causes = [*filter(needs_compiler, lines), *exceptions]
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return (causes[0] if causes else last)[:300]

    def stop(self) -> float:
        """End the server, and what it started; the seconds that this took."""
        began = time.monotonic()
        started = _descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING)
        for pid in (self._process.pid, *started):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == os.getpgrp():  # it has not ended, and nobody else got its number
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        sys.stderr.write(self._log.read_text(errors="replace"))
        return time.monotonic() - began


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _text(body: bytes) -> str:
    """The text of a completion's JSON; `ServerError` for anything else."""
    try:
        text: str = json.loads(body)["choices"][0]["text"]
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"/v1/completions answered with no completion: {body[:200]!r}") from error
    return text


def _descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        started = children.get(waiting.pop(), [])
        found += started
        waiting += started
    return found
