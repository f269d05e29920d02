"""Fuzz the reader, the audit and the slimmer, and judge every slimmed file.

    python bench/fuzz.py [--minutes N] [--executions N] [--processes P] [--seed S] [--kept FOLDER]
    python bench/fuzz.py --input FILE              examine one kept input again

Inputs are whole libraries and wheels of many shapes, spoilt ones (fields of headers, bytes, ranges),
and what slimming made of them. Inputs that show new behaviour are spoilt further; with Python 3.12 new
lines of code count as that too. Whatever the bytes: reading, auditing and slimming end in an answer or in
an error that names file and offset, within a second of CPU time and a gigabyte; what was slimmed is judged
by `tests/faults/oracle.py`; a whole library is never refused. Anything else is a defect: its input is kept.
Progress goes to stderr every 10 s, a JSON summary to stdout; exit 1 when there are defects.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from queue import Empty, Queue
from types import FrameType
from typing import Any

import checkout
import shapes
from oracle import Asked, Outcome, examine, examine_wheel

CPU_LIMIT = 1.0
"""Seconds of CPU time for one execution; the usual one takes a thousandth."""
MEMORY_LIMIT = 1 << 30
"""Bytes of address space for one process."""
SILENCE = 60.0
"""Seconds by the clock after which a process that reports nothing counts as hung."""
_CORPUS = 3000
_LARGEST = 1 << 18


class Hang(BaseException):
    """An execution took more than `CPU_LIMIT`."""


class Lines:
    """Lines of the project's code that ran, each counted once and then free of cost (Python 3.12)."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._package = str(checkout.ROOT / "python")
        monitoring = getattr(sys, "monitoring", None)
        if monitoring:
            self._disable = monitoring.DISABLE
            monitoring.use_tool_id(monitoring.COVERAGE_ID, "fuzz")
            monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, self._line)
            monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)

    def _line(self, code: Any, number: int) -> Any:
        if code.co_filename.startswith(self._package):
            self.seen.add(f"{code.co_filename[len(self._package) + 1 :]}:{number}")
        return self._disable


