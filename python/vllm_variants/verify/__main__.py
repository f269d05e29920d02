"""The checks without anything installed: `python -m vllm_variants.verify --python … --sm sm90`.

Runs the checks of any interpreter (a result's, or a folder that was carried to another machine),
prints one line a check and, with `--jsonl`, the outcomes as JSON lines. The command line proper is
`vllm-variants verify`; this one knows no manifest and looks at no GPU by itself.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.errors import Error, ExitCode
from vllm_variants.verify import catalogue as expectations
from vllm_variants.verify import comparison, processes, reports, running
from vllm_variants.verify import judgement as verdicts
from vllm_variants.verify.catalogue import Check


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vllm_variants.verify", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter to check")
    parser.add_argument("--sm", required=True, help="the SM to expect: sm90")
    parser.add_argument("--release", required=True, help="the vLLM release to expect: 0.13.0")
    parser.add_argument("--facts", default="{}", help="JSON: what the result says about itself")
    parser.add_argument("--only", action="append", default=[], help="a check, a group or a pattern")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ahead", type=int, default=4, help="interpreters that load meanwhile")
    parser.add_argument("--together", type=int, default=1, help="checks that share the GPU")
    parser.add_argument("--time", type=float, default=float("inf"), help="seconds for the whole run")
    parser.add_argument("--logs", type=Path, help="a folder for the checks' logs")
    parser.add_argument("--against", type=Path, help="another interpreter: compare the two, bit by bit")
    parser.add_argument("--jsonl", type=Path, help="write the outcomes here, one line each")
    return parser.parse_args()


def _write(file: Path | None, record: dict[str, Any]) -> None:
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def _plan(arguments: argparse.Namespace) -> running.Plan:
    return running.Plan(
        arguments.seed, arguments.ahead, arguments.together, arguments.time, logs=arguments.logs
    )


def _check(arguments: argparse.Namespace, subject: processes.Subject, checks: Sequence[Check]) -> bool:
    by_name = {each.name: each for each in checks}
    judged = []
    plan = _plan(arguments)
    for outcome in running.run(subject, checks, plan):
        check = by_name[outcome["check"]]
        one = verdicts.judge(check, outcome, release=arguments.release, sm=arguments.sm)
        judged.append(one)
        print(reports.line(one), flush=True)
        _write(arguments.jsonl, {"schema": documents.VERIFY_CHECK, **one.as_dict()})
    summary = verdicts.summarise(judged)
    print(f"\n{summary.sentence}")
    for one in judged:
        if one.verdict is verdicts.Verdict.FAILED:
            print(f"\n{one.check.name}: {one.sentence}")
            for case in one.outcome.get("cases") or ():
                if not case["ok"]:
                    print(f"    {case['case']}: error {case['error']}, worst row {case['worst_row']}")
    return summary.good


def _compare(arguments: argparse.Namespace, subject: processes.Subject, checks: Sequence[Check]) -> bool:
    other = processes.Subject(arguments.against, subject.facts)
    compared = []
    for one, two in comparison.run(subject, other, checks, _plan(arguments)):
        found = comparison.compare(one, two)
        compared.append(found)
        print(found.line(), flush=True)
        record = {"schema": documents.VERIFY_COMPARED, **found.as_dict(), "one": one, "other": two}
        _write(arguments.jsonl, record)
    print(f"\n{comparison.summary(compared)}")
    return comparison.good(compared)


def main() -> int:
    """Run, print, and return an exit code of `errors.ExitCode`."""
    arguments = _arguments()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1 << 31)
    checks = expectations.select(expectations.read(), arguments.only)
    subject = processes.Subject(arguments.python, json.loads(arguments.facts))
    started = time.monotonic()
    good = (_compare if arguments.against else _check)(arguments, subject, checks)
    print(f"{time.monotonic() - started:.0f} seconds, seed {arguments.seed}")
    return ExitCode.OK if good else ExitCode.AUDIT


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
