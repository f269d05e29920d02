"""The public API: costs nothing to import, is typed, says nothing by itself, and does what its page says."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import stand_in
import toy_index
from making import cubin, library, ptx, section

import vllm_variants
from vllm_variants import data
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.system import progress

PACKAGE = Path(vllm_variants.__file__).parent
MACHINES = Path(__file__).parents[1] / "machines"
LINK = "result-vllm-python312-cuda12_9-sm90"
CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_86", 90_000), cubin("sm_90", 90_000), cubin("sm_100", 90_000)],
    [ptx("compute_80", 90_000), cubin("sm_120", 90_000)],
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, on a recorded machine, with a library and a package index of toys."""
    monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(MACHINES / "h100.json"))
    index = tmp_path / "index"
    index.mkdir()
    (index / "schemas").symlink_to(data.root() / "schemas")
    toy_index.make(index, monkeypatch)
    folder = tmp_path / "here"
    folder.mkdir()
    library(folder / "libkernels.so", CODE)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def interpreter() -> None:
    try:
        interpreters.find(matrix.load().default.stack.python)
    except vllm_variants.MissingError as absent:
        pytest.skip(f"a build needs an interpreter: {absent.message}")


# ── importing ──

IMPORTED = """
import os, signal, sys, threading

def state():
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return handlers, threading.enumerate(), children, dict(os.environ), os.getcwd(), sys.path[:]

before, modules = state(), set(sys.modules)
import vllm_variants
assert set(sys.modules) - modules == {"vllm_variants"}, set(sys.modules) - modules
assert state() == before
WORK
assert state() == before
"""
WORK = """
assert vllm_variants.detect().variants
assert vllm_variants.audit_path(sys.argv[1], sm="sm90").passed
assert vllm_variants.slim(sys.argv[1], "sm90", to=sys.argv[1] + ".small").files[0].changed
"""