class Worker:
    """One process's fuzzing: its chance, its corpus, its counts."""

    def __init__(self, seed: str, folder: Path, kept: Path) -> None:
        self.chance = random.Random(seed)
        self.folder, self.kept = folder, kept
        self.lines = Lines()
        self.counts: Counter[str] = Counter()
        self.signatures: set[str] = set()
        self.corpus: list[tuple[bytes, bool]] = [(shapes.library(self.chance), True) for _ in range(40)]
        self.defects: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0

    def run_one(self) -> None:
        """Draw an input, examine it, and learn from it."""
        chance = self.chance
        members: list[bytes] = []
        kind = chance.random()
        if kind < 0.06:
            members = [shapes.library(chance) for _ in range(chance.randint(1, 2))]
            data, whole = shapes.wheel(members, chance), True
            if chance.random() < 0.7:
                data, whole = shapes.spoil(data, b"", chance), False
        elif kind < 0.36:
            data, whole = shapes.library(chance), True
        else:
            data, whole = chance.choice(self.corpus)
            if chance.random() < 0.93:
                data, whole = shapes.spoil(data, chance.choice(self.corpus)[0], chance), False
        asked = Asked.drawn(chance, whole)
        before = len(self.lines.seen)
        started = time.process_time()
        outcome = self._guarded(data, asked, members, wheel=kind < 0.06)
        self.slowest = max(self.slowest, time.process_time() - started)
        self.counts["executions"] += 1
        self.counts["whole" if whole else "spoilt"] += 1
        if outcome is None:
            return
        self.counts[outcome.kind] += 1
        fresh = outcome.signature not in self.signatures or len(self.lines.seen) > before
        self.signatures.add(outcome.signature)
        if fresh and kind >= 0.06:
            self._keep(data, whole)
        if outcome.new is not None and chance.random() < 0.02:
            self._keep(outcome.new, whole)

    def _keep(self, data: bytes, whole: bool) -> None:
        if len(data) > _LARGEST:
            return
        if len(self.corpus) < _CORPUS:
            self.corpus.append((data, whole))
        else:
            self.corpus[self.chance.randrange(_CORPUS)] = data, whole

    def _guarded(self, data: bytes, asked: Asked, members: list[bytes], wheel: bool) -> Outcome | None:
        """Examine within the limits; a defect is recorded with its input."""
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        try:
            if wheel:
                return examine_wheel(data, asked, self.folder, members)
            return examine(data, asked, self.folder)
        except (Exception, Hang) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._defect(error, data, asked, wheel)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        for path in self.folder.iterdir():
            path.unlink()
        return None

    def _defect(self, error: BaseException, data: bytes, asked: Asked, wheel: bool) -> None:
        kind = {MemoryError: "memory", Hang: "hang"}.get(type(error), "defect")
        self.counts[kind] += 1
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/vllm_variants/" in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the judge"
        words = "".join(letter for letter in str(error).partition("\n")[0] if not letter.isdigit())
        name = f"{type(error).__name__} in {place}: {words[-90:] if wheel else words[:90]}"
        known = self.defects.setdefault(name, {"count": 0, "what": f"{type(error).__name__}: {error}"[:400]})
        known["count"] += 1
        if known["count"] == 1:
            path = self.kept / f"{kind}-{os.getpid()}-{len(self.defects)}{'.whl' if wheel else '.so'}"
            path.write_bytes(data)
            path.with_suffix(".json").write_text(json.dumps(asked.as_dict()))
            text = "".join(traceback.format_exception(error))
            path.with_suffix(".txt").write_text(text)
            known["input"] = str(path)

    def report(self) -> dict[str, Any]:
        """What is known so far; sets are lists."""
        return {
            "counts": self.counts,
            "signatures": sorted(self.signatures),
            "lines": sorted(self.lines.seen),
            "defects": self.defects,
            "slowest": round(self.slowest, 3),
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "corpus": len(self.corpus),
        }


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {CPU_LIMIT} s of CPU time")


