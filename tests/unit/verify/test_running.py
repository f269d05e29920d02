"""Checks run in processes of their own: what any one of them does, the others are not touched."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in

from vllm_variants.errors import UsageError
from vllm_variants.system import process
from vllm_variants.verify import check_process, running
from vllm_variants.verify.catalogue import Check, Support

ANYWHERE = Support(None, frozenset())


def check(name: str, limit: float = 20.0, gpus: int = 1) -> Check:
    return Check(name, "norms", "what it proves", limit, gpus, ANYWHERE)


def alive(group: int) -> list[str]:
    """The processes of a group that still run; a dead one that nobody has collected does not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def outcomes(
    tmp_path: Path, behaviour: dict[str, Any], checks: list[Check], **options: Any
) -> list[running.CheckOutcome]:
    result = stand_in.make(tmp_path / "result", behaviour)
    checked = check_process.CheckedResult(result / "bin" / "python", {"vllm": "0.13.0"}, ("GPU-a", "GPU-b"))
    return list(running.run(checked, checks, running.RunOptions(7, **options)))


def test_an_answer_is_passed_on_as_it_is(tmp_path: Path) -> None:
    (found,) = outcomes(tmp_path, {}, [check("norm.rms_norm")])
    assert found["status"] == "ok"
    assert (found["error"], found["tolerance"], found["image"]) == (1e-4, 1e-3, "sm_90")
    assert found["cases"][0]["digest"] == "d" * 32


def test_the_interpreter_gets_name_seed_facts_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    outcomes(tmp_path, {}, [check("norm.rms_norm"), check("all_reduce.custom", gpus=2)])
    one, two = sorted(stand_in.seen(tmp_path / "result"), key=lambda each: each["check"], reverse=True)
    assert (one["check"], one["seed"], one["facts"]) == ("norm.rms_norm", "7", {"vllm": "0.13.0"})
    assert (one["devices"], two["devices"]) == ("GPU-a", "GPU-a,GPU-b")
    assert one["pythonpath"] is None
    assert one["cache"] == two["cache"]
    assert not Path(one["cache"]).exists(), "the driver's cache of a run ends with it"


@pytest.mark.parametrize("native", [True, False])
def test_only_a_native_result_runs_without_the_drivers_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.delenv("CUDA_DISABLE_PTX_JIT", raising=False)
    result = stand_in.make(tmp_path / "result")
    checked = check_process.CheckedResult(result / "bin" / "python", native=native)
    list(running.run(checked, [check("norm.rms_norm")], running.RunOptions(1)))
    (call,) = stand_in.seen(result)
    assert call["jit"] == ("1" if native else None)


def test_a_check_of_what_always_compiles_may_do_so_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_DISABLE_PTX_JIT", raising=False)
    result = stand_in.make(tmp_path / "result")
    checked = check_process.CheckedResult(result / "bin" / "python", native=True)
    compiling = replace(check("torch.fourier"), compiles="PTX among its own tables")
    (outcome,) = running.run(checked, [compiling], running.RunOptions(1))
    (call,) = stand_in.seen(result)
    assert call["jit"] is None
    assert outcome["compiles"] == "PTX among its own tables"


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("crash", "its process crashed (SIGSEGV); its last words: about to touch what it should not"),
        ("garbage", "it printed something that is no outcome: 'Segmentation fault? (no JSON here)'"),
        ("list", "it printed '[1, 2]'"),
        ("silence", "its process ended with status 3 and without an outcome"),
        ("another", "it answered with something that is no outcome"),
        ("dies loading", "while it was loading, its process ended with status 1"),
        ("cannot load", "its imports fail: no torch"),
        ("nonsense", "it answered with something that is no outcome"),
    ],
)
def test_misbehaviour_is_a_failure_in_a_sentence_and_the_next_check_runs(
    tmp_path: Path, does: str, says: str
) -> None:
    found = outcomes(tmp_path, {"bad.one": {"does": does}}, [check("bad.one"), check("good.one")])
    assert [each["check"] for each in found] == ["bad.one", "good.one"]
    assert found[0]["status"] == "failed"
    assert says in found[0]["reason"]
    assert found[1]["status"] == "ok"


def test_a_hanging_check_is_ended_at_its_limit_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    found = outcomes(tmp_path, {"bad.one": {"does": "hang"}}, [check("bad.one", 1.0), check("good.one")])
    assert time.monotonic() - started < 15
    assert found[0]["reason"] == "it did not answer within 1 seconds"
    assert found[1]["status"] == "ok"
    assert not any(alive(each["pid"]) for each in stand_in.seen(tmp_path / "result"))


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("closes its output", "it closed its output without an outcome, and goes on"),
        ("prints blank lines", "it did not answer within 2 seconds"),
    ],
)
def test_a_limit_holds_whatever_a_check_does_with_its_output(tmp_path: Path, does: str, says: str) -> None:
    started = time.monotonic()
    found = outcomes(tmp_path, {"bad.one": {"does": does}}, [check("bad.one", 2.0), check("good.one")])
    assert time.monotonic() - started < 8
    assert found[0]["reason"] == says
    assert found[1]["status"] == "ok"
    assert not any(alive(each["pid"]) for each in stand_in.seen(tmp_path / "result"))


