"""The checks without anything installed: `python -m vllm_variants.verify --python … --sm sm90`.

Runs the checks of any interpreter (a result's, or a folder that was carried to another machine),
prints one line a check and, with `--jsonl`, the outcomes as JSON lines. The command line proper is
`vllm-variants verify`; this one knows no manifest and looks at no GPU by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.errors import Error, ExitCode
from vllm_variants.verify import catalogue, comparison, judgement, options, reports
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.check_process import CheckedResult
from vllm_variants.verify.running import RunOptions


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vllm_variants.verify", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="The interpreter to check.")
    parser.add_argument("--sm", required=True, help="The SM to expect: sm90.")
    parser.add_argument("--release", required=True, help="The vLLM release to expect: 0.13.0.")
    parser.add_argument("--facts", default="{}", help="JSON: what the result says about itself.")
    parser.add_argument("--against", type=Path, help="Another interpreter: compare the two, bit by bit.")
    parser.add_argument("--jsonl", type=Path, help="Write the outcomes here, one line each.")
    parser.add_argument(options.ONLY.flag, action="append", default=[], help=options.ONLY.help)
    parser.add_argument(options.NATIVE.flag, action="store_true", help=options.NATIVE.help)
    for option in options.VALUES:
        parser.add_argument(
            option.flag, metavar=option.metavar, type=option.read, default=option.default, help=option.help
        )
    return parser.parse_args()


def _write(file: Path | None, record: dict[str, Any]) -> None:
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def _check(arguments: argparse.Namespace, checks: Sequence[Check], run: RunOptions) -> bool:
    result = CheckedResult(arguments.python, json.loads(arguments.facts), native=arguments.native)
    judged = []
    for check in judgement.run_and_judge(result, checks, run, release=arguments.release, sm=arguments.sm):
        judged.append(check)
        print(reports.line(check), flush=True)
        _write(arguments.jsonl, {"schema": documents.VERIFY_CHECK, **check.as_dict()})
    summary = judgement.summarise(judged)
    print(f"\n{summary.sentence}")
    for check in judged:
        if check.judgement is judgement.Judgement.FAILED:
            print(f"\n{check.check.name}: {check.sentence}")
            for case in check.outcome.get("cases") or ():
                if not case["ok"]:
                    print(f"    {case['case']}: error {case['error']}, worst row {case['worst_row']}")
    return summary.good


def _compare(arguments: argparse.Namespace, checks: Sequence[Check], run: RunOptions) -> bool:
    facts = json.loads(arguments.facts)
    result = CheckedResult(arguments.python, facts, native=arguments.native)
    other = CheckedResult(arguments.against, facts)
    compared = []
    for check in comparison.run_and_compare(result, other, checks, run):
        compared.append(check)
        print(check.line(), flush=True)
        here, there = check.outcomes
        record = {"schema": documents.VERIFY_COMPARED, **check.as_dict(), "one": here, "other": there}
        _write(arguments.jsonl, record)
    print(f"\n{comparison.summary(compared)}")
    return comparison.good(compared)


def main() -> int:
    """Run, print, and return an exit code of `errors.ExitCode`."""
    arguments = _arguments()
    checks = catalogue.select(catalogue.read(), arguments.only)
    values = vars(arguments)
    run = options.run_options(**{option.name: values[option.name] for option in options.VALUES})
    started = time.monotonic()
    good = (_compare if arguments.against else _check)(arguments, checks, run)
    print(f"{time.monotonic() - started:.0f} seconds, seed {run.seed}")
    return ExitCode.OK if good else ExitCode.AUDIT


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
