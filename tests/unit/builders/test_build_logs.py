"""The logs of what is built: one file a derivation, and one handle a build."""

from __future__ import annotations

from pathlib import Path

from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.nix.events import Activity, LogLine, Started, Stopped
from vllm_variants.nix.progress import Tracker


def drv(digit: str, name: str) -> str:
    return f"/nix/store/{digit * 32}-{name}.drv"


def feed(logs: BuildLogs, *events: Started | LogLine | Stopped) -> None:
    tracker = Tracker()
    for event in events:
        logs.take(event, tracker.apply(event))


def started(id: int, path: str, machine: str = "") -> Started:
    return Started(id, Activity.BUILD, "", (path, machine))


def test_two_builds_of_one_name_have_a_log_each(tmp_path: Path) -> None:
    """sm80's torch and sm90's are built at once and are called the same."""
    one, two = drv("a", "python3.12-torch-2.9.1"), drv("b", "python3.12-torch-2.9.1")
    with BuildLogs(tmp_path, {}) as logs:
        feed(logs, started(1, one), started(2, two), LogLine(1, "of one"), LogLine(2, "of two"), Stopped(1))
    assert logs.paths == {
        one: tmp_path / "torch-2.9.1-aaaaaaaa.log",
        two: tmp_path / "torch-2.9.1-bbbbbbbb.log",
    }
    assert [logs.paths[path].read_text() for path in (one, two)] == ["of one\n", "of two\n"]


def test_a_variants_own_build_has_its_short_name(tmp_path: Path) -> None:
    vllm = drv("c", "python3.12-vllm-0.13.0")
    with BuildLogs(tmp_path, {vllm: "sm90"}) as logs:
        feed(logs, started(1, vllm), LogLine(1, "words"))
    assert (tmp_path / "sm90.log").read_text() == "words\n"


def test_a_remote_build_that_is_told_of_twice_is_one_log(tmp_path: Path) -> None:
    """Nix starts an activity for it here, and passes on the one of the machine that builds."""
    vllm = drv("d", "vllm")
    handles = []
    with BuildLogs(tmp_path, {vllm: "sm90"}) as logs:
        tracker = Tracker()
        for event in (started(1, vllm), LogLine(1, "before"), started(2, vllm, "ssh://far")):
            logs.take(event, tracker.apply(event))
            handles.append(logs._open[vllm])
        for event in (LogLine(2, "after"), Stopped(2), LogLine(1, "last"), Stopped(1)):
            logs.take(event, tracker.apply(event))
    assert all(handle is handles[0] for handle in handles), "an open file was dropped"
    assert handles[0].closed
    assert (tmp_path / "sm90.log").read_text() == "before\nafter\nlast\n"


def test_a_second_attempt_goes_on_in_the_same_log(tmp_path: Path) -> None:
    vllm = drv("e", "vllm")
    with BuildLogs(tmp_path, {vllm: "sm90"}) as logs:
        for number in (1, 2):
            feed(logs, started(1, vllm), LogLine(1, f"attempt {number}"), Stopped(1))
    text = (tmp_path / "sm90.log").read_text()
    assert text.startswith("attempt 1\n\n── again, ")
    assert text.endswith(" ──\nattempt 2\n")
