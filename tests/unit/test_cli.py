"""The command line as a person meets it: what goes where, sentences instead of tracebacks, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import vllm_variants
from vllm_variants import data
from vllm_variants.cli import app, output
from vllm_variants.cli.command import MAY_BE_EMPTY, name_of
from vllm_variants.errors import Error, ExitCode, UsageError
from vllm_variants.maintain import docs as generated
from vllm_variants.model import matrix

MACHINES = Path(__file__).parents[1] / "machines"


def cli(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_VARIANTS_", "XDG_"))}
    clean |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_DATA_HOME": str(cwd / "data"),
        "COLUMNS": "200",
        **env,
    }
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


def on(machine: str) -> dict[str, str]:
    return {"VLLM_VARIANTS_MACHINE": str(MACHINES / f"{machine}.json")}


def test_help_names_every_command_with_what_it_does(tmp_path: Path) -> None:
    completed = cli("--help", cwd=tmp_path)
    assert completed.returncode == 0
    for command in ("list", "detect", "build", "doctor", "gc"):
        line = next(line for line in completed.stdout.splitlines() if line.strip().startswith(f"{command} "))
        assert len(line.split()) > 3


@pytest.mark.parametrize(
    "command", ["build", "audit", "verify", "export", "report", "pin", "lock", "advisories"]
)
def test_a_usage_line_names_its_argument_once(command: str) -> None:
    usage = CliRunner().invoke(app, [command, "--help"]).stdout.splitlines()[0]
    assert re.fullmatch(rf"Usage: .* {command} \[OPTIONS\] [\[{{][A-Za-z|]+[\]}}](\.\.\.)?", usage)


def test_auto_is_offered_where_it_is_understood() -> None:
    assert "auto" in CliRunner().invoke(app, ["build", "--help"]).stdout
    assert "auto" not in CliRunner().invoke(app, ["export", "--help"]).stdout


def parameters() -> Iterator[tuple[str, Any]]:
    """Every option and argument, with its command."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ((name, parameter) for parameter in command.params)


def before(command: str, parameter: Any) -> list[str]:
    """What stands before an argument: `add` of `release add VERSION`, nothing in other commands."""
    names = [
        each.name for name, each in parameters() if name == command and each.param_type_name == "argument"
    ]
    return ["add"] * names.index(parameter.name)


def takes_a_value(parameter: Any) -> bool:
    return parameter.param_type_name == "argument" or not (parameter.is_flag or parameter.secondary_opts)


@pytest.mark.parametrize(
    ("command", "words", "name"),
    [
        (
            command,
            [*before(command, parameter), ""] if name_of(parameter).isupper() else [parameter.opts[0], ""],
            name_of(parameter),
        )
        for command, parameter in parameters()
        if takes_a_value(parameter) and parameter.opts[0] not in MAY_BE_EMPTY
    ],
)
def test_an_empty_value_is_refused_by_every_command(command: str, words: list[str], name: str) -> None:
    """An unset variable of a shell leaves one, and the current folder, all or nothing is not meant by it."""
    result = CliRunner().invoke(app, [command, *words])
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == f"{name} is empty"


@pytest.mark.parametrize("option", ["--sm", "--json", "--dry-run"])
def test_an_option_means_the_same_everywhere(option: str) -> None:
    meanings = {
        (parameter.help, parameter.metavar, parameter.multiple)
        for _, parameter in parameters()
        if option in parameter.opts
    }
    assert len(meanings) == 1


def test_release_is_explained_where_it_takes_or_means_more() -> None:
    """`build` alone takes `newest`, and `audit` alone finds which release a path is of."""
    helps = {command: each.help for command, each in parameters() if "--release" in each.opts}
    own = {command: helps.pop(command) for command in ("build", "audit")}
    assert set(helps.values()) == {"The vLLM release; if absent, the default one."}
    assert "newest" in own["build"] and "found" in own["audit"]


def test_list_marks_what_this_machine_needs(tmp_path: Path) -> None:
    completed = cli("list", cwd=tmp_path, **on("l40s"))
    marked = [line.split()[0] for line in completed.stdout.splitlines() if "←" in line]
    assert (completed.returncode, marked) == (0, ["sm89"])


def test_list_as_json_is_the_whole_matrix(tmp_path: Path) -> None:
    completed = cli("list", "--json", "--release", "0.11.2", cwd=tmp_path, **on("h100"))
    facts = json.loads(completed.stdout)
    assert [v["short"] for v in facts["variants"]] == list(matrix.load().variants)
    assert [v["short"] for v in facts["variants"] if v["needed_here"]] == ["sm90"]
    assert facts["release"] == "0.11.2"
    assert [r["name"] for r in facts["releases"]] == list(matrix.load().releases)


