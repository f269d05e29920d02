"""What a command does when its output cannot be written, and when the system refuses it something."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from vllm_variants import cli
from vllm_variants.errors import ExitCode, readable, system_error


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `V` is the program; its stdout and stderr are pipes."""
    program = f"{shlex.quote(sys.executable)} -m vllm_variants"
    script = f'set -o pipefail; V() {{ {program} "$@"; }}; {line}'
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "PYTHONUNBUFFERED")} | env
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=clean)


@pytest.mark.parametrize("words", ["list", "list --json", "--help", "audit --json ."])
@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        (">&-", ExitCode.USAGE, "error: stdout is closed"),
        ("> /dev/full", ExitCode.RESOURCES, "error: stdout cannot be written to: No space left on device"),
        ("| true", ExitCode.UNREAD, ""),
    ],
)
def test_output_that_cannot_be_written_is_a_documented_exit_code(
    words: str, where: str, code: ExitCode, says: str, tmp_path: Path
) -> None:
    told = shell(f"cd {tmp_path}; V {words} {where}")

    assert told.returncode == code
    assert says in told.stderr
    assert told.stderr.count("error:") == bool(says)
    assert "Exception ignored" not in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("where", ["2>&-", "2> /dev/full", "2> >(true)"])
def test_talk_that_nobody_can_read_stops_no_work(where: str) -> None:
    told = shell(f"V list {where}; sleep 0.1; V list --json {where} | tail -1")

    assert told.returncode == 0
    assert told.stdout.startswith("variant ")
    assert told.stdout.endswith("}\n")


def test_what_is_wrong_keeps_its_exit_code_without_a_stderr() -> None:
    assert shell("V build sm91 2>&-").returncode == ExitCode.USAGE
    assert shell("V build sm91 >&- 2>&-").returncode == ExitCode.USAGE


def test_a_file_opened_later_never_becomes_the_closed_stdout(tmp_path: Path) -> None:
    """Else what a child writes to its stdout would land in it."""
    code = (
        "from vllm_variants.cli.output import open_streams; import subprocess, sys; open_streams();"
        "f = open(sys.argv[1], 'w'); subprocess.run(['sh', '-c', 'echo stray']); print(f.fileno(), file=f)"
    )
    shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {tmp_path / 'file'} >&- 2>&-")

    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_name_that_is_no_text_is_a_name_in_every_locale(errors: str, tmp_path: Path) -> None:
    """Python's stdout is strict in most locales, and not in the C locale."""
    name = os.fsdecode(b"odd\xff.so")
    (tmp_path / name).write_bytes(b"\x7fELF")  # cut off, so it is named

    told = shell(f"V audit {tmp_path} --json", PYTHONIOENCODING=f"utf-8:{errors}")
    assert [library["path"] for library in json.loads(told.stdout)["libraries"]] == [name]
    told = shell(f"V audit {tmp_path} | LC_ALL=C tr '\\377' '?'", PYTHONIOENCODING=f"utf-8:{errors}")
    assert "odd?.so" in told.stdout and told.returncode == ExitCode.AUDIT
    assert "error: text" not in told.stderr


@pytest.mark.parametrize("columns", ["0", "1", "20", "79"])
def test_a_narrow_terminal_loses_no_word_of_a_table(columns: str) -> None:
    assert shell("V list", COLUMNS=columns).stdout == shell("V list", COLUMNS="80").stdout


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), ExitCode.RESOURCES, "disk is full (/x/y)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.RESOURCES, "vllm-variants gc"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ExitCode.RESOURCES, "Cannot allocate memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), ExitCode.USAGE, "denied (/x)"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), ExitCode.USAGE, "can be written to"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), ExitCode.USAGE, "(5002 letters)"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), ExitCode.MISSING, "(/x)"),
        (RecursionError("maximum recursion depth"), ExitCode.USAGE, "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ExitCode.USAGE, "0xff"),
        (MemoryError(), ExitCode.RESOURCES, "memory ran out"),
    ],
)
def test_whatever_the_system_refuses_is_one_sentence_and_a_code(
    failure: Exception,
    code: ExitCode,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def app(**options: object) -> None:
        raise failure

    monkeypatch.setattr(cli, "application", lambda only: app)

    assert cli._run() == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert says in told.err


def test_a_defect_is_not_hidden_by_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**options: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(cli, "application", lambda only: app)
    with pytest.raises(KeyError):
        cli._run()


def test_a_system_error_has_a_documented_code_whatever_its_number() -> None:
    assert {system_error(OSError(number, "x")).exit_code for number in errno.errorcode} == {
        ExitCode.USAGE,
        ExitCode.MISSING,
        ExitCode.RESOURCES,
    }


def test_a_word_of_thousands_of_letters_is_shortened_and_a_usable_path_is_not() -> None:
    path = "/" + "/".join(["folder"] * 50)
    assert readable(f"there is no {path}") == f"there is no {path}"
    assert readable("a" * 5000) == f"{'a' * 80}…{'a' * 20} (5000 letters)"


def test_a_newline_in_a_name_does_not_break_the_sentence() -> None:
    told = shell("V build $'sm\\n91\\e[31m'")
    assert told.stderr.splitlines()[0] == r"error: there is no variant, capability or GPU 'sm\n91\x1b[31m'"
    assert readable("no\nsuch\x1b[31mfile\x85") == r"no\nsuch\x1b[31mfile\x85"


def ends_when_stopped_at(step: int) -> tuple[object, bool]:
    """What `main` ends in when Ctrl-C comes before its instruction of this number; was there one?"""
    steps = 0

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., object] | None:
        nonlocal steps
        if signal.getsignal(signal.SIGINT) is cli._stop:
            if steps == step:
                sys.settrace(None)
            steps += 1
            if steps == step + 1:
                cli._stop(signal.SIGINT, None)
        frame.f_trace_opcodes = True
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        cli.main()
    except SystemExit as end:
        return end.code, steps > step
    finally:
        sys.settrace(before)
    raise AssertionError("main returned")


def test_ctrl_c_at_any_instruction_of_the_start_and_the_end_is_0_or_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("open_streams", "close_streams", "_run"):
        monkeypatch.setattr(cli, name, lambda *_: 0)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended: list[object] = []
    try:
        for step in itertools.count():
            code, stopped = ends_when_stopped_at(step)
            if not stopped:
                break
            ended.append(code)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(ended) > 50
    assert set(ended) <= {0, 130}


def test_a_signal_right_behind_another_is_the_same_wish(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C and a supervisor's SIGTERM: the second comes when the first is being answered."""
    when_stopped = cli._when_stopped

    def strike(number: signal.Signals) -> None:
        os.kill(os.getpid(), number)
        list(range(9))

    def struck(do: Callable[[int, FrameType | None], None]) -> None:
        strike(signal.SIGTERM)
        when_stopped(do)

    def run() -> int:
        monkeypatch.setattr(cli, "_when_stopped", struck)
        strike(signal.SIGINT)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli, "open_streams", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert end.value.code == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "interrupted: nothing half-done was left behind\n"


def test_ctrl_c_after_the_answer_ends_in_0_or_130() -> None:
    ended = set()
    for wait in range(16):
        command = [sys.executable, "-m", "vllm_variants", "--version"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait * 0.002)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            ended.add(process.returncode)
    assert ended <= {0, 130}


def test_an_installation_that_is_not_whole_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ImportError('No module named typer')")
    told = shell("V list", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    assert (told.returncode, told.stdout) == (ExitCode.MISSING, "")
    assert "this installation is not whole: No module named typer" in told.stderr
    assert "Traceback" not in told.stderr
