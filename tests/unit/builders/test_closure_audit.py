"""The audit of what Nix built: done once, and never taken for another one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))
import source_model

import vllm_variants
from vllm_variants.audit import contents as expectations
from vllm_variants.builders.source import closure_audit
from vllm_variants.errors import AuditError, Error
from vllm_variants.model import matrix, results
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result

ROWS = matrix.load()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "vllm-variants" / "audits"


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(ROWS.parse("sm90").variant, ROWS.default, tmp_path)


@pytest.fixture
def result(tmp_path: Path, request_: Request) -> Result:
    """A result with vLLM's libraries for its SM, as the expectations want them."""
    path = tmp_path / "store" / "abc-vllm"
    known = expectations.load(request_.release.name, request_.variant.system)
    assert known is not None
    for name in known.libraries:
        file = path / "lib/python3.12/site-packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source_model.library(request_.variant.capability))
    facts = {
        "schema": 1,
        "variant": request_.name,
        "short": "sm90",
        "capability": "9.0",
        "system": request_.variant.system,
        "release": request_.release.name,
        "builder": "nix",
    }
    (path / results.MANIFEST).parent.mkdir(parents=True)
    (path / results.MANIFEST).write_text(json.dumps(facts))
    return results.read(path)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Something that the result needs, with a library that was cut off."""
    path = tmp_path / "store" / "def-torch"
    path.mkdir()
    whole = source_model.library(ROWS.parse("sm90").variant.capability)
    (path / "libtorch_cuda.so").write_bytes(whole[:-10])
    return path


def audit(request_: Request, result: Result, *more: Path) -> tuple[Path, list[str]]:
    printed: list[str] = []
    path = closure_audit.audited(request_, result, [result.path, *more], printed.append)
    return path, printed


def test_a_report_is_made_once(request_: Request, result: Result) -> None:
    path, printed = audit(request_, result)
    assert printed == ["sm90: audit: pass for 9.0 in all 1 store paths"]
    assert json.loads(path.read_text())["verdict"] == "pass"
    assert audit(request_, result) == (path, [])


def test_a_narrow_audit_does_not_answer_for_a_wide_one(
    request_: Request, result: Result, broken: Path
) -> None:
    """As of `--via flox` without nix, before `--via nix` links the same output."""
    audit(request_, result)
    with pytest.raises(AuditError, match=r"sm90 is built, but not linked: .*libtorch_cuda.so"):
        audit(request_, result, broken)


def test_other_expectations_are_another_audit(
    request_: Request, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = audit(request_, result)
    root = tmp_path / "data"
    shutil.copytree(closure_audit.data.root() / "expectations", root / "expectations")
    with (root / "expectations" / f"{request_.release.name}.toml").open("a") as file:
        file.write("# another word\n")
    monkeypatch.setattr(closure_audit.data, "root", lambda: root)
    two, printed = audit(request_, result)
    assert one != two
    assert printed


@pytest.mark.parametrize("part", ["audit/report.py", "fatbin/container.py", "model/capability.py"])
def test_other_code_of_the_audit_is_another_audit(tmp_path: Path, part: str) -> None:
    package = Path(vllm_variants.__file__).parent
    copy = tmp_path / "package"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = closure_audit.code_digest(package)
    closure_audit.code_digest.cache_clear()
    assert closure_audit.code_digest(copy) == before, "it depends on where the package lies"
    closure_audit.code_digest.cache_clear()
    (copy / part).write_text((copy / part).read_text() + "# mended\n")
    assert closure_audit.code_digest(copy) != before


@pytest.mark.parametrize("text", ["", "{", '{"verdict": "missing"}', '{"verdict": null}', "[]"])
def test_a_report_that_is_not_whole_and_good_is_made_again(
    request_: Request, result: Result, text: str
) -> None:
    path, _ = audit(request_, result)
    path.write_text(text)
    again, printed = audit(request_, result)
    assert again == path
    assert printed
    assert json.loads(path.read_text())["verdict"] == "pass"


def test_a_closure_without_the_result_is_no_closure(request_: Request, result: Result, broken: Path) -> None:
    with pytest.raises(Error, match=r"Nix does not know what .* needs"):
        closure_audit.audited(request_, result, [broken], lambda text: None)
    with pytest.raises(Error, match=r"Nix does not know what .* needs"):
        closure_audit.audited(request_, result, [], lambda text: None)


def test_an_audit_ends_when_it_may_not_go_on(request_: Request, result: Result, state: Path) -> None:
    def stop(library: str) -> None:
        raise Error("interrupted")

    with pytest.raises(Error, match="interrupted"):
        closure_audit.audited(request_, result, [result.path], lambda text: None, stop)
    assert not state.exists() or list(state.iterdir()) == []
