"""JSON as an interface: what the command line prints and writes is what the schemas say, and no more."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_in
import toy_index
from jsonschema import Draft202012Validator
from making import cubin, library, ptx, section
from validating import at, places, require_closed, require_valid

from vllm_variants import data, documents
from vllm_variants.cli import app
from vllm_variants.errors import MissingError, UsageError
from vllm_variants.machine import interpreters
from vllm_variants.maintain import tool_locks
from vllm_variants.model import matrix
from vllm_variants.model.results import MANIFEST, SCHEMA
from vllm_variants.store import Store

MACHINES = sorted((Path(__file__).parents[1] / "machines").glob("*.json"))
CONSTANTS = {value for name, value in vars(documents).items() if name.isupper()}
CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_90a", 9000)], [cubin("sm_80", 90_000), ptx("compute_80", 5000)]
)
FEW = ("--only", "norm.rms_norm", "--only", "machete.gptq_4bit", "--only", "moe.sum", "--seed", "7")
BEHAVIOUR = {
    "machete.gptq_4bit": {"does": "unsupported", "outcome": {"reason": "not here"}},
    "moe.sum": {"does": "crash"},
}


class Commands:
    """The command line in this process, in a folder of its own."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def text(self, *words: object) -> str:
        """What a command prints on stdout, however it ends."""
        self._captured.readouterr()
        try:
            app([*map(str, words)], standalone_mode=False)
        except Exception as error:
            assert hasattr(error, "exit_code"), error
        except SystemExit:
            pass
        return self._captured.readouterr().out

    def document(self, *words: object) -> dict[str, Any]:
        """The JSON document that a command prints; it is held to its schema."""
        document: dict[str, Any] = json.loads(self.text(*words, "--json"))
        require_valid(document)
        require_closed(document)
        return document


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(MACHINES[0].with_name("h100.json")))
    return Commands(capsys)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a library of each kind: good, damaged, and with code in a section of tables."""
    packages = tmp_path / "tree" / "vllm"
    packages.mkdir(parents=True)
    library(packages / "_C.abi3.so", CODE)
    library(packages / "lib.so", CODE, more={".cask_resource": section([cubin("sm_75", 900)])})
    broken = library(packages / "broken.so", CODE).read_bytes()
    (packages / "broken.so").write_bytes(broken.replace(b"\x50\xed\x55\xba\x01", b"\x50\xed\x55\xba\x07", 1))
    return tmp_path / "tree"


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index of toys for `build`, with the schemas where they are looked for."""
    try:
        interpreters.find(matrix.load().default.stack.python)
    except MissingError as absent:
        pytest.skip(f"a build needs an interpreter: {absent.message}")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "schemas").symlink_to(data.root() / "schemas")
    toy_index.make(tmp_path / "index", monkeypatch)


# ── the schemas themselves ──


def test_every_document_is_described_and_every_description_is_of_a_document() -> None:
    assert set(documents.names()) == CONSTANTS


@pytest.mark.parametrize("name", documents.names())
def test_a_schema_is_one_and_whole_in_itself(name: str) -> None:
    schema = documents.schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == name.removeprefix("vllm-variants/").replace("/", "-") + ".json"
    assert schema["title"] and schema["description"]
    if name != documents.MANIFEST:
        assert schema["properties"]["schema"] == {"const": name}
        assert "schema" in schema["required"]
    held = {schema["$id"], *schema.get("$defs", {})}
    assert set(documents._references(schema)) <= held


def test_the_page_on_json_names_every_document() -> None:
    root = data.checkout() or pytest.skip("docs are in a checkout")
    page = (root / "docs" / "json.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| \[`([^`]+)`\]\(\.\./schemas/([^)]+)\)", page, flags=re.MULTILINE))
    assert named == {
        (f"vllm-variants/{n}", f"{n.replace('/', '-')}.json")
        for n in (name.removeprefix("vllm-variants/") for name in documents.names())
    }


