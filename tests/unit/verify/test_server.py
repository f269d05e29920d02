"""`vllm serve` from its start to its end, as the check serve.openai drives it; the program is a stand-in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import server_stand_in

from vllm_variants.checks import server
from vllm_variants.checks.server import Server, ServerError

COMPLETIONS = {"w5 w6": "w7 w8 w9", "w3": "w4 w5 w6"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def serve(home: Path, *options: str, **behaviour: Any) -> Server:
    program = server_stand_in.make(home.parent / "bin", **{"completions": COMPLETIONS, **behaviour})
    return Server(program, home.parent / "model", home, options)


def running(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(home: Path) -> bool:
    """Whether the server and its child are gone, at the latest in two seconds."""
    deadline = time.monotonic() + 2
    pids = server_stand_in.started(home.parent / "bin")["pids"]
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(running, pids))


def test_a_server_becomes_healthy_streams_completes_and_ends_with_what_it_started(home: Path) -> None:
    with serve(home) as process:
        assert 0 < process.wait_until_healthy(20) < 20
        assert 0 < process.first_token("w3") < 20
        assert process.complete("w5 w6", 2) == "w7 w8"
    assert ended(home)


def test_it_starts_as_a_person_starts_it_but_on_a_free_port_and_with_an_empty_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_CACHE_PATH", "/warm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/warm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("CUDA_DISABLE_PTX_JIT", "1")
    with serve(home, "--seed", "1") as process:
        process.wait_until_healthy(20)
    started = server_stand_in.started(home.parent / "bin")
    command, model, host, address, *_, option, value = started["arguments"]
    assert (command, model, host, address) == ("serve", str(home.parent / "model"), "--host", "127.0.0.1")
    assert (option, value) == ("--seed", "1")
    assert started["environment"] == {
        "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": None, "CUDA_CACHE_PATH": None,
        "VLLM_ENABLE_V1_MULTIPROCESSING": None, "CUDA_DISABLE_PTX_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def test_what_the_server_prints_goes_to_stderr(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(home, prints="INFO ready to serve") as process:
        process.wait_until_healthy(20)
    assert "INFO ready to serve" in capfd.readouterr().err


CAUSE = """\
(EngineCore_DP0 pid=7) ERROR 11-24 [core.py:842] RuntimeError: CUDA error: out of memory
(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.
"""
FORBIDDEN = """\
(EngineCore_DP0 pid=7) ValueError: something else
(EngineCore_DP0 pid=7) torch.AcceleratorError: CUDA error: PTX JIT compilation was disabled
"""


@pytest.mark.parametrize(
    ("prints", "problem"),
    [
        (CAUSE, "RuntimeError: CUDA error: out of memory"),
        (FORBIDDEN, "PTX JIT compilation was disabled"),
        ("usage: vllm serve", "usage: vllm serve"),
    ],
)
def test_a_server_that_ends_early_is_told_with_its_cause(home: Path, prints: str, problem: str) -> None:
    with (
        pytest.raises(ServerError, match="vllm serve ended with status 3: ") as error,
        serve(home, exits=3, prints=prints) as process,
    ):
        process.wait_until_healthy(20)
    assert problem in str(error.value)


def test_a_server_that_is_never_healthy_is_ended(home: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"/health did not answer within 1 seconds: INFO starting"),
        serve(home, hangs=True) as process,
    ):
        process.wait_until_healthy(1)
    assert ended(home)


def test_a_server_that_does_not_end_by_itself_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ENDING", 0.3)
    with serve(home, **{"ignores SIGTERM": True}) as process:
        process.wait_until_healthy(20)
    assert ended(home)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((500, "EngineDeadError"), "/v1/completions answered 500: EngineDeadError"),
        ((200, "no JSON"), "/v1/completions answered with no completion: b'no JSON'"),
        ((200, json.dumps({"choices": []})), "/v1/completions answered with no completion"),
    ],
)
def test_an_answer_that_is_no_completion_is_told(home: Path, answer: tuple[int, str], problem: str) -> None:
    with serve(home, **{"answers with": answer}) as process:
        process.wait_until_healthy(20)
        with pytest.raises(ServerError) as error:
            process.complete("w3", 2)
    assert problem in str(error.value)


def test_a_stream_without_a_token_is_told(home: Path) -> None:
    with serve(home, **{"streams nothing": True}) as process:
        process.wait_until_healthy(20)
        with pytest.raises(ServerError, match="the stream ended without a token"):
            process.first_token("w3")


def test_a_server_that_is_gone_gives_no_answer(home: Path) -> None:
    with serve(home) as process:
        process.wait_until_healthy(20)
        process.stop()
        with pytest.raises(ServerError, match="/v1/completions gave no answer: ConnectionRefusedError"):
            process.complete("w3", 2)


def test_a_program_that_is_not_there_is_a_sentence(home: Path) -> None:
    with pytest.raises(ServerError, match="nowhere does not start: No such file or directory"):
        Server(home / "nowhere", home / "model", home)
