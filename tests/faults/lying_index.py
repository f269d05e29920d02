"""A package index on 127.0.0.1 that tells the truth, or lies in every way that indexes do.

What each answer does wrong is drawn from a seed, the path and how often it was asked for: the same
seed lies the same way, whatever order uv asks in.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LIES = (
    "truncated",  # fewer bytes than announced
    "short",  # fewer bytes, announced as all there are
    "altered",  # the right length, a byte of it changed
    "another",  # another wheel under this name
    "error",  # 500
    "unavailable",  # 503
    "absent",  # 404
    "forbidden",  # 403
    "stalled",  # nothing for longer than the client waits
    "slow",  # a few bytes at a time
    "cut",  # the connection reset in the middle
    "garbage",  # no HTTP
    "empty",  # 200 and nothing
    "loop",  # a redirection to itself
)


@dataclass
class Behaviour:
    """What the index does: each answer is a lie of `lies` with probability `share`."""

    seed: str = ""
    share: float = 0.0
    lies: tuple[str, ...] = LIES
    stall: float = 4.0
    told: Counter[str] = field(default_factory=Counter)
    _asked: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str) -> str:
        """What to do with this request: `true` or one of LIES."""
        with self._lock:
            self._asked[path] += 1
            chance = random.Random(f"{self.seed}:{path}:{self._asked[path]}")
            lie = chance.choice(self.lies) if chance.random() < self.share else "true"
            if lie != "true":
                self.told[lie] += 1
            return lie


class Index:
    """Serves `wheels` as a simple repository (PEP 503) until the process ends; `behaviour` may be changed."""

    def __init__(self, wheels: Path) -> None:
        self.behaviour = Behaviour()
        self._files = {path.name: path.read_bytes() for path in wheels.glob("*.whl")}
        server = _Server(("127.0.0.1", 0), partial(_Answer, index=self))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/simple"

    def body(self, path: str) -> bytes | None:
        """The true answer to a request; None: there is no such page."""
        match path.strip("/").split("/"):
            case ["simple", project]:
                page = "".join(
                    f'<a href="/wheels/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>\n'
                    for name, data in sorted(self._files.items())
                    if name.startswith(f"{project}-")
                )
                return page.encode() or None
            case ["wheels", name]:
                return self._files.get(name)
        return None

    def other(self, path: str) -> bytes:
        """The body of another wheel than the one asked for."""
        return next(data for name, data in sorted(self._files.items()) if not path.endswith(name))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed cut their connections."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def __init__(self, *arguments: Any, index: Index) -> None:
        self._index = index
        super().__init__(*arguments)

    def do_GET(self) -> None:
        with suppress(OSError):
            self._answer()

    do_HEAD = do_GET

    def _answer(self) -> None:
        body, lie = self._index.body(self.path), self._index.behaviour.answer(self.path)
        if body is None:
            return self._send(404, b"")
        half = body[: len(body) // 2]
        match lie:
            case "true":
                self._send(200, body)
            case "truncated" | "cut":
                self._send(200, half, len(body))
                if lie == "cut":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case "short":
                self._send(200, half)
            case "altered":
                self._send(200, half[:-1] + bytes([half[-1] ^ 1]) + body[len(half) :])
            case "another":
                self._send(200, self._index.other(self.path))
            case "error" | "unavailable" | "absent" | "forbidden":
                status = {"error": 500, "unavailable": 503, "absent": 404, "forbidden": 403}[lie]
                self._send(status, b"<h1>no</h1>")
            case "stalled":
                time.sleep(self._index.behaviour.stall)
                self._send(200, body)
            case "slow":
                self._send(200, body, pieces=25)
            case "garbage":
                self.wfile.write(b"\x00\xff no protocol at all \r\n\r\n" * 9)
                self.close_connection = True
            case "empty":
                self._send(200, b"")
            case "loop":
                self.send_response(302)
                self.send_header("Location", self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
        return None

    def _send(self, status: int, body: bytes, announced: int | None = None, pieces: int = 1) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if "/simple/" in self.path else "application/zip")
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        if self.command == "HEAD":
            return
        step = -(-len(body) // pieces) or 1
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            if pieces > 1:
                self.wfile.flush()
                time.sleep(0.01)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""
