"""`build --native` as a person types it, where the compiler, its cache, the PTX or the disk fail."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from compiling import misbehaving, ptx_image, ptx_text
from making import cubin, library, section

sys.path.append(str(Path(__file__).parents[1]))
import toy_index
from toy_index import ToyIndex

from vllm_variants.errors import ExitCode, MissingError
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.store import Store

MATRIX, HOST = matrix.load(), host_system()
ROOM = "room for a cubin " * 900
GOOD = ptx_text("good", comment=ROOM)

try:
    interpreters.find(MATRIX.default.stack.python)
except MissingError as absent:
    pytest.skip(
        f"the builder needs Python {MATRIX.default.stack.python}: {absent.message}", allow_module_level=True
    )


@dataclass(frozen=True)
class Built:
    """How a build ended: its status, its talk, and the manifest's facts; empty where nothing was linked."""

    status: int
    said: str
    facts: dict[str, Any]

    @property
    def native(self) -> dict[str, Any]:
        steps = {step["name"]: step for step in self.facts["steps"]}
        found: dict[str, Any] = steps["slim"]["native"]
        return found

    @property
    def verdict(self) -> str:
        steps = {step["name"]: step for step in self.facts["steps"]}
        return str(steps["audit"]["verdict"])


class Toy:
    """A toy index, and builds of it in processes of their own."""

    def __init__(self, index: ToyIndex, folder: Path) -> None:
        self.index, self.folder, self.links = index, folder, folder / "links"
        self.cubins = folder / "cubins"
        self.links.mkdir()

    def hold(self, *texts: bytes) -> None:
        """Let torch have one container of each PTX, which sm90 would compile."""
        containers = [[cubin("sm_80", 90_000), ptx_image(text)] for text in texts]
        fatbin = section([cubin("sm_80", 300_000), cubin("sm_90", 200_000)], *containers)
        made = library(self.folder / "libtorch_cuda.so", fatbin)
        toy_index.put_into_torch(self.index, HOST, made.read_bytes())

    def build(self, *, before: Sequence[str] = (), **environment: str) -> Built:
        code = "import sys; import toy_build; toy_build.main(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(self.index.root), str(self.links), "--native"]
        path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
        env = {**os.environ, "PYTHONPATH": path, "VLLM_VARIANTS_CUBINS": str(self.cubins), **environment}
        done = subprocess.run([*before, *command], env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        manifests = list(self.links.glob("*/share/vllm-variants/manifest.json"))
        facts = json.loads(manifests[0].read_text()) if manifests else {}
        return Built(done.returncode, done.stderr, facts)

    def require_nothing_left(self) -> None:
        assert not list(self.links.iterdir())
        assert not Store.default().entries()
        assert not list((Store.default().root / "building").glob("*"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy(toy_index.make(tmp_path / "index", monkeypatch), tmp_path)
    monkeypatch.delenv("VLLM_VARIANTS_PTXAS", raising=False)
    made.hold(GOOD)
    return made


def error(built: Built) -> str:
    """The one sentence of ours; uv's own words may stand above it."""
    return [line for line in built.said.splitlines() if line.startswith("error:")][-1]


def test_offline_without_a_compiler_is_one_sentence_before_anything_is_built(toy: Toy) -> None:
    lock = Path(__file__).parents[3] / "locks" / f"cuda{MATRIX.default.stack.cuda}.compiler.txt"
    (toy.index.root / "locks" / lock.name).write_bytes(lock.read_bytes())
    built = toy.build(UV_OFFLINE="1")
    assert built.status == ExitCode.RESOURCES
    assert "ptxas of CUDA 12.9 could not be fetched" in error(built)
    assert "VLLM_VARIANTS_PTXAS" in built.said
    toy.require_nothing_left()


def test_another_platforms_compiler_is_one_sentence_before_anything_is_built(toy: Toy) -> None:
    machine = 62 if HOST.startswith("aarch64") else 183
    foreign = toy.folder / "ptxas"
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    foreign.write_bytes(struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, *[0] * 4, 64, 56, 0, 64, 0, 0))
    foreign.chmod(0o755)
    built = toy.build(VLLM_VARIANTS_PTXAS=str(foreign))
    assert built.status == ExitCode.UNSUPPORTED
    assert f"{foreign} cannot run on this machine" in error(built)
    toy.require_nothing_left()


def test_ptx_newer_than_the_compiler_stays_and_the_others_are_compiled(toy: Toy, compiler: Compiler) -> None:
    toy.hold(GOOD, ptx_text("newer", version="99.9", comment=ROOM))
    built = toy.build(VLLM_VARIANTS_PTXAS=str(compiler.ptxas))
    assert built.status == ExitCode.OK
    assert built.native["cubins"] == 1
    (left,) = built.native["left"]
    assert left["reason"].startswith("its PTX is of version 99.9, newer than ptxas 12.9")
    assert (built.verdict, built.facts["waiting"]["containers"]) == ("jit", 1)
    assert f"left to the driver: 1 fat binary, since {left['reason']}" in built.said


def test_a_cache_that_lies_is_said_and_compiled_again(toy: Toy, compiler: Compiler) -> None:
    toy.hold(GOOD, ptx_text("other", comment=ROOM))
    assert toy.build(VLLM_VARIANTS_PTXAS=str(compiler.ptxas)).verdict == "pass"
    first, second = sorted(toy.cubins.glob("??/*.cubin"))
    cache = Cache(toy.cubins)
    kept = cache.get(second.stem)
    assert kept
    cache.put(first.stem, kept.cubin)  # whole, under another's key
    second.write_bytes(second.read_bytes()[:-9])
    forget(toy)

    built = toy.build(VLLM_VARIANTS_PTXAS=str(compiler.ptxas))
    assert (built.status, built.verdict) == (ExitCode.OK, "pass")
    assert (built.native["cubins"], built.native["from_cache"], built.native["left"]) == (2, 0, [])
    assert f"{first} is wrong" in flat(built) and f"{second} is damaged" in flat(built)


def forget(toy: Toy) -> None:
    """Have the next build not find this one's result."""
    for link in toy.links.iterdir():
        link.unlink()
    Store.default().gc()


def flat(built: Built) -> str:
    return " ".join(built.said.split())


def test_a_cache_that_cannot_be_written_is_said_and_done_without(toy: Toy, compiler: Compiler) -> None:
    toy.cubins.write_text("a file where the folder should be")
    built = toy.build(VLLM_VARIANTS_PTXAS=str(compiler.ptxas))
    assert (built.status, built.verdict) == (ExitCode.OK, "pass")
    assert built.native["cubins"] == 1
    assert f"the cache of cubins {toy.cubins} cannot be" in flat(built)
    assert "going on without it" in flat(built)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("kill -9 $$", "ptxas was killed twice, most likely for want of memory"),
        ("kill -SEGV $$", "was ended by signal 11"),
        ("exit 0", "left no cubin"),
    ],
)
def test_a_compiler_that_dies_leaves_its_ptx_and_the_others_are_compiled(
    toy: Toy, compiler: Compiler, end: str, reason: str
) -> None:
    toy.hold(GOOD, ptx_text("large", comment=ROOM))
    dying = misbehaving(compiler, toy.folder, f'if [ "$text" ] && grep -q large "$text"; then {end}; fi')
    built = toy.build(VLLM_VARIANTS_PTXAS=str(dying.ptxas))
    assert (built.status, built.verdict) == (ExitCode.OK, "jit")
    assert built.native["cubins"] == 1
    (left,) = built.native["left"]
    assert reason in left["reason"]
    assert "left to the driver: 1 fat binary, since " in built.said


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="a small disk needs a mount of one's own, and unshare is not allowed here",
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(toy: Toy, compiler: Compiler) -> None:
    small = toy.folder / "small"
    small.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=8k tmpfs "$0" && exec "$@"', str(small)]
    filling = misbehaving(compiler, toy.folder, "")
    built = toy.build(before=mount, TMPDIR=str(small), VLLM_VARIANTS_PTXAS=str(filling.ptxas))
    assert built.status == ExitCode.RESOURCES
    assert "the disk is full" in error(built)
    toy.require_nothing_left()
