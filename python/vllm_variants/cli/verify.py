"""`vllm-variants verify`: GPU import and kernel checks on a result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vllm_variants import documents
from vllm_variants.cli.options import ReleaseName
from vllm_variants.cli.output import Json, err, out, print_json, say, table
from vllm_variants.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_variants.model.results import Result
    from vllm_variants.verify.catalogue import Check
    from vllm_variants.verify.comparison import Compared
    from vllm_variants.verify.judgement import Judged
    from vllm_variants.verify.processes import Subject
    from vllm_variants.verify.running import Plan


def verify(
    variant: Annotated[
        str | None,
        typer.Argument(
            metavar="[VARIANT]", help="sm90, 9.0, a full name or a GPU's name.", show_default=False
        ),
    ] = None,
    result: Annotated[
        Path | None, typer.Option("--result", help="The result to check, instead of ./result-VARIANT.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Checks by name, group or pattern: moe, '*fp8*'."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="RESULT", help="Hold this other result's outputs against it."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.")] = None,
    logs: Annotated[Path | None, typer.Option("--logs", help="Keep the checks' logs in this folder.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The inputs' seed; a fresh one else.")] = None,
    together: Annotated[
        int, typer.Option("--together", min=1, help="So many checks share the GPU: faster, coarser times.")
    ] = 1,
    time: Annotated[
        float | None,
        typer.Option("--time", metavar="SECONDS", min=1, help="End the run then; the rest is skipped."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what each check proves, and where.")] = False,
    release: ReleaseName = None,
    as_json: Json = False,
) -> None:
    """Run GPU import and kernel checks on a result, each in its own process.

    Every kernel's output is held against a float64 reference on random inputs. Exit code 5: a check
    failed, or none could run; 3: this machine has no GPU, or another one, or too old a driver.
    """
    from vllm_variants.verify import catalogue as expectations
    from vllm_variants.verify import running

    checks = expectations.select(expectations.read(), only or ())
    if listed:
        _list(checks, variant, release, as_json)
        return
    if variant is None and result is None:
        raise UsageError("say which variant to check", hint="vllm-variants verify sm90")
    if compare and junit:
        raise UsageError("--junit reports the checks of one result", hint="leave out --junit or --compare")
    found, other = _results(variant, release, result, compare)
    plan = running.Plan(
        _fresh() if seed is None else seed, together=together, time=time or float("inf"), logs=logs
    )
    if other:
        _compare(found, other, checks, plan, as_json)
    else:
        _check(found, checks, plan, junit, as_json)


def _show(rows: Table) -> None:
    for column in rows.columns:
        column.no_wrap = True
    rows.columns[-1].no_wrap, rows.columns[-1].overflow = False, "fold"
    (out if out.is_terminal else Console(width=240, highlight=False)).print(rows)


def _fresh() -> int:
    import secrets

    return secrets.randbelow(1 << 31)


def _results(
    variant: str | None, release: str | None, path: Path | None, compare: Path | None
) -> tuple[Result, Result | None]:
    from vllm_variants.model import matrix
    from vllm_variants.verify import preflight

    wanted = matrix.load().parse(variant).variant if variant else None
    if path is None:
        assert wanted is not None
        path = Path(f"result-{wanted.name(matrix.load().release(release))}")
    found = preflight.result(path, wanted=wanted.short if wanted else None)
    return found, preflight.result(compare, wanted=found.manifest.short) if compare else None


def _machine(found: Result) -> tuple[Subject, dict[str, Any]]:
    """What to run, and the facts of the report: result, machine, GPU."""
    from vllm_variants import __version__
    from vllm_variants.machine import gpus
    from vllm_variants.verify import preflight

    machine = gpus.machine()
    fitting = preflight.fitting(found, machine)
    if reservation := preflight.reservation(found, machine):
        say(f"note: {reservation}")
    about = {
        "result": str(found.path),
        "variant": found.manifest.variant,
        "release": found.manifest.release,
        "builder": found.manifest.builder,
        "gpu": fitting[0].as_dict(),
        "driver": machine.driver,
        "tool": __version__,
        "command": " ".join(sys.argv),
    }
    return preflight.subject(found, fitting), about


def _check(found: Result, checks: Sequence[Check], plan: Plan, junit: Path | None, as_json: bool) -> None:
    from vllm_variants.verify import judgement as verdicts
    from vllm_variants.verify import reports, running

    subject, about = _machine(found)
    by_name = {each.name: each for each in checks}
    release, sm = found.manifest.release, found.manifest.capability.sm
    say(f"{about['gpu']['name']}, driver {about['driver']}: {len(checks)} checks of {about['variant']}")
    judged: list[Judged] = []
    with err.status("starting …") as status:
        for outcome in running.run(subject, checks, plan):
            one = verdicts.judge(by_name[outcome["check"]], outcome, release=release, sm=sm)
            judged.append(one)
            err.print(reports.line(one), markup=False) if as_json else None
            status.update(f"{len(judged)} of {len(checks)} done, last {outcome['check']}")
    if junit:
        reports.junit(judged, about["variant"], junit)
    if as_json:
        print_json(reports.document(judged, {**about, "seed": plan.seed}))
    else:
        _show(_table(judged))
    _conclude(judged, str(found.manifest.capability), plan.seed)


def _table(judged: list[Judged]) -> Table:
    from vllm_variants.verify import reports
    from vllm_variants.verify.judgement import Verdict

    rows = table("check", "status", "error of its tolerance", "median time", "image")
    colour = {Verdict.FAILED: "red", Verdict.SKIPPED: "dim", Verdict.OPEN: "yellow"}
    for one in judged:
        status = one.outcome["status"] + (" !" if one.verdict is Verdict.FAILED else "")
        rows.add_row(one.check.name, status, *reports.figures(one.outcome), style=colour.get(one.verdict))
    return rows


def _conclude(judged: list[Judged], capability: str, seed: int) -> None:
    from vllm_variants.verify import judgement as verdicts

    for one in judged:
        if one.verdict is not verdicts.Verdict.PASSED:
            say(f"{one.check.name}: {one.sentence}")
    summary = verdicts.summarise(judged)
    say(f"{summary.sentence} (seed {seed})")
    hint = verdicts.advice(judged, capability)
    if hint:
        say(f"hint: {hint}")
    if not summary.good:
        raise typer.Exit(ExitCode.AUDIT)


def _compare(found: Result, other: Result, checks: Sequence[Check], plan: Plan, as_json: bool) -> None:
    from vllm_variants.verify import comparison, preflight, processes

    subject, about = _machine(found)
    rival = processes.Subject(other.python, preflight.facts(other), subject.gpus)
    compared: list[Compared] = []
    with err.status("starting …") as status:
        for one, two in comparison.run(subject, rival, checks, plan):
            compared.append(comparison.compare(one, two))
            err.print(compared[-1].line(), markup=False) if as_json else None
            status.update(f"{len(compared)} of {len(checks)} done, last {one['check']}")
    if as_json:
        against = {"against": str(other.path), "summary": comparison.summary(compared), "seed": plan.seed}
        checked = [each.as_dict() for each in compared]
        print_json({"schema": documents.VERIFY_COMPARE, **about, **against, "checks": checked})
    else:
        rows = table("check", "outputs", "time ratio", "first call", "")
        for each in compared:
            ratios = [f"{ratio:.2f}×" if ratio else "" for ratio in (each.ratio, each.first_ratio)]
            rows.add_row(each.check, each.likeness.value, *ratios, each.sentence)
        _show(rows)
    say(comparison.summary(compared))
    if not comparison.good(compared):
        raise typer.Exit(ExitCode.AUDIT)


def _list(checks: Sequence[Check], variant: str | None, release: str | None, as_json: bool) -> None:
    from vllm_variants.model import matrix

    release_name = matrix.load().release(release).name
    sms = (
        [matrix.load().parse(variant).variant.capability.sm]
        if variant
        else list(dict.fromkeys(v.capability.sm for v in matrix.load().variants.values()))
    )
    if as_json:
        print_json(
            {
                "schema": documents.VERIFY_LIST,
                "release": release_name,
                "checks": [
                    {
                        "check": c.name,
                        "says": c.says,
                        "expected": {sm: c.expected(release_name, sm) for sm in sms},
                    }
                    for c in checks
                ],
            }
        )
        return
    rows = table("check", *sms, "what it proves")
    signs = {"ok": "ok", "unsupported": "–", "open": "?"}
    for each in checks:
        rows.add_row(each.name, *(signs[each.expected(release_name, sm)] for sm in sms), each.says)
    _show(rows)
    say(f"vLLM {release_name}: ok must run, – must say that it is unsupported, ? is not judged")