def _work(asked: argparse.Namespace) -> None:
    """Fuzz until the deadline or the number is reached; report as a line of JSON every second."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    signal.signal(signal.SIGPROF, _too_long)
    folder = asked.folder / f"worker-{asked.worker}"
    folder.mkdir()
    worker = Worker(f"{asked.seed}:{asked.worker}", folder, asked.kept)
    deadline = time.monotonic() + asked.minutes * 60 if asked.minutes is not None else float("inf")
    told = time.monotonic()
    while worker.counts["executions"] != asked.executions and (now := time.monotonic()) < deadline:
        worker.run_one()
        if now - told > 1:
            told = now
            print(json.dumps({"counts": worker.counts, "defects": len(worker.defects)}), flush=True)
    print(json.dumps({"end": True, **worker.report()}), flush=True)


def main() -> None:
    """Fuzz as the command line asks; exit 1 when something is wrong."""
    asked = _arguments()
    if asked.input:
        facts = json.loads(asked.input.with_suffix(".json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            again = examine_wheel if asked.input.suffix == ".whl" else examine
            more: tuple[Any, ...] = ((),) if asked.input.suffix == ".whl" else ()
            print(again(asked.input.read_bytes(), Asked.from_dict(facts), Path(folder), *more).signature)
        return
    if asked.worker is not None:
        _work(asked)
        return
    asked.kept = asked.kept or Path(tempfile.mkdtemp(prefix="vllm-variants-fuzz-kept-"))
    asked.kept.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="vllm-variants-fuzz-", dir=checkout.memory_folder()))
    try:
        summary = _fuzz(asked, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
        if not any(asked.kept.iterdir()):
            asked.kept.rmdir()
    print(json.dumps(summary, indent=1))
    sys.exit(1 if summary["defects"] else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--executions", type=int, help="stop after so many, of all processes together")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kept", type=Path, help="where inputs that show defects go")
    parser.add_argument("--input", type=Path, help="examine this kept input again")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.minutes is None and asked.executions is None:
        asked.minutes = 1.0
    return asked


class _Process:
    """A worker as seen from outside: its last words, and whether it fell silent."""

    def __init__(self, asked: argparse.Namespace, base: Path, number: int) -> None:
        command = [sys.executable, __file__, "--worker", str(number), "--seed", str(asked.seed)]
        command += ["--folder", str(base), "--kept", str(asked.kept)]
        if asked.minutes is not None:
            command += ["--minutes", str(asked.minutes)]
        if asked.executions is not None:
            share = asked.executions // asked.processes + (number < asked.executions % asked.processes)
            command += ["--executions", str(share)]
        self.folder = base / f"worker-{number}"
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: Queue[str | None] = Queue()
        self.last: dict[str, Any] = {"counts": {}, "defects": 0}
        self.heard = time.monotonic()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def take(self) -> bool:
        """Take what it reported; False once it has ended."""
        try:
            while (line := self.lines.get_nowait()) is not None:
                self.last, self.heard = json.loads(line), time.monotonic()
        except Empty:
            return True
        return False


def _fuzz(asked: argparse.Namespace, base: Path) -> dict[str, Any]:
    started = told = time.monotonic()
    running = [_Process(asked, base, number) for number in range(asked.processes)]
    everyone, lost = list(running), []
    try:
        while running:
            time.sleep(0.1)
            for each in list(running):
                silent = time.monotonic() - each.heard > SILENCE
                if each.take() and not silent:
                    continue
                running.remove(each)
                if silent or not each.last.get("end"):
                    lost.append(_lost(each, silent, asked.kept))
            if time.monotonic() - told > 10:
                told = time.monotonic()
                done = sum(each.last["counts"].get("executions", 0) for each in everyone)
                defects = sum(
                    each.last["defects"]
                    if isinstance(each.last["defects"], int)
                    else len(each.last["defects"])
                    for each in everyone
                )
                speed = done / (told - started)
                print(
                    f"{told - started:.0f} s: {done} executions, {speed:.0f}/s, {defects} defects",
                    file=sys.stderr,
                )
    finally:
        for each in everyone:
            each.process.kill()
            each.process.wait()
    return _merged(asked, [each.last for each in everyone], lost, time.monotonic() - started)


def _lost(worker: _Process, silent: bool, kept: Path) -> dict[str, Any]:
    """A process that hung in a system call, or died: a defect, with the input it had."""
    worker.process.kill()
    status = worker.process.wait()
    what = f"a process was silent for {SILENCE} s" if silent else f"a process died: exit status {status}"
    for path in worker.folder.glob("input.*"):
        shutil.copy(path, kept / f"lost-{worker.process.pid}{path.suffix}")
    return {"count": 1, "what": what, "input": str(kept / f"lost-{worker.process.pid}")}


def _merged(
    asked: argparse.Namespace, reports: list[dict[str, Any]], lost: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """One summary of all processes: counts are added, signatures and lines united."""
    counts: Counter[str] = Counter()
    defects: dict[str, dict[str, Any]] = {each["what"]: each for each in lost}
    for report in reports:
        counts.update(report["counts"])
        for name, defect in (report["defects"] if isinstance(report["defects"], dict) else {}).items():
            known = defects.setdefault(name, {**defect, "count": 0})
            known["count"] += defect["count"]
    executions = counts.pop("executions", 0)
    return {
        "seed": asked.seed,
        "processes": asked.processes,
        "seconds": round(seconds, 1),
        "executions": executions,
        "executions_per_second": round(executions / seconds),
        "outcomes": dict(sorted(counts.items())),
        "hangs": counts["hang"],
        "memory_exceeded": counts["memory"],
        "slowest_cpu_seconds": max((report.get("slowest", 0) for report in reports), default=0),
        "largest_process_bytes": max((report.get("memory", 0) for report in reports), default=0),
        "signatures": len({each for report in reports for each in report.get("signatures", ())}),
        "lines": len({each for report in reports for each in report.get("lines", ())}),
        "corpus": sum(report.get("corpus", 0) for report in reports),
        "defects": defects,
    }


if __name__ == "__main__":
    main()
