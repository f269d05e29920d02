"""Nix's internal-json log as typed events: recorded logs, other Nixes' forms, anything at all."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.nix.events import (
    Activity,
    Event,
    Expected,
    LogLine,
    Message,
    Phase,
    Progress,
    Started,
    Stopped,
    parse,
)

LOGS = Path(__file__).parent / "logs"


def events(name: str) -> list[Event]:
    lines = (LOGS / name).read_text(encoding="utf-8").splitlines()
    return [event for event in map(parse, lines) if event]


def test_every_recorded_line_of_a_build_is_understood() -> None:
    unknown = [
        line
        for path in LOGS.glob("*.jsonl")
        if path.name != "other-nixes.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines()
        if parse(line) is None
    ]
    assert unknown == []


def test_a_build_names_its_derivation_and_machine() -> None:
    started = [e for e in events("remote.jsonl") if isinstance(e, Started) and e.kind is Activity.BUILD]
    machines = {event.fields[1] for event in started if "sm70-0.13.0" in str(event.fields[0])}
    assert "ssh-ng://farm" in machines


def test_phases_and_lines_belong_to_a_build() -> None:
    seen = events("built.jsonl")
    (vllm,) = [
        e.id
        for e in seen
        if isinstance(e, Started) and e.kind is Activity.BUILD and "sm90-0.13.0" in str(e.fields[0])
    ]
    assert Phase(vllm, "buildPhase") in seen
    assert LogLine(vllm, "[12/12] Building CUDA object CMakeFiles/_C.dir/csrc/kernel_12.cu.o") in seen


def test_a_download_counts_its_bytes() -> None:
    seen = events("fetched.jsonl")
    (copy,) = [e.id for e in seen if isinstance(e, Started) and e.kind is Activity.COPY_PATH]
    assert [e.done for e in seen if isinstance(e, Progress) and e.id == copy] == [8192, 16384, 24576, 32768]
    assert max(e.amount for e in seen if isinstance(e, Expected) and e.kind is Activity.COPY_PATH) == 38024


def test_errors_come_without_colours() -> None:
    errors = [e.text for e in events("missing-feature.jsonl") if isinstance(e, Message) and e.is_error]
    assert len(errors) == 1
    assert "with features {big-parallel} is required to build" in errors[0]
    assert "\x1b" not in errors[0]


def test_other_nixes_lines_are_passed_over_and_known_ones_kept() -> None:
    seen = events("other-nixes.jsonl")
    assert Started(1, Activity.UNKNOWN, "fetching Git repository 'ssh://host/repository'", ()) in seen
    assert Message(3, "a line of ssh's own") in seen
    assert any(isinstance(e, Message) and e.is_error and "Cannot build" in e.text for e in seen)
    assert LogLine(7, "[3/406] Building CUDA object") in seen
    assert Stopped(7) in seen
    assert not any(isinstance(e, Progress) for e in seen)


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    parse(text)
    parse(f"@nix {text}")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_known = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["start", "stop", "result", "msg", "other"]),
        "id": st.integers() | _json,
        "type": st.sampled_from([0, 100, 101, 104, 105, 106, 107, 108, 109, 110]) | _json,
        "fields": st.lists(_json) | _json,
        "level": _json,
        "msg": _json,
        "text": _json,
    },
)


@given(_known)
def test_no_json_is_too_strange(facts: object) -> None:
    parse(f"@nix {json.dumps(facts)}")