@pytest.mark.parametrize("work", ["", WORK], ids=["import", "work"])
def test_it_leaves_the_process_as_it_was_and_prints_nothing(here: Path, work: str) -> None:
    program = IMPORTED.replace("WORK", work)
    done = subprocess.run(
        [sys.executable, "-c", program, "libkernels.so"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ── names and types ──


def test_what_type_checkers_see_is_what_the_interpreter_finds() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        (f"{node.module}".removeprefix("vllm_variants."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm_variants.")
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == {(module, name) for module, names in vllm_variants._NAMES.items() for name in names}
    assert sorted(vllm_variants.__all__) == sorted(name for _, name in seen)


@pytest.mark.parametrize("name", vllm_variants.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    value = getattr(vllm_variants, name)
    assert inspect.getdoc(value)
    assert name in dir(vllm_variants)
    assert not (PACKAGE / name).exists(), "a package of that name would hide it"
    assert not (PACKAGE / f"{name}.py").exists(), "a module of that name would hide it"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vllm_variants' has no attribute 'nothing'"):
        _ = vllm_variants.nothing  # type: ignore[attr-defined]


# ── the page ──


def page() -> str:
    root = data.checkout() or pytest.skip("docs are in a checkout", allow_module_level=True)
    return (root / "docs" / "api.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page(), re.DOTALL)


@pytest.mark.parametrize(("code", "prints"), BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_an_example_of_the_page_does_what_it_says(
    code: str,
    prints: str,
    here: Path,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "build" in code:
        request.getfixturevalue("interpreter")
    if "verify_result" in code:
        (here / LINK).symlink_to(stand_in.make(here.parent / "result"))
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "__main__"})
    out, err = capfd.readouterr()
    assert err == ""
    if prints:
        assert out == prints


def test_the_page_names_everything_that_is_public() -> None:
    words = set(re.findall(r"\w+", page()))
    assert set(vllm_variants.__all__) <= words


def test_type_checkers_see_all_of_it(tmp_path: Path) -> None:
    for number, (code, _) in enumerate(BLOCKS):
        (tmp_path / f"example_{number}.py").write_text(code)
    wrong = "import vllm_variants\nvllm_variants.nothing\nvllm_variants.build(3)\nvllm_variants.detect().x\n"
    (tmp_path / "wrong.py").write_text(wrong)
    files = map(str, sorted(tmp_path.glob("*.py")))
    options = ["--strict", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "--follow-imports=silent", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line.split(": ", 2) for line in done.stdout.splitlines() if ": error: " in line]
    assert [Path(where).name for where, *_ in errors] == [f"wrong.py:{line}" for line in (2, 3, 4)], (
        done.stdout
    )


# ── what each promises ──


def test_the_matrix_is_read_anew_and_cannot_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "variants.toml"
    text = (data.root() / "variants.toml").read_text(encoding="utf-8")
    file.write_text(text)
    first = vllm_variants.load_matrix(file)
    file.write_text(text.replace('"H100"', '"H100 of mine"', 1))
    second = vllm_variants.load_matrix(str(file))
    assert first != second
    assert vllm_variants.load_matrix() is not vllm_variants.load_matrix()
    with pytest.raises(TypeError):
        second.variants["sm90"] = first.variants["sm80"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        second.default = first.default  # type: ignore[misc]


def test_a_machine_can_be_another_one() -> None:
    gpu = vllm_variants.Gpu(0, "NVIDIA L4", vllm_variants.Capability(8, 9), None, "GPU-1")
    machine = vllm_variants.Machine("x86_64-linux", "580.1", (gpu,))
    rows = vllm_variants.load_matrix()
    found = vllm_variants.detect("0.11.2", machine=machine, matrix=rows)
    assert found.variants == (rows.variants["sm89"],)
    assert vllm_variants.detect(machine=vllm_variants.Machine("x86_64-linux", None, ())).variants == ()


def test_a_build_is_quiet_and_tells_whoever_listens(
    here: Path, interpreter: None, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    built = vllm_variants.build("9.0", links=here, say=heard.append)
    assert capfd.readouterr() == ("", "")
    assert heard[0].startswith("building vllm-python312-cuda12_9-sm90")
    assert vllm_variants.read_result(here / LINK).path == built.path
    again: list[str] = []
    assert vllm_variants.build("9.0", say=again.append).path == built.path
    assert again == ["vllm-python312-cuda12_9-sm90 is already built"]


def test_progress_goes_to_whoever_listens(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    with progress.heard_by(heard.append), progress.bar("slimming") as advance:
        advance(5 * 10**9, 10**10)
    assert (heard, capfd.readouterr().err) == (["slimming: 50 % of 10.00 GB"], "")
    with progress.bar("slimming") as advance:
        advance(1, 1)
    assert capfd.readouterr().err == "slimming: 100 % of 0.00 GB\n"


def test_a_build_raises_what_went_wrong(here: Path, interpreter: None) -> None:
    with pytest.raises(vllm_variants.UnsupportedError, match="needs --index URL"):
        vllm_variants.build("sm90-arm64")


def test_any_builder_can_build(here: Path) -> None:
    seen: list[str] = []

    class Refusing:
        def build_all(self, requests, say, done):  # type: ignore[no-untyped-def]
            seen.extend(request.name for request in requests)
            raise vllm_variants.MissingError("no compiler")

    with pytest.raises(vllm_variants.MissingError, match="no compiler"):
        vllm_variants.build("sm80", builder=Refusing())
    assert seen == ["vllm-python312-cuda12_9-sm80"]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: vllm_variants.slim("libkernels.so", "sm90"), vllm_variants.UsageError, "say where"),
        (lambda: vllm_variants.slim("libkernels.so", [], to="x"), vllm_variants.UsageError, "no device"),
        (lambda: vllm_variants.slim("x", "sm90", in_place=True, jobs=-1), vllm_variants.UsageError, "-1 pro"),
        (lambda: vllm_variants.slim("libkernels.so", "sm91", to="x"), vllm_variants.UsageError, "no variant"),
        (lambda: vllm_variants.slim("nowhere", "sm90", to="x"), vllm_variants.MissingError, "does not exist"),
        (lambda: vllm_variants.slim(__file__, "sm90", to="x"), vllm_variants.InputError, "no ELF64 library"),
        (lambda: vllm_variants.audit_path("nowhere"), vllm_variants.MissingError, "does not exist"),
        (
            lambda: vllm_variants.audit_path("libkernels.so", "sm90", release="0.13.0"),
            vllm_variants.UsageError,
            "cannot be held to vLLM 0.13.0",
        ),
        (lambda: vllm_variants.verify_result("nowhere"), vllm_variants.MissingError, "there is no result"),
        (lambda: vllm_variants.load_schema("audit"), vllm_variants.UsageError, "no document is called"),
    ],
)
def test_what_cannot_be_done_is_an_error_at_once(
    here: Path, call: Callable[[], object], error: type[vllm_variants.Error], says: str
) -> None:
    with pytest.raises(error, match=says):
        call()
    assert [path.name for path in here.iterdir()] == ["libkernels.so"]


def test_a_directory_is_slimmed_in_place_or_copied(here: Path) -> None:
    (here / "tree").mkdir()
    library(here / "tree" / "a.so", CODE)
    library(here / "tree" / "b.so", CODE)
    heard: list[str] = []
    copied = vllm_variants.slim(
        here / "tree", "H100", to=here / "new", jobs=1, progress=lambda done, total, name: heard.append(name)
    )
    assert sorted(heard) == ["a.so", "b.so"]
    assert copied.saved > 0
    changed = vllm_variants.slim("tree", ["9.0", vllm_variants.Capability(9, 0)], in_place=True, jobs=1)
    assert changed.devices == (vllm_variants.Capability(9, 0),)
    assert (changed.before, changed.after) == (copied.before, copied.after)
    assert (here / "tree" / "a.so").read_bytes() == (here / "new" / "a.so").read_bytes()


def test_a_result_is_audited_for_its_own_device(here: Path, interpreter: None) -> None:
    built = vllm_variants.build("sm90")
    assert str(vllm_variants.audit_path(built.path).capability) == "9.0"
    assert str(vllm_variants.audit_path(built.path, "sm80").capability) == "8.0"


def test_checks_that_nobody_waits_for_are_ended(here: Path) -> None:
    made = stand_in.make(here.parent / "result", {"norm.rms_norm_quant": {"does": "hang"}})
    for check in vllm_variants.verify_result(made, only=["norm"]):
        assert check.judgement == "passed"
        break
    deadline = time.monotonic() + 20
    pids = [each["pid"] for each in stand_in.seen(made)]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert os.getpid() not in pids
