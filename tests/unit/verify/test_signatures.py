"""What checks call becomes data, and what differs from another release is to be looked at."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from validating import require_valid

from vllm_variants import data
from vllm_variants.errors import Error, InputError
from vllm_variants.model import matrix
from vllm_variants.verify import catalogue, signatures
from vllm_variants.verify.catalogue import CHECKS, Check, Support
from vllm_variants.verify.signatures import CalledCheck

EVERYWHERE, NOWHERE = Support(None, frozenset()), Support(frozenset(), frozenset())
SCHEMA = "_C::f(Tensor x) -> ()"


def a_check(name: str, support: Support = EVERYWHERE) -> Check:
    return Check(name, "script", "it works", 60, 1, support)


def row(name: str, status: str = "called", **more: Any) -> dict[str, Any]:
    operators = {"_C::f": {"schema": SCHEMA, "arguments": ["x"]}}
    return {"check": name, "status": status, "operators": operators, "callables": {}, **more}


def interpreter(tmp_path: Path, lines: list[object], status: int = 0) -> Path:
    """A program that answers as a release's Python would."""
    path = tmp_path / "python"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho its last words >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_what_was_called_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    rows: list[object] = [row("a", callables={"vllm.f": ["x"]}), row("b", "absent", reason="gone")]
    called = signatures.record(interpreter(tmp_path, rows), [a_check("a"), a_check("b")])
    document = signatures.document("0.34.0", called)
    require_valid(document)
    assert document["checks"] == rows
    (tmp_path / "record.json").write_text(json.dumps(document))
    assert signatures.read(tmp_path / "record.json") == called


def test_a_process_that_dies_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    python = interpreter(tmp_path, [row("a")], 3)
    with pytest.raises(Error, match="status 3 after 1 of 2; its last words: its last words"):
        signatures.record(python, [a_check("a"), a_check("b")])


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"check": "a", "status": "fine"}'])
def test_what_is_no_record_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(Error, match="cannot be read"):
        signatures.record(interpreter(tmp_path, [line]), [a_check("a")])
    (tmp_path / "record.json").write_text(line)
    with pytest.raises(InputError, match=r"record\.json is no record of signatures"):
        signatures.read(tmp_path / "record.json")


def looks(now: dict[str, Any], before: dict[str, Any] | None = None, support: Support = EVERYWHERE) -> str:
    found = signatures.to_look_at(
        "0.34.0",
        [a_check("a", support)],
        [CalledCheck.parse(now)],
        [CalledCheck.parse(before)] if before else [],
        ["sm90"],
    )
    return "; ".join(look.reason for look in found)


def test_a_refused_call_is_to_be_looked_at() -> None:
    assert looks(row("a", "refused", reason="TypeError: f() takes 2")) == "TypeError: f() takes 2"


def test_an_absent_kernel_is_to_be_looked_at_only_where_the_catalogue_wants_it() -> None:
    assert looks(row("a", "absent", reason="gone")) == "gone; catalogue.toml wants it on sm90"
    assert looks(row("a", "absent", reason="gone"), support=NOWHERE) == ""


def test_a_declaration_that_changed_is_to_be_looked_at() -> None:
    other = row("a", operators={"_C::f": {"schema": "_C::f(Tensor x, int y=0) -> ()", "arguments": ["x"]}})
    assert looks(other, row("a")) == "_C::f is declared otherwise"
    assert looks(row("a", operators={}), row("a")) == "_C::f is not called any more"
    assert looks(row("a"), row("a", operators={})) == "_C::f is called anew"
    assert looks(row("a", callables={"vllm.f": ["x", "y"]}), row("a", callables={"vllm.f": ["x"]})) == (
        "vllm.f() is declared otherwise"
    )
    assert looks(row("a"), row("a")) == ""


NEEDS_A_DRIVER = """
import ctypes, runpy, sys
no_driver = runpy.run_path({script!r})
no_driver["stand_in"]()
ctypes.CDLL("libcuda.so.1")   # found by its name, as the loader looks for what libraries need
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no wheel of vLLM is for it")
def test_the_loader_takes_the_stand_in_for_the_driver() -> None:
    script = NEEDS_A_DRIVER.format(script=str(CHECKS / "no_driver.py"))
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


RECORDS = sorted((data.root() / "signatures").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_of_a_release_is_whole_and_no_call_of_it_was_refused(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    require_valid(document)
    assert document["release"] == path.stem
    called = signatures.read(path)
    assert [check.name for check in called] == [check.name for check in catalogue.read()]
    assert [check.name for check in called if check.status == "refused"] == []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_a_release_has_not_got_the_catalogue_wants_on_no_card(path: Path) -> None:
    absent = {check.name for check in signatures.read(path) if check.status == "absent"}
    sms = {variant.capability.sm for variant in matrix.load().every_variant}
    for check in catalogue.read():
        if check.name in absent:
            assert "ok" not in {check.expected(path.stem, sm) for sm in sms}, check.name