def test_detect_as_json_is_a_recording_of_the_machine(tmp_path: Path) -> None:
    first = cli("detect", "--json", cwd=tmp_path, **on("mixed"))
    (tmp_path / "again.json").write_text(first.stdout)
    again = cli("detect", "--json", cwd=tmp_path, VLLM_VARIANTS_MACHINE=str(tmp_path / "again.json"))
    assert first.stdout == again.stdout
    assert json.loads(first.stdout)["variants"] == [
        f"vllm-python312-cuda12_9-{sm}" for sm in ("sm89", "sm86")
    ]


def test_detect_explains_itself_to_people(tmp_path: Path) -> None:
    completed = cli("detect", "--explain", cwd=tmp_path, **on("mixed"))
    assert completed.returncode == 0
    assert "GPU 1  NVIDIA GeForce RTX 3090  8.6  25.77 GB" in completed.stdout
    assert "code for 9.0 never runs on 8.6" in completed.stdout
    assert "`vllm-variants build auto` builds sm89 and sm86" in completed.stderr


def test_json_of_a_machine_without_a_gpu_is_printed_before_the_error(tmp_path: Path) -> None:
    completed = cli("detect", "--json", cwd=tmp_path, **on("no-gpu"))
    assert completed.returncode == ExitCode.UNSUPPORTED
    assert json.loads(completed.stdout)["variants"] == []
    assert completed.stderr.startswith("error: the driver is there, but it sees no GPU\nhint: ")


def test_gc_of_nothing_frees_nothing(tmp_path: Path) -> None:
    completed = cli("gc", "--json", cwd=tmp_path)
    assert (completed.returncode, json.loads(completed.stdout)["removed"]) == (0, [])
    assert "0 removed" in completed.stderr


def test_results_of_an_empty_store_say_what_to_do(tmp_path: Path) -> None:
    completed = cli("list", "--results", cwd=tmp_path)
    assert completed.stdout == ""
    assert "vllm-variants build auto" in completed.stderr


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Not as markup: a folder may be called [bold], and what [/a] closes was never opened."""
    rows = output.table("linked from")
    rows.add_row("/home/[bold]/a [/a]")
    output.out.print(rows)
    output.say("[bold]")
    shown = capsys.readouterr()
    assert "/home/[bold]/a [/a]" in shown.out
    assert shown.err == "[bold]\n"


def test_generated_text_is_what_the_matrix_says() -> None:
    """When this fails: ./vllm-variants docs"""
    root = data.checkout()
    assert root is not None
    old = [
        path.name for path, text in generated.files(root, matrix.load()).items() if path.read_text() != text
    ]
    assert old == []


def documented_exit_codes() -> set[int]:
    root = data.checkout()
    assert root is not None
    rows = re.findall(r"^\| (\d+) \| \S", (root / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    return {int(code) for code in rows}


def errors_below(kind: type[Error]) -> set[type[Error]]:
    return {kind}.union(*(errors_below(each) for each in kind.__subclasses__()))


def test_every_exit_code_is_documented() -> None:
    """Those of the enumeration, of every `Error` in the package, and those written as numbers."""
    for module in pkgutil.walk_packages(vllm_variants.__path__, "vllm_variants."):
        if ".checks" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    root = data.checkout()
    assert root is not None
    launcher = re.findall(r"^ *exit (\d+)$", (root / "vllm-variants").read_text(), re.MULTILINE)
    written = [
        code
        for path in (root / "python").rglob("*.py")
        if "checks" not in path.parts
        for code in re.findall(r"\b(?:sys\.exit|typer\.Exit)\((\d+)", path.read_text())
    ]

    assert documented_exit_codes() == {int(code) for code in ExitCode}
    assert {int(error.exit_code) for error in errors_below(Error)} <= documented_exit_codes()
    assert launcher
    assert {int(code) for code in launcher + written} <= documented_exit_codes()


def test_locks_agree_with_the_matrix() -> None:
    """Every release has its locks; each holds the vLLM and the torch that the matrix declares."""
    folder = data.root() / "locks"
    for release in matrix.load().releases.values():
        for platform in ("x86_64", "aarch64"):
            text = (folder / f"{release.name}-{platform}.txt").read_text()
            assert f"\nvllm=={release.name} " in text
            assert "://" not in text
            assert all("==" in line for line in text.splitlines() if line and line[0].isalpha())
        assert f"torch=={release.stack.torch} " in (folder / f"{release.name}-x86_64.txt").read_text()
