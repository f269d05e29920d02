"""`vllm-variants verify`: GPU import and kernel checks on a result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vllm_variants import documents
from vllm_variants.cli.options import Json, ReleaseName, VariantName, path_option
from vllm_variants.cli.output import err, out, print_json, say, table
from vllm_variants.cli.rules import excludes, one_of, rules
from vllm_variants.errors import ExitCode
from vllm_variants.verify.options import LOGS, NATIVE, ONLY, SEED, TIME, TOGETHER, run_options

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_variants.model.results import Result
    from vllm_variants.verify.catalogue import Check
    from vllm_variants.verify.check_process import CheckedResult
    from vllm_variants.verify.comparison import ComparedCheck
    from vllm_variants.verify.judgement import JudgedCheck
    from vllm_variants.verify.running import RunOptions


@rules(
    one_of("VARIANT", "--result", "--list", hint="name the variant to check: vllm-variants verify sm90"),
    excludes("--compare", "--junit", reason="a JUnit report is of one result"),
)
def verify(
    variant: VariantName = None,
    result: Annotated[
        Path | None,
        path_option("--result", metavar="PATH", help="The result to check, instead of ./result-VARIANT."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(ONLY.flag, metavar=ONLY.metavar, help=ONLY.help),
    ] = None,
    compare: Annotated[
        Path | None,
        path_option("--compare", metavar="RESULT", help="Hold this other result's outputs against it."),
    ] = None,
    native: Annotated[bool, typer.Option(NATIVE.flag, help=NATIVE.help)] = False,
    junit: Annotated[
        Path | None, path_option("--junit", metavar="FILE", help="Write a JUnit report.")
    ] = None,
    logs: Annotated[Path | None, path_option(LOGS.flag, metavar=LOGS.metavar, help=LOGS.help)] = None,
    seed: Annotated[int | None, typer.Option(SEED.flag, metavar=SEED.metavar, help=SEED.help)] = None,
    together: Annotated[
        int, typer.Option(TOGETHER.flag, metavar=TOGETHER.metavar, min=1, help=TOGETHER.help)
    ] = TOGETHER.default,
    time: Annotated[
        float | None,
        typer.Option(TIME.flag, metavar=TIME.metavar, min=1, help=TIME.help),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what each check proves, and where.")] = False,
    release: ReleaseName = None,
    as_json: Json = False,
) -> None:
    """Run GPU import and kernel checks on a result, each in its own process.

    Every kernel's output is held against a float64 reference on random inputs. Exit code 5: a check
    failed, or none could run; 3: this machine has no GPU, or another one, or too old a driver.
    """
    from vllm_variants.verify import catalogue

    checks = catalogue.select(catalogue.read(), only or ())
    if listed:
        _list(checks, variant, release, as_json)
        return
    checked, other = _results(variant, release, result, compare)
    options = run_options(seed=seed, together=together, time=time, logs=logs)
    if other:
        _compare(checked, other, checks, options, native, as_json)
    else:
        _check(checked, checks, options, native, junit, as_json)


def _show(rows: Table) -> None:
    for column in rows.columns:
        column.no_wrap = True
    rows.columns[-1].no_wrap, rows.columns[-1].overflow = False, "fold"
    (out if out.is_terminal else Console(width=240, highlight=False, markup=False)).print(rows)


def _results(
    variant: str | None, release: str | None, path: Path | None, compare: Path | None
) -> tuple[Result, Result | None]:
    from vllm_variants.model import matrix
    from vllm_variants.verify import preflight

    rows = matrix.load()
    chosen = rows.release(release)
    about = chosen if release or path is None else None  # a result's manifest says its own
    requested = rows.parse(variant, release=about).variant if variant else None
    if path is None:
        assert requested is not None
        path = Path(f"result-{requested.name(chosen)}")
    result = preflight.result(path, variant=requested.short if requested else None)
    return result, preflight.result(compare, variant=result.manifest.short) if compare else None


def _machine(result: Result, native: bool) -> tuple[CheckedResult, dict[str, Any]]:
    """What to run, and the facts of the report: result, machine, GPU."""
    from vllm_variants import __version__
    from vllm_variants.machine import gpus
    from vllm_variants.verify import preflight

    machine = gpus.machine()
    fitting = preflight.fitting(result, machine)
    if reservation := preflight.reservation(result, machine):
        say(f"note: {reservation}")
    about = {
        "result": str(result.path),
        "variant": result.manifest.variant,
        "release": result.manifest.release,
        "builder": result.manifest.builder,
        "native": native,
        "gpu": fitting[0].as_dict(),
        **({"gpus": [gpu.as_dict() for gpu in fitting]} if len(fitting) > 1 else {}),
        "driver": machine.driver,
        "tool": __version__,
        "command": " ".join(sys.argv),
    }
    return preflight.checked_result(result, fitting, native=native), about


def _check(
    result: Result,
    checks: Sequence[Check],
    options: RunOptions,
    native: bool,
    junit: Path | None,
    as_json: bool,
) -> None:
    from vllm_variants.verify import judgement, reports

    checked, about = _machine(result, native)
    release, sm = result.manifest.release, result.manifest.capability.sm
    say(f"{about['gpu']['name']}, driver {about['driver']}: {len(checks)} checks of {about['variant']}")
    judged: list[JudgedCheck] = []
    with err.status("starting …") as status:
        for check in judgement.run_and_judge(checked, checks, options, release=release, sm=sm):
            judged.append(check)
            err.print(reports.line(check)) if as_json else None
            status.update(f"{len(judged)} of {len(checks)} done, last {check.check.name}")
    if junit:
        reports.write_junit(judged, about["variant"], junit)
    if as_json:
        print_json(reports.document(judged, {**about, "seed": options.seed}))
    else:
        _show(_table(judged))
    _conclude(judged, str(result.manifest.capability), options.seed)


def _table(judged: list[JudgedCheck]) -> Table:
    from vllm_variants.verify import reports
    from vllm_variants.verify.judgement import Judgement

    rows = table("check", "status", "error of its tolerance", "median time", "image")
    colour = {Judgement.FAILED: "red", Judgement.SKIPPED: "dim", Judgement.OPEN: "yellow"}
    for check in judged:
        status = check.outcome["status"] + (" !" if check.judgement is Judgement.FAILED else "")
        style = colour.get(check.judgement)
        rows.add_row(check.check.name, status, *reports.figures(check.outcome), style=style)
    return rows


def _conclude(judged: list[JudgedCheck], capability: str, seed: int) -> None:
    from vllm_variants.verify import judgement

    for check in judged:
        if check.judgement is not judgement.Judgement.PASSED:
            say(f"{check.check.name}: {check.sentence}")
    summary = judgement.summarise(judged)
    say(f"{summary.sentence} (seed {seed})")
    hint = judgement.advice(judged, capability)
    if hint:
        say(f"hint: {hint}")
    if not summary.good:
        raise typer.Exit(ExitCode.AUDIT)


def _compare(
    result: Result, other: Result, checks: Sequence[Check], options: RunOptions, native: bool, as_json: bool
) -> None:
    from vllm_variants.verify import comparison, preflight
    from vllm_variants.verify.check_process import CheckedResult

    checked, about = _machine(result, native)
    against = CheckedResult(other.python, preflight.facts(other), checked.gpus)
    compared: list[ComparedCheck] = []
    with err.status("starting …") as status:
        for check in comparison.run_and_compare(checked, against, checks, options):
            compared.append(check)
            err.print(check.line()) if as_json else None
            status.update(f"{len(compared)} of {len(checks)} done, last {check.check}")
    if as_json:
        print_json(
            {
                "schema": documents.VERIFY_COMPARE,
                **about,
                "against": str(other.path),
                "summary": comparison.summary(compared),
                "seed": options.seed,
                "checks": [check.as_dict() for check in compared],
            }
        )
    else:
        _show(_comparison_table(compared))
    say(comparison.summary(compared))
    if not comparison.good(compared):
        raise typer.Exit(ExitCode.AUDIT)


def _comparison_table(compared: Sequence[ComparedCheck]) -> Table:
    from vllm_variants.verify import reports

    rows = table("check", "outputs", "time ratio", "first call: here", "there", "")
    for check in compared:
        ratio = f"{check.ratio:.2f}×" if check.ratio else ""
        firsts = ("" if time is None else reports.call_time(time) for time in check.first)
        rows.add_row(check.check, check.likeness.value, ratio, *firsts, check.sentence)
    return rows


def _list(checks: Sequence[Check], variant: str | None, release: str | None, as_json: bool) -> None:
    from vllm_variants.model import matrix

    release_name = matrix.load().release(release).name
    sms = (
        [matrix.load().parse(variant).device.sm]
        if variant
        else list(dict.fromkeys(v.capability.sm for v in matrix.load().every_variant))
    )
    if as_json:
        print_json(
            {
                "schema": documents.VERIFY_LIST,
                "release": release_name,
                "checks": [
                    {
                        "check": check.name,
                        "says": check.says,
                        "expected": {sm: check.expected(release_name, sm) for sm in sms},
                    }
                    for check in checks
                ],
            }
        )
        return
    rows = table("check", *sms, "what it proves")
    signs = {"ok": "ok", "unsupported": "–", "open": "?"}
    for check in checks:
        rows.add_row(check.name, *(signs[check.expected(release_name, sm)] for sm in sms), check.says)
    _show(rows)
    say(f"vLLM {release_name}: ok must run, – must say that it is unsupported, ? is not judged")
