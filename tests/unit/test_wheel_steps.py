"""What the `wheels` builder does to what it installed, on a toy index with real device code."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy_index
from toy_index import ToyIndex

sys.path.append(str(Path(__file__).parent / "fatbin"))
from compiling import ptx_image, ptx_text
from making import cubin, library, section

from vllm_variants.builders.wheels import compilers, device_code, records, shared_bytecode
from vllm_variants.builders.wheels.builder import Wheels
from vllm_variants.builders.wheels.native import Waiting, duration
from vllm_variants.errors import MissingError, ResourceError, UnsupportedError, UsageError
from vllm_variants.fatbin.tree import SlimReport
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.store import Store

MATRIX, HOST = matrix.load(), host_system()
MINOR = MATRIX.default.stack.python
TEXT = ptx_text("scale", comment="room for a cubin " * 900)

try:
    interpreters.find(MINOR)
except MissingError as absent:
    pytest.skip(f"the builder needs Python {MINOR}: {absent.message}", allow_module_level=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyIndex:
    """A toy index whose torch has code for several SMs, and PTX that sm90 would compile."""
    made = toy_index.make(tmp_path / "index", monkeypatch)
    fatbin = section(
        [cubin("sm_80", 300_000), cubin("sm_90", 200_000)], [cubin("sm_80", 90_000), ptx_image(TEXT)]
    )
    toy_index.put_into_torch(made, HOST, library(tmp_path / "libtorch_cuda.so", fatbin).read_bytes())
    monkeypatch.setenv("VLLM_VARIANTS_CUBINS", str(tmp_path / "cubins"))
    return made


def request(folder: Path, **options: object) -> Request:
    folder.mkdir(exist_ok=True)
    variant = MATRIX.parse("9.0", system=HOST).variant
    return Request(variant, MATRIX.default, folder, **options)  # type: ignore[arg-type]


def build(folder: Path, **options: object) -> tuple[Result, list[str]]:
    said: list[str] = []
    return Wheels(Store.default()).build(request(folder, **options), said.append), said


def steps(result: Result) -> dict[str, dict[str, object]]:
    return {step["name"]: step for step in result.manifest.facts["steps"]}


def site(result: Result) -> Path:
    return result.path / "lib" / f"python{MINOR}" / "site-packages"


def test_the_manifest_says_what_each_rule_saved_and_how_to_have_it_back(
    index: ToyIndex, tmp_path: Path
) -> None:
    result, _ = build(tmp_path / "here")
    slim = steps(result)["slim"]
    saved, undo = slim["saved"], slim["undo"]
    assert isinstance(saved, dict) and isinstance(undo, dict)
    assert min(saved["images"], saved["compress"]) > 0 and saved.keys() == {*undo, "native"}
    assert undo == {"images": "--no-slim", "compress": "--compress none", "symbols": "--keep-symbols"}
    assert slim["rules"]["compress"].startswith("zstd 1.")  # type: ignore[index]
    assert steps(result)["files"]["undo"] == "--keep-unread"
    assert json.loads((result.path / "share/vllm-variants/slim.json").read_text())["saved"] == saved


def test_records_say_what_is_there_afterwards(index: ToyIndex, tmp_path: Path) -> None:
    result, _ = build(tmp_path / "here")
    assert steps(result)["records"]["rows"] == 1
    rows = list(csv.reader((site(result) / "torch-2.9.1.dist-info/RECORD").open()))
    for name, recorded, size in (row for row in rows if row[1]):
        assert records.digest(site(result) / name) == (recorded, int(size))


def test_serving_finds_its_bytecode_made_and_writes_none(index: ToyIndex, tmp_path: Path) -> None:
    result, _ = build(tmp_path / "here")
    made = sorted(site(result).rglob("*.pyc"))
    assert [path.name.partition(".")[0] for path in made] == ["__init__", "__init__", "cli"]
    assert all(path.read_bytes()[4:8] == bytes([1, 0, 0, 0]) for path in made)  # by hash, unchecked (PEP 552)
    source = site(result) / "vllm" / "cli.py"
    source.write_text(source.read_text().replace("print(", "print('not compiled', "))
    told = subprocess.run([result.path / "bin" / "vllm"], capture_output=True, text=True, check=True).stdout
    assert told == "0.13.0\n" and sorted(site(result).rglob("*.pyc")) == made


@pytest.mark.parametrize(("which", "count"), [("none", 0), ("all", 3)])
def test_bytecode_can_be_had_for_all_and_for_none(
    which: str, count: int, index: ToyIndex, tmp_path: Path
) -> None:
    result, _ = build(tmp_path / "here", bytecode=which)
    assert len(list(site(result).rglob("*.pyc"))) == count


def bytecode_of(result: Result) -> dict[str, tuple[bytes, int]]:
    """By name: the bytes of each bytecode file, and its inode."""
    made = site(result).rglob("*.pyc")
    return {str(p.relative_to(site(result))): (p.read_bytes(), p.stat().st_ino) for p in made}


def test_a_second_variant_takes_the_first_ones_bytecode_and_is_the_same_with_and_without(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = build(tmp_path / "one")[0], build(tmp_path / "two", keep_symbols=True)[0]
    assert first.path != second.path
    assert steps(first)["bytecode"]["shared"] == 0 and steps(second)["bytecode"]["shared"] == 3
    assert bytecode_of(first) == bytecode_of(second)  # inodes too: one file, two names
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another store"))
    alone, _ = build(tmp_path / "three", keep_symbols=True)
    assert steps(alone)["bytecode"]["shared"] == 0
    assert {n: b for n, (b, _) in bytecode_of(alone).items()} == {
        n: b for n, (b, _) in bytecode_of(second).items()
    }
    facts = ("sha256", "bytes", "modules")
    assert [steps(alone)["bytecode"][name] for name in facts] == [
        steps(second)["bytecode"][name] for name in facts
    ]


def test_a_second_variant_takes_the_first_ones_images_and_is_the_same_with_and_without(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Path]] = []
    slim_tree = device_code.slim_tree

    def noted(*arguments: Any, stored: Sequence[Path], **options: Any) -> SlimReport:
        asked.append(list(stored))
        return slim_tree(*arguments, stored=stored, **options)

    monkeypatch.setattr(device_code, "slim_tree", noted)

    def built(sm: str, folder: Path) -> Result:
        folder.mkdir()
        variant = MATRIX.parse(sm, system=HOST).variant
        return Wheels(Store.default()).build(Request(variant, MATRIX.default, folder), lambda line: None)

    first, second = built("8.0", tmp_path / "one"), built("8.6", tmp_path / "two")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another store"))
    alone = built("8.6", tmp_path / "three")

    assert asked == [[], [first.path], []]
    libraries = [site(result) / "torch" / "lib" / "libtorch_cuda.so" for result in (second, alone)]
    assert libraries[0].read_bytes() == libraries[1].read_bytes()
    assert [steps(result)["slim"]["shared"] for result in (first, second, alone)] == [0, 2, 0]


@pytest.mark.parametrize("damaged", ["bytecode", "source"])
def test_what_is_damaged_in_one_result_does_not_get_into_another(
    damaged: str, index: ToyIndex, tmp_path: Path
) -> None:
    """A changed byte of its bytecode: none of it is taken; another source: that module's is not."""
    first, _ = build(tmp_path / "one")
    whole = {name: content for name, (content, _) in bytecode_of(first).items()}
    path = site(first) / "vllm" / "cli.py"
    if damaged == "bytecode":
        path = next(path.parent.glob("__pycache__/cli.*.pyc"))
    changed = path.read_bytes()[:-1] + b"#"
    path.unlink()  # it may be another name of a cache's file
    path.write_bytes(changed)
    second, _ = build(tmp_path / "two", keep_symbols=True)
    assert steps(second)["bytecode"]["shared"] == (0 if damaged == "bytecode" else 2)
    assert {name: content for name, (content, _) in bytecode_of(second).items()} == whole