def test_a_name_that_no_document_has_is_refused() -> None:
    with pytest.raises(UsageError, match="no document is called 'vllm-variants/audit/0'"):
        documents.schema("vllm-variants/audit/0")


# ── what the command line prints ──


def test_the_matrix(commands: Commands) -> None:
    assert commands.document("list")["schema"] == documents.LIST


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_every_recorded_machine(commands: Commands, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(machine))
    assert commands.document("detect")["schema"] == documents.DETECT


def test_audits(commands: Commands, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = commands.document("audit", tree, "--sm", "sm90")
    assert judged["schema"] == documents.AUDIT
    assert judged["verdict"] == "missing", "a file is broken"
    assert {"native", "jit"} <= judged["libraries"][0]["fits"].keys()
    assert judged["libraries"][0]["jit"] and judged["libraries"][2]["elsewhere"]
    here = commands.document("audit", tree)
    assert (here["capability"], here["driver"], here["kind"]) == ("9.0", "580.82.07", "folder")
    monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(MACHINES[0].with_name("no-gpu.json")))
    assert commands.document("audit", tree)["capability"] is None
    both = commands.document("audit", tree, tree / "vllm" / "_C.abi3.so", "--sm", "sm89")
    assert both["schema"] == documents.AUDITS


def test_an_audit_for_every_sm(commands: Commands, tree: Path) -> None:
    matrix = commands.document("audit", tree, "--all-sms")
    assert matrix["schema"] == documents.AUDIT_MATRIX
    cells = {library["path"]: library["fits"] for library in matrix["libraries"]}
    assert cells["vllm/_C.abi3.so"]["sm90"]["fit"] == "jit" and cells["vllm/broken.so"] == {}
    assert {answer["word"] for answer in matrix["answers"].values()} == {"no"}, "a file is broken"


def test_the_reasons_of_an_audit(commands: Commands, tree: Path) -> None:
    why = commands.document("audit", "--why", "--sm", "sm75", "--sm", "sm90", tree)
    assert why["schema"] == documents.AUDIT_WHY
    assert why["libraries"][0]["sets"][0]["runs"] is None
    assert [library["device"] for library in why["libraries"][:2]] == ["7.5", "9.0"]


def test_slimmed_libraries_and_trees(commands: Commands, tree: Path, tmp_path: Path) -> None:
    one = commands.document("slim", tree / "vllm" / "_C.abi3.so", "--sm", "sm90", "-o", tmp_path / "new.so")
    assert one["schema"] == documents.SLIM
    assert one["files"][0]["dropped_images"] > 0
    whole = commands.document("slim", tree, "--sm", "sm90", "-o", tmp_path / "out")
    assert [file["path"] for file in whole["files"] if file["kept"]] == ["vllm/broken.so"]


