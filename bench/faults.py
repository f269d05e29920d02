"""Disturb the real command line in every way that machines do, and check what must hold after each.

    python bench/faults.py [--minutes N] [--rounds N] [--seed S] [--processes P] [--kinds A,B]
    python bench/faults.py --seed S --kinds A --round N     play one round again, and tell all of it
    python bench/faults.py --each N                         N rounds of each kind (the suite's short run)

Rounds are drawn from the seed and their number (the moments of some signals depend on the machine).
Each broken invariant is printed with the command that repeats its round and the folder that was kept.
At the end: faults by kind, broken invariants, seconds. docs/faults.md says what is done and checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import checkout
from kinds import KINDS
from playing import Player
from worlds import Template, make_template


def main() -> None:
    """Play what the command line asks for; exit 1 when an invariant is broken."""
    asked = _arguments()
    if asked.worker is not None:
        _work(asked)
        return
    parent = asked.folder or checkout.memory_folder()
    base = Path(tempfile.mkdtemp(prefix="vllm-variants-faults-", dir=parent))
    try:
        template = asked.template or base / "template"
        if not (template / "template.json").exists():
            template.mkdir(parents=True, exist_ok=True)
            make_template(template)
        broken = _play(asked, base, template)
    finally:
        for path in base.iterdir():
            if path.name != "kept":
                shutil.rmtree(path, ignore_errors=True)
        if not any(base.iterdir()):
            base.rmdir()
    sys.exit(1 if broken else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--rounds", type=int, help="stop after so many rounds")
    parser.add_argument("--each", type=int, help="play so many rounds of each kind, in turn")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kinds", default="", help=f"of: {', '.join(KINDS)}")
    parser.add_argument("--round", type=int, help="play this round alone")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    parser.add_argument(
        "--folder", type=Path, help="where to work (default: /dev/shm, or the temporary folder)"
    )
    parser.add_argument("--template", type=Path, help="a folder that keeps what is made once")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(filter(None, asked.kinds.split(","))) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    if asked.each is not None:
        asked.rounds = asked.each * len(asked.kinds.split(",") if asked.kinds else KINDS)
    if asked.round is None and asked.minutes is None and asked.rounds is None:
        asked.minutes = 1.0
    if asked.round is not None:
        asked.processes, asked.rounds = 1, 1
    return asked


def _work(asked: argparse.Namespace) -> None:
    """Play every `processes`-th round and write each record as a line of JSON, until stopped or done."""
    folder = asked.folder / f"worker-{asked.worker}"
    folder.mkdir()
    kinds = list(filter(None, asked.kinds.split(",")))
    template = Template.load(asked.template)
    player = Player(template, folder, asked.seed, kinds, in_turn=asked.each is not None)
    deadline = time.monotonic() + asked.minutes * 60 if asked.minutes is not None else float("inf")
    number = asked.round if asked.round is not None else asked.worker
    while time.monotonic() < deadline and (
        asked.round is not None or asked.rounds is None or number < asked.rounds
    ):
        print(json.dumps(player.play(number).as_dict()), flush=True)
        if asked.round is not None:
            return
        number += asked.processes


def _play(asked: argparse.Namespace, base: Path, template: Path) -> int:
    started = last = time.monotonic()
    faults: Counter[str] = Counter()
    kinds: dict[str, dict[str, float]] = {}
    skipped: Counter[str] = Counter()
    broken: list[dict[str, Any]] = []
    for record in _records(asked, base, template):
        faults.update(record["faults"])
        facts = kinds.setdefault(record["kind"], {"rounds": 0, "faults": 0, "broken": 0, "seconds": 0.0})
        facts["rounds"] += 1
        facts["faults"] += sum(record["faults"].values())
        facts["broken"] += len(record["broken"])
        facts["seconds"] = round(facts["seconds"] + record["seconds"], 1)
        if record["skipped"]:
            skipped[f"{record['kind']}: {record['skipped']}"] += 1
        if asked.round is not None:
            print("\n".join([record["kind"], *record["trail"]]), file=sys.stderr)
        if record["broken"]:
            broken.append(record)
            _complain(record, asked)
        if time.monotonic() - last > 10:
            last = time.monotonic()
            rounds = int(sum(each["rounds"] for each in kinds.values()))
            told = f"{rounds} rounds, {faults.total()} faults, {len(broken)} rounds with broken invariants"
            print(f"{last - started:.0f} s: {told}", file=sys.stderr)
    summary = {
        "seed": asked.seed,
        "seconds": round(time.monotonic() - started, 1),
        "rounds": int(sum(each["rounds"] for each in kinds.values())),
        "faults": faults.total(),
        "broken": sum(len(record["broken"]) for record in broken),
        "kinds": dict(sorted(kinds.items())),
        "faults_by_kind": dict(sorted(faults.items())),
        "skipped": dict(skipped),
        "broken_rounds": [{k: v for k, v in record.items() if k != "trail"} for record in broken],
    }
    print(json.dumps(summary, indent=1) if asked.json else _told(summary))
    return len(broken)


def _complain(record: dict[str, Any], asked: argparse.Namespace) -> None:
    repeat = f"python bench/faults.py --seed {asked.seed} --kinds {record['kind']} --round {record['number']}"
    lines = [
        f"BROKEN in round {record['number']} ({record['kind']}): {sentence}" for sentence in record["broken"]
    ]
    print("\n".join([*lines, f"  again: {repeat}", f"  kept:  {record['kept']}"]), file=sys.stderr)


def _told(summary: dict[str, Any]) -> str:
    lines = ["faults"]
    lines += [f"  {count:6} {name}" for name, count in summary["faults_by_kind"].items()]
    lines += ["rounds by kind: rounds, faults, broken invariants, seconds"]
    lines += [
        f"  {each['rounds']:6.0f} {each['faults']:6.0f} {each['broken']:6.0f} {each['seconds']:9.1f}  {name}"
        for name, each in summary["kinds"].items()
    ]
    lines += [f"skipped {count} × {reason}" for reason, count in summary["skipped"].items()]
    lines += [
        f"{summary['faults']} faults in {summary['rounds']} rounds, {summary['broken']} broken invariants, "
        f"{summary['seconds']} seconds, seed {summary['seed']}"
    ]
    return "\n".join(lines)


def _records(asked: argparse.Namespace, base: Path, template: Path) -> Iterator[dict[str, Any]]:
    """The records of all workers as they come; a worker that dies is an error."""
    lines: Queue[str | None] = Queue()
    workers = []
    for number in range(asked.processes):
        command = [sys.executable, __file__, "--worker", str(number), "--processes", str(asked.processes)]
        command += ["--seed", str(asked.seed), "--folder", str(base), "--template", str(template)]
        command += ["--kinds", asked.kinds]
        for name in ("minutes", "rounds", "round", "each"):
            if (value := getattr(asked, name)) is not None:
                command += [f"--{name}", str(value)]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=checkout.ROOT))
        threading.Thread(target=_read, args=(workers[-1], lines), daemon=True).start()
    try:
        for _ in workers:
            while (line := lines.get()) is not None:
                yield json.loads(line)
        if any(worker.wait() for worker in workers):
            sys.exit("error: a process that played rounds died (its words are above)")
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


def _read(worker: subprocess.Popen[str], lines: Queue[str | None]) -> None:
    assert worker.stdout
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


if __name__ == "__main__":
    main()