def test_bytecode_of_another_python_is_not_taken(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        place.mkdir()
        (place / "a.py").write_text("x = 1\n")
    made = theirs / shared_bytecode.target("a.py", "3.12.1")
    made.parent.mkdir()
    made.write_bytes(b"made")
    digest = shared_bytecode.digest_of(theirs, shared_bytecode.bytecode_below(theirs))
    other = shared_bytecode.Compiled(theirs, "3.12.1", digest)
    assert not shared_bytecode.take(["a.py"], ours, "3.12.2", [other])
    assert shared_bytecode.take(["a.py"], ours, "3.12.1", [other]) == {"a.py"}


def test_bin_has_what_a_person_runs_and_nothing_else(index: ToyIndex, tmp_path: Path) -> None:
    result, _ = build(tmp_path / "here")
    assert {path.name for path in (result.path / "bin").iterdir()} == {
        "python", "python3", f"python{MINOR}", "vllm"
    }  # fmt: skip


def test_every_option_gives_a_result_of_its_own(index: ToyIndex, tmp_path: Path) -> None:
    builder = Wheels(Store.default())
    options: list[dict[str, object]] = [
        {}, {"slim": False}, {"compress": "lz4"}, {"compress": "none"}, {"keep_symbols": True},
        {"keep_unread": True}, {"without": ("ray-java",)}, {"bytecode": "none"}, {"bytecode": "all"},
        {"keep_ptx": True},
    ]  # fmt: skip
    entries = {builder.entry(request(tmp_path / "here", **chosen)) for chosen in options}
    assert len(entries) == len(options)
    assert builder.entry(request(tmp_path / "here", compress="zstd")) == builder.entry(
        request(tmp_path / "here")
    )


def test_the_last_lines_say_what_will_wait_for_the_driver(index: ToyIndex, tmp_path: Path) -> None:
    result, said = build(tmp_path / "here")
    assert said[-2].startswith("1 fat binaries of 1 libraries hold no code for sm90")
    assert said[-1].startswith("--native compiles them now, once: about ")
    assert result.manifest.facts["waiting"] == {"containers": 1, "libraries": 1, "cpu_seconds": 0}
    assert steps(result)["audit"]["verdict"] == "jit"


def test_native_leaves_nothing_to_the_driver(
    index: ToyIndex, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Path(__file__).parents[2] / "locks" / f"cuda{MATRIX.default.stack.cuda}.compiler.txt"
    (index.root / "locks" / lock.name).write_bytes(lock.read_bytes())
    try:
        with pytest.MonkeyPatch.context() as real:
            for variable in ("UV_DEFAULT_INDEX", "UV_CACHE_DIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
                real.delenv(variable, raising=False)
            root = tmp_path_factory.getbasetemp() / "ptxas"
            ptxas = compilers.compiler(MATRIX.default.stack.cuda, root=root).ptxas
    except (ResourceError, UnsupportedError) as error:
        pytest.skip(f"the real ptxas is needed: {error.message}")
    monkeypatch.setenv("VLLM_VARIANTS_PTXAS", str(ptxas))
    result, said = build(tmp_path / "here", native=True)
    native = steps(result)["slim"]["native"]
    assert isinstance(native, dict) and (native["cubins"], native["left"]) == (1, [])
    assert native["compiler"]["ptxas"].startswith(MATRIX.default.stack.cuda)
    assert steps(result)["audit"]["verdict"] == "pass"
    assert not [line for line in said if "--native" in line]
    plain = Wheels(Store.default()).entry(request(tmp_path / "here"))
    assert plain != result.path.name


def test_a_name_that_cannot_be_left_out_is_refused_before_anything(index: ToyIndex, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no 'java' to leave out") as raised:
        build(tmp_path / "here", without=("java",))
    assert "ray-java" in (raised.value.hint or "")
    assert not Store.default().entries()


def test_nothing_is_said_where_nothing_waits() -> None:
    assert Waiting(0, 0, 0.0, 0.0).sentences("sm90") == []
    assert [duration(seconds) for seconds in (3.4, 89, 91, 3600)] == ["3 s", "89 s", "2 min", "60 min"]
