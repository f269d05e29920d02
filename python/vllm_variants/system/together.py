"""Several files that change together or not at all."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vllm_variants.errors import resource_error
from vllm_variants.system import atomic
from vllm_variants.system.atomic import NewFile


def write(texts: Mapping[Path, str]) -> None:
    """Write every text aside, then rename all; when one of it fails, the old files stand again.

    Signals wait until the renames are through. Raises `ResourceError`.
    """
    old = {path: atomic.name_beside(path) for path in texts if path.exists()}
    try:
        with ExitStack() as stack:
            for path, kept in old.items():
                stack.callback(kept.unlink, missing_ok=True)
                os.link(path, kept)
            new = [stack.enter_context(_written_aside(path, text)) for path, text in texts.items()]
            with _signals_wait():
                _publish(new, old)
    except OSError as error:
        raise resource_error(error) from error


@contextmanager
def _written_aside(path: Path, text: str) -> Iterator[NewFile]:
    with atomic.new_file(path) as new:
        with os.fdopen(os.dup(new.descriptor), "w", encoding="utf-8") as file:
            file.write(text)
        os.fchmod(new.descriptor, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
        yield new


def _publish(files: Sequence[NewFile], old: Mapping[Path, Path]) -> None:
    """Publish all files; when that fails, put back what is kept in `old`, by target."""
    published: list[Path] = []
    try:
        for file in files:
            file.publish()
            published.append(file.target)
    except OSError:
        for path in published:
            with suppress(OSError):
                if path in old:
                    old[path].replace(path)
                else:
                    path.unlink()
        raise


@contextmanager
def _signals_wait() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
