"""The full log of every derivation that is built, one file each, kept after the build.

$XDG_STATE_HOME/vllm-variants/logs/20261123-220000-4711/
    sm90.log                   a variant's own build
    torch-2.9.1-8k3x0q1z.log   something it needs, with the start of its derivation's hash: sm80's is another
    nix.log                    Nix's own messages
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

from vllm_variants.errors import resource_error
from vllm_variants.nix.events import Event, LogLine, Message, Started
from vllm_variants.nix.progress import Build, store_hash
from vllm_variants.system import folders


def new_folder(parent: Path | None) -> Path:
    """A folder for one run's logs: `parent` itself where a person named it, else a new one by the clock."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = parent or folders.state() / "logs" / f"{stamp}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_error(error) from error
    return folder


@dataclass
class BuildLogs:
    """Writes logs into `folder`; `names` are the variants' short names by derivation."""

    folder: Path
    names: Mapping[str, str]
    paths: dict[str, Path] = field(default_factory=dict)
    _open: dict[str, TextIO] = field(default_factory=dict)

    def path(self, build: Build) -> Path:
        """The log of a build."""
        name = self.names.get(build.drv) or "-".join(filter(None, (build.name, store_hash(build.drv)[:8])))
        return self.folder / f"{name}.log"

    def take(self, event: Event, subject: object) -> None:
        """Write what one event says; `subject` is what it is about, as `Tracker.apply` returns it.

        A log that cannot be written (a full disk) ends, and the build goes on.
        """
        with suppress(OSError):
            match event:
                case Started() if isinstance(subject, Build):
                    self._start(subject)
                case LogLine() if isinstance(subject, Build) and subject.drv in self._open:
                    self._open[subject.drv].write(event.text + "\n")
                case Message():
                    self._write("", event.text)
        if isinstance(subject, Build) and subject.ended is not None:
            self._end(subject.drv)

    def close(self) -> None:
        """Close every file."""
        for drv in list(self._open):
            self._end(drv)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, build: Build) -> None:
        if build.drv in self._open:  # the same build, announced again by a remote machine
            return
        path = self.path(build)
        self.paths[build.drv] = path
        again = path.exists() and path.stat().st_size > 0
        handle = path.open("a", encoding="utf-8", buffering=1)
        self._open[build.drv] = handle
        if again:
            handle.write(f"\n── again, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC ──\n")

    def _write(self, key: str, text: str) -> None:
        if key not in self._open:
            self._open[key] = (self.folder / "nix.log").open("a", encoding="utf-8", buffering=1)
        self._open[key].write(text + "\n")

    def _end(self, drv: str) -> None:
        handle = self._open.pop(drv, None)
        if handle:
            with suppress(OSError):
                handle.close()