def test_a_line_without_an_end_is_no_outcome(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path, {"bad.one": {"does": "prints one line"}}, [check("bad.one", 20.0), check("good.one")]
    )
    assert found[0]["reason"].startswith("it printed something that is no outcome: 'xxxx")
    assert found[1]["status"] == "ok"


def test_a_process_that_sigkill_does_not_end_holds_nobody_up_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits in the driver of a GPU that has fallen off the bus."""
    real = os.killpg
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    started = time.monotonic()
    try:
        found = outcomes(tmp_path, {"bad.one": {"does": "hang"}}, [check("bad.one", 1.0), check("good.one")])
        assert time.monotonic() - started < 1 + 4 * process.GONE + 5
    finally:
        for each in stand_in.seen(tmp_path / "result"):
            with contextlib.suppress(ProcessLookupError):
                real(each["pid"], signal.SIGKILL)
    assert found[0]["reason"] == f"it did not answer within 1 seconds; {running.STUCK}"
    assert found[1]["status"] == "ok"


def test_an_interruption_does_not_wait_for_the_answer_of_a_stuck_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = stand_in.make(tmp_path / "result", {"bad.one": {"does": "hang"}})
    checked = check_process.CheckedResult(result / "bin" / "python")
    started = check_process.CheckProcess(checked, check("bad.one"), 1, tmp_path, tmp_path / "log", 1)
    assert started.answer(20) == {"event": "ready", "seconds": 0.1}
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda group, number: None)
        threading.Timer(0.3, started.stop).start()
        before = time.monotonic()
        assert started.answer(60) == "it was stopped"
        assert time.monotonic() - before < 5
    assert started.stop()


PARENT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from vllm_variants.verify import check_process, running
from vllm_variants.verify.catalogue import Check, Support
checks = [Check(f"some.check{{n}}", "norms", "…", 60.0, 1, Support(None, frozenset())) for n in range(4)]
checked = check_process.CheckedResult(Path({python!r}))
print(list(running.run(checked, checks, running.RunOptions(1, ahead=2))))
"""


def test_kill_9_of_the_run_ends_every_check_and_what_it_started(tmp_path: Path) -> None:
    result = stand_in.make(tmp_path / "result", {"*": {"does": "hang"}})
    path = [str(Path(running.__file__).parents[2])]
    script = PARENT.format(path=path, python=str(result / "bin" / "python"))
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        groups = [each["pid"] for each in stand_in.seen(result)]
        if len(groups) == 3 and any(len(alive(group)) == 2 for group in groups):
            break  # the first one has its turn and has forked, two load
        time.sleep(0.05)
    else:
        pytest.fail("the checks did not start")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 2
    while any(map(alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, groups)), "a check outlives the run"


def test_a_file_in_the_place_of_the_logs_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    for folder in (tmp_path / "logs", tmp_path / "logs" / "below"):
        with pytest.raises(UsageError, match=f"the logs cannot go to {folder}: .*/logs.* is not a folder"):
            outcomes(tmp_path / f"for {folder.name}", {}, [check("a.a")], logs=folder)


def test_an_interpreter_that_does_not_come_down_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ENDING", 0.5)
    found = outcomes(
        tmp_path, {"slow.one": {"does": "ok", "lingers": True}}, [check("slow.one"), check("b.c")]
    )
    assert [each["status"] for each in found] == ["ok", "ok"]


def test_a_limit_begins_with_the_turn_and_not_with_the_start(tmp_path: Path) -> None:
    """Two checks take a second each; the second one waits longer than its own limit and passes."""
    names = [f"some.check{number}" for number in range(4)]
    checks = [check(name, limit=6.0) for name in names]
    found = outcomes(tmp_path, {}, checks, ahead=3)
    assert [each["check"] for each in found] == names
    assert all(each["status"] == "ok" for each in found)


def test_nothing_outlives_an_interrupted_run(tmp_path: Path) -> None:
    result = stand_in.make(tmp_path / "result")
    checked = check_process.CheckedResult(result / "bin" / "python")
    run = running.run(checked, [check(f"some.check{n}") for n in range(5)], running.RunOptions(1, ahead=3))
    next(run)
    run.close()
    assert not any(alive(each["pid"]) for each in stand_in.seen(result))