def test_builds_and_all_that_they_leave(commands: Commands, toys: None, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    built = commands.document("build", "sm90", "sm90-arm64", "--jsonl", lines)
    assert built["schema"] == documents.BUILD
    assert [outcome["status"] for outcome in built["outcomes"]] == ["built", "failed"]
    for line in lines.read_text().splitlines():
        require_valid(json.loads(line), documents.OUTCOME)
    share = Path(built["outcomes"][0]["path"]) / MANIFEST.parent
    manifest = json.loads((share / "manifest.json").read_text())
    require_valid(manifest, documents.MANIFEST)
    assert manifest["schema"] == SCHEMA
    steps = ["install", "files", "slim", "records", "bytecode", "audit"]
    assert [(step["name"], step["status"]) for step in manifest["steps"]] == [(name, "ran") for name in steps]
    require_valid(json.loads((share / "slim.json").read_text()), documents.SLIM)
    require_valid(json.loads((share / "audit.json").read_text()), documents.AUDIT)

    plain = commands.document("build", "sm80", "--no-slim")
    steps = {step["name"]: step["status"] for step in plain["outcomes"][0]["manifest"]["steps"]}
    assert {name for name, status in steps.items() if status == "skipped"} == {"files", "slim", "records"}
    (Path(plain["outcomes"][0]["path"]) / MANIFEST).write_text("{}")
    results = commands.document("list", "--results")
    assert results["schema"] == documents.RESULTS
    assert sorted(result["manifest"] is None for result in results["results"]) == [False, True]
    Path(built["outcomes"][0]["link"]).unlink()
    (Store.default().root / "store" / "notes").write_text("mine")
    collected = commands.document("gc")
    assert collected["schema"] == documents.GC
    assert len(collected["removed"]) == 1 and len(collected["kept"]) == 2


def test_what_a_dry_run_would_slim(commands: Commands, tree: Path) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*.so")}
    planned = commands.document("slim", tree, "--sm", "sm90", "--dry-run", "--native")
    assert planned["schema"] == documents.SLIM
    assert planned["saved"]["images"] > 0
    assert {path: path.read_bytes() for path in before} == before


def test_the_cache_of_compiled_code(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert commands.document("gc", "--cache", "--dry-run")["schema"] == documents.GC_CACHE


def test_the_commands_of_a_checkout(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data.checkout() or pytest.skip("a checkout has them")
    assert commands.document("docs", "--check")["schema"] == documents.DOCS
    monkeypatch.setattr(tool_locks, "remake", lambda root, name, *, upgrade: root)
    locks = commands.document("lock", "tool")
    assert locks["schema"] == documents.LOCK
    assert [lock["lock"] for lock in locks["locks"]] == [
        str(root / "locks" / f"{name}.txt") for name in tool_locks.EXTRAS
    ]


def test_checks_of_a_result(commands: Commands, tmp_path: Path) -> None:
    stand_in.make(tmp_path / "here", BEHAVIOUR)
    stand_in.make(tmp_path / "there", BEHAVIOUR)
    run = commands.document(
        "verify", "--result", "here", *FEW, "--logs", tmp_path, "--together", 2, "--native"
    )
    assert run["native"] is True
    assert run["schema"] == documents.VERIFY
    assert {check["verdict"] for check in run["checks"]} == {"passed", "failed"}
    assert any("log" in check for check in run["checks"])
    compared = commands.document("verify", "--result", "here", "--compare", "there", *FEW)
    assert compared["schema"] == documents.VERIFY_COMPARE
    assert commands.document("verify", "--list", "sm90")["schema"] == documents.VERIFY_LIST


@pytest.mark.parametrize(
    ("more", "name"),
    [((), documents.VERIFY_CHECK), (("--against", "here/bin/python"), documents.VERIFY_COMPARED)],
)
def test_checks_of_any_interpreter(tmp_path: Path, more: tuple[str, ...], name: str) -> None:
    stand_in.make(tmp_path / "here", BEHAVIOUR)
    command = [sys.executable, "-m", "vllm_variants.verify", "--python", "here/bin/python", "--sm", "sm90"]
    command += ["--release", "0.13.0", "--jsonl", "lines", *FEW, *more]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        require_valid(line, name)


def test_the_examination_of_this_machine(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_VARIANTS_UV", "/bin/false")  # and a problem is among what it finds
    found = commands.document("doctor")
    assert found["schema"] == documents.DOCTOR
    assert "problem" in {finding["state"] for finding in found["findings"]}


# ── what is kept in files ──


@pytest.mark.parametrize(
    "path", sorted(((data.checkout() or Path()) / "docs" / "evidence").glob("*.json")), ids=lambda p: p.stem
)
def test_evidence_is_what_its_schema_says(path: Path) -> None:
    require_valid(json.loads(path.read_text(encoding="utf-8")))


# ── drift ──


def test_a_key_that_goes_missing_is_noticed(commands: Commands, tree: Path) -> None:
    for document in (commands.document("detect"), commands.document("audit", tree, "--sm", "sm90")):
        for place in places(document):
            for key in at(document, place):
                changed = copy.deepcopy(document)
                del at(changed, place)[key]
                # what there is none of is left out
                if place[-1:] not in [("fits",), ("elsewhere",), ("containers",)]:
                    with pytest.raises(AssertionError):
                        require_valid(changed, document["schema"])
