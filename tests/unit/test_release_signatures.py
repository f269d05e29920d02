"""`release add`, the step that tries what the GPU checks call: its record, and what a person must look at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from validating import require_valid

from vllm_variants.maintain import releases
from vllm_variants.model import matrix
from vllm_variants.verify import catalogue, signatures
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.signatures import CalledCheck

ROWS = matrix.load()
NEW = replace(ROWS.newest_first[0], name="99.0.0")
BEFORE = ROWS.newest_first[0].name
CALL = {"_C::rms_norm": ("result", "input", "weight", "epsilon")}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the newest release's record; installing takes no time, and no network."""
    earlier = [_called(check, "_C::rms_norm(Tensor! result, Tensor input) -> ()") for check in _checks()]
    (tmp_path / "signatures").mkdir()
    text = json.dumps(signatures.document(BEFORE, earlier))
    (tmp_path / "signatures" / f"{BEFORE}.json").write_text(text)
    monkeypatch.setattr(releases.installation, "environment", lambda folder, interpreter: None)
    monkeypatch.setattr(releases.installation, "sync", lambda folder, lock, files, index: None)
    return tmp_path


def _checks() -> list[Check]:
    return list(catalogue.read())


def _called(check: Check, schema: str, status: str = "called", reason: str = "") -> CalledCheck:
    return CalledCheck(check.name, status, reason, {"_C::rms_norm": schema}, dict(CALL))


def test_what_was_called_is_recorded_and_what_changed_is_to_be_looked_at(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def record(python: Path, checks: list[Check]) -> list[CalledCheck]:
        asked.append(python)
        same = "_C::rms_norm(Tensor! result, Tensor input) -> ()"
        found = [_called(check, same) for check in checks]
        by_name = {each.name: n for n, each in enumerate(found)}
        other = "_C::rms_norm(Tensor! result, Tensor input, Tensor weight) -> ()"
        changed, refused = by_name["norm.rms_norm"], by_name["moe.sum"]
        found[changed] = _called(checks[changed], other)
        found[refused] = _called(checks[refused], same, "refused", "TypeError: moe_sum() takes another")
        return found

    monkeypatch.setattr(releases.signatures, "record", record)
    said: list[str] = []
    called, looks = releases._signatures(copy, ROWS, NEW, said.append)
    assert [python.name for python in asked] == ["python"]
    assert {look.check for look in looks} == {"norm.rms_norm", "moe.sum"}
    assert any("moe_sum() takes another" in look.reason for look in looks)
    written = json.loads((copy / "signatures" / "99.0.0.json").read_text())
    require_valid(written)
    assert [check["check"] for check in written["checks"]] == [check.name for check in _checks()]
    assert len(called) == len(_checks())
    assert said[-1] == f"calling {len(_checks())} checks without a GPU …"


def test_without_an_earlier_record_nothing_counts_as_changed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "signatures" / f"{BEFORE}.json").unlink()
    monkeypatch.setattr(
        releases.signatures,
        "record",
        lambda python, checks: [_called(check, "_C::rms_norm() -> ()") for check in checks],
    )
    _, looks = releases._signatures(copy, ROWS, NEW, lambda line: None)
    assert looks == ()