def test_a_missing_interpreter_fails_every_check_in_order(tmp_path: Path) -> None:
    checked = check_process.CheckedResult(tmp_path / "nowhere" / "python")
    found = list(running.run(checked, [check("a.a"), check("b.b")], running.RunOptions(1)))
    assert [each["check"] for each in found] == ["a.a", "b.b"]
    assert all("does not start: No such file" in each["reason"] for each in found)


def test_logs_are_kept_on_request_and_named_where_a_check_failed(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    found = outcomes(
        tmp_path, {"bad.one": {"does": "crash"}}, [check("bad.one"), check("good.one")], logs=logs
    )
    assert found[0]["log"] == str(logs / "bad.one.log")
    assert "about to touch" in (logs / "bad.one.log").read_text()
    assert "log" not in found[1]


def test_several_together_are_all_answered_and_a_bad_one_fails_alone(tmp_path: Path) -> None:
    names = [f"some.check{n}" for n in range(9)]
    behaviour = {"some.check4": {"does": "crash"}, "some.check7": {"does": "hang"}}
    checks = [check(name, limit=2.0) for name in names]
    started = time.monotonic()
    found = outcomes(tmp_path, behaviour, checks, together=4, ahead=2)
    assert time.monotonic() - started < 15
    assert sorted(each["check"] for each in found) == names
    bad = {each["check"] for each in found if each["status"] == "failed"}
    assert bad == {"some.check4", "some.check7"}
    assert all(each["together"] == 4 for each in found)


def test_the_longest_start_first_when_several_run_together(tmp_path: Path) -> None:
    checks = [check("short.one", 10), check("long.one", 60), check("middle.one", 30)]
    outcomes(tmp_path, {}, checks, together=2, ahead=1)
    started = sorted(stand_in.seen(tmp_path / "result"), key=lambda each: each["pid"])
    first_two, last = (
        {each["check"] for each in started[:2]},
        started[2]["check"],
    )  # two start at the same moment
    assert (first_two, last) == ({"long.one", "middle.one"}, "short.one")


@pytest.mark.parametrize("together", [1, 3])
def test_the_end_of_the_time_skips_what_is_left(tmp_path: Path, together: int) -> None:
    checks = [check("slow.one", 60), check("late.one", 20), check("later.one", 20)]
    behaviour = {name: {"does": "hang"} for name in ("slow.one", "late.one", "later.one")}
    started = time.monotonic()
    found = outcomes(tmp_path, behaviour, checks, time=1.5, together=together)
    assert time.monotonic() - started < 10
    assert [each["status"] for each in found] == ["skipped"] * 3
    assert {each["reason"] for each in found} == {"the time of the whole run was over"}
    assert not any(alive(each["pid"]) for each in stand_in.seen(tmp_path / "result"))


def test_a_check_of_two_cards_runs_alone_and_after_those_that_share_one(tmp_path: Path) -> None:
    checks = [check("two.cards", 90, gpus=2), *(check(f"one.{number}") for number in range(4))]
    found = outcomes(tmp_path, {"*": {"does": "ok", "wait": 0.2}}, checks, together=4, ahead=5)
    turns = {turn["check"]: turn for turn in stand_in.turns(tmp_path / "result")}
    assert max(turns[f"one.{number}"]["ended"] for number in range(4)) <= turns["two.cards"]["began"]
    by_name = {outcome["check"]: outcome for outcome in found}
    assert by_name["two.cards"]["cards"] == 2
    assert "together" not in by_name["two.cards"]
    assert by_name["one.0"]["together"] == 4


def test_a_check_gets_no_more_cards_than_it_can_use(tmp_path: Path) -> None:
    three = ("0", "1", "2")
    most = replace(check("more.cards", gpus=2), most_gpus=8)
    assert most.share(three) == three
    assert check("two.cards", gpus=2).share(three) == ("0", "1")
    assert most.share(three[:1]) == ()


def test_a_check_of_more_cards_than_there_are_is_skipped_without_a_process(tmp_path: Path) -> None:
    (found,) = outcomes(tmp_path, {}, [check("three.cards", gpus=3)])
    assert (found["status"], found["reason"]) == (
        "skipped",
        "it needs 3 cards that the result fits, and there are 2",
    )
    assert not stand_in.seen(tmp_path / "result")


def test_no_check_may_use_multicast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    result = check_process.CheckedResult(tmp_path / "python", gpus=("0", "1"))
    environment = result.environment(tmp_path, check("all_reduce.custom", gpus=2))
    assert environment["NCCL_NVLS_ENABLE"] == "0"
    assert environment["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
    assert environment["VLLM_ALLREDUCE_USE_SYMM_MEM"] == "0"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
