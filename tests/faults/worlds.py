"""A small real world for faults: a copy of the package with a toy matrix of wheels, trees, a store.

`Template` is made once: it holds what never changes and, for each command, what an undisturbed run
leaves and how long it takes. A `World` is one round's folder, made from it in milliseconds.
"""

from __future__ import annotations

import base64
import compileall
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from commands import Command, Ended, Strike, build_shim
from invariants import Item, Snapshot, snapshot
from lying_index import Index
from making import cubin, library, ptx, section

import vllm_variants
from vllm_variants.fatbin.stub import empty_cubin
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.model.capability import Target
from vllm_variants.model.platforms import host_system

PACKAGE = Path(vllm_variants.__file__).resolve().parent
RELEASES = ("0.13.0", "0.11.2")
OF_NO_USE = frozenset({"CACHEDIR.TAG", ".gitignore", ".lock", "share/vllm-variants/slim.json"})
"""Files of an entry that uv writes unchecked and nobody reads, and the one that sums all sizes."""
OTHER_NAMES = ("lib/libtwo.so", "other.so")
"""Names of one file in the tree."""
WITH_PTX = "pkg/libptx.so"
"""The one whose PTX is compiled: one PTX that cannot be stays, and the next run compiles it."""
LIBRARIES = (*("lib/libone.so.1", "lib/libtwo.so", "other.so", "pkg/_real.so", "pkg/libthree.so", WITH_PTX),)
_MIXED = section(
    [cubin("sm_80", 150_000), cubin("sm_90a", 60_000), ptx("compute_80", 90_000)],
    [cubin("sm_100f", 90_000), cubin("sm_120a", 80_000)],
    [cubin("sm_90", 7_000)],
    [ptx("compute_120", 120_000)],
    padding=8,
)
_PLAIN = section([cubin("sm_80", 200_000), cubin("sm_90", 9_000)], [cubin("sm_100", 150_000)])
_PTX = section(
    [cubin("sm_70", 40_000), ptx("compute_80", 50_000)],
    [cubin("sm_100", 60_000), ptx("compute_90", 30_000)],
    [ptx("compute_75", 70_000)],
)
_PTXAS = """#!/bin/sh
# Takes a moment, and makes the one cubin that is asked for in these worlds: sm_90, without a kernel.
case "$1" in
--version) echo 'Cuda compilation tools, release 12.9, V12.9.86'; echo 'Build toy'; exit ;;
-arch=sm_90) ;;
*) exit 1 ;;
esac
for word; do :; done
sleep 0.1
cp "{cubin}" "$word"
"""
_FLAGS_AT = 48
"""Where an ELF header's flags are; of a cubin's the third byte is the SM of its PTX."""
_REAL = """
__asm__(".section {section},\\"a\\"\\n.balign 8\\n.incbin \\"{fatbin}\\"\\n.previous\\n");
int answer(void) {{ return 42; }}
"""
_CLI = "import sys, vllm\ndef main():\n    print(vllm.__version__, *sys.argv[1:])\n"


@dataclass(frozen=True)
class Undisturbed:
    """What a command does when nothing happens to it: seconds, and calls that the shim counts."""

    seconds: float
    calls: int


@dataclass(frozen=True)
class Template:
    """What all worlds are made from; see `make_template`."""

    root: Path
    python: Path
    shim: Path | None
    runs: Mapping[str, Undisturbed]
    entries: Mapping[str, str]
    """Release → the name of its entry in a store."""
    volatile: frozenset[str]
    """Files of an entry that differ between two builds, as they hold times, and OF_NO_USE."""

    @property
    def checkout(self) -> Path:
        return self.root / "checkout"

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    def slimmed(self) -> dict[str, Item]:
        """The tree as an undisturbed slimming leaves it."""
        return _snapshot_once(self.root / "slimmed")

    def compiled(self) -> dict[str, Item]:
        """The tree as an undisturbed slimming with `--native` leaves it."""
        return _snapshot_once(self.root / "compiled")

    def exported(self) -> dict[str, Item]:
        """The wheelhouse that an undisturbed export of an entry makes."""
        return _snapshot_once(self.root / "exported")

    def whole_entry(self, release: str) -> dict[str, Item]:
        """A whole entry of that release, as a snapshot."""
        return _snapshot_once(self.entry(release))

    def entry(self, release: str) -> Path:
        """A whole entry of that release."""
        return self.root / "data" / "vllm-variants" / "store" / self.entries[release]

    @classmethod
    def load(cls, root: Path) -> Template:
        """The template that `make_template` left in `root`."""
        facts = json.loads((root / "template.json").read_text())
        runs = {name: Undisturbed(**run) for name, run in facts["runs"].items()}
        shim = root / "shim.so"
        return cls(
            root, Path(facts["python"]), shim if shim.exists() else None, runs, facts["entries"],
            frozenset(facts["volatile"]) | OF_NO_USE,
        )  # fmt: skip


@dataclass(frozen=True)
class World:
    """One round's folder. Faults strike below `area`; `cache` is uv's, shared by the rounds of a process."""

    template: Template
    root: Path
    index: Index
    cache: Path

    @property
    def area(self) -> Path:
        return self.root / "area"

    @property
    def store(self) -> Path:
        return self.area / "data" / "vllm-variants"

    @property
    def links(self) -> Path:
        return self.area / "links"

    @property
    def tree(self) -> Path:
        return self.area / "tree"

    def env(self) -> dict[str, str]:
        """The environment of every command: nothing of the caller's but PATH, and where its packages are."""
        package = self.template.checkout / "python"
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_DATA_HOME": str(self.area / "data"),
            "VLLM_VARIANTS_PTXAS": str(self.template.root / "ptxas"),
            "VLLM_VARIANTS_CUBINS": str(self.area / "cubins"),
            "UV_CACHE_DIR": str(self.cache),
            "UV_DEFAULT_INDEX": self.index.url,
            "UV_HTTP_TIMEOUT": "2",
            "UV_HTTP_RETRIES": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "NO_COLOR": "1",
        }

    def start(
        self,
        *arguments: str | Path,
        strike: Strike | None = None,
        count: bool = False,
        before: Callable[[], None] | None = None,
        env: Mapping[str, str] = {},
        program: tuple[str, ...] = (),
    ) -> Command:
        """Start a command; with `strike` (or to `count` its calls) under the shim."""
        return Command(
            arguments,
            {**self.env(), **env},
            self.root / "logs",
            cwd=self.root,
            shim=self.template.shim if strike or count else None,
            under=self.area,
            strike=strike,
            before=before,
            program=program,
        )

    def run(self, *arguments: str | Path) -> Ended:
        """Run a command undisturbed."""
        return self.start(*arguments).finish()

    def build(self, release: str = RELEASES[0], links: Path | None = None) -> list[str | Path]:
        """The arguments that build sm90."""
        where = ["--links", links or self.links, "--python", self.template.python]
        return ["build", "sm90", "--release", release, *where]

    def slim(self, path: Path | None = None, to: Path | None = None, jobs: int = 2) -> list[str | Path]:
        """The arguments that slim the tree (or `path`) in place, or `to` another."""
        where: list[str | Path] = ["-o", to] if to else ["--in-place"]
        return ["slim", path or self.tree, "--sm", "sm90", *where, "--jobs", str(jobs)]

    def native(self, jobs: int = 2) -> list[str | Path]:
        """The arguments that slim the tree in place, and compile its PTX."""
        return [*self.slim(jobs=jobs), "--native"]

    def export(self) -> list[str | Path]:
        """The arguments that export what `with_entry` linked as `result-exported` to `out`, as wheels."""
        return ["export", "--result", self.links / "result-exported", "--to", f"wheels:{self.area / 'out'}"]

    def with_tree(self) -> Snapshot:
        """Put the tree there, with names of its files outside (as uv's cache has them); what it holds."""
        shutil.copytree(self.template.tree, self.tree, symlinks=True)
        keep_one_file(self.tree)
        cached = self.area / "cached"
        cached.mkdir()
        for name in LIBRARIES:
            os.link(self.tree / name, cached / Path(name).name)
        return snapshot(self.tree)

    def with_entry(self, release: str, name: str = "", link: str = "") -> Path:
        """Put a whole entry into the store, with a link that gc knows where `link` names one."""
        entry = self.store / "store" / (name or self.template.entries[release])
        entry.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.template.entry(release), entry, symlinks=True)
        if link:
            path = self.links / link
            path.symlink_to(entry)
            memory = self.store / "links" / hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
            memory.parent.mkdir(exist_ok=True)
            memory.symlink_to(path)
        return entry


@cache
def _snapshot_once(root: Path) -> dict[str, Item]:
    return snapshot(root)


def new_world(template: Template, root: Path, index: Index, cache: Path) -> World:
    """An empty world at `root`."""
    world = World(template, root, index, cache)
    for folder in (world.links, root / "logs", root / "home", root / "tmp"):
        folder.mkdir(parents=True)
    return world


def keep_one_file(tree: Path) -> None:
    """Make OTHER_NAMES names of one file again, after a copy."""
    first, second = (tree / name for name in OTHER_NAMES)
    second.unlink()
    os.link(first, second)


def make_template(root: Path) -> Template:
    """Make the template in `root`, an empty folder; raise `MissingError` without Python for the release."""
    minor = matrix.load().default.stack.python
    own = Path(sys.executable) if minor == f"{sys.version_info.major}.{sys.version_info.minor}" else None
    python = interpreters.find(minor, own).path
    _checkout(root / "checkout")
    _tree(root / "tree", root)
    _wheels(root / "wheels", root / "tree", root / "checkout" / "locks")
    _ptxas(root / "ptxas")
    shim = build_shim(root / "shim.so")
    bare = Template(root, python, shim, {}, {}, frozenset())
    runs, entries, volatile = _undisturbed(bare)
    facts = {
        "python": str(python),
        "runs": {name: asdict(run) for name, run in runs.items()},
        "entries": entries,
        "volatile": sorted(volatile),
    }
    (root / "template.json").write_text(json.dumps(facts, indent=1))
    return Template.load(root)


def _undisturbed(template: Template) -> tuple[dict[str, Undisturbed], dict[str, str], set[str]]:
    """Run each command twice, undisturbed: once for what it leaves, once (warm) to time and count it."""
    index, root = Index(template.wheels), template.root
    runs: dict[str, Undisturbed] = {}
    entries: dict[str, str] = {}
    copies = []
    for attempt in ("once", "again"):
        world = new_world(template, root / attempt, index, root / "uv-cache")
        world.with_tree()
        runs["nothing"] = _measured(world, "gc")
        one = world.slim(world.tree / LIBRARIES[0], world.area / "one.so")[:-2]
        runs["file"] = _measured(world, *one)
        runs["slim"] = _measured(world, *world.slim())
        shutil.copytree(template.tree, world.area / "source", symlinks=True)
        keep_one_file(world.area / "source")
        runs["copy"] = _measured(world, *world.slim(world.area / "source", world.area / "out"))
        for release in reversed(RELEASES):
            before = {p.name for p in (world.store / "store").glob("*")}
            runs["build"] = _measured(world, *world.build(release))
            (entries[release],) = {p.name for p in (world.store / "store").glob("*")} - before
        copies.append({release: snapshot(world.store / "store" / entries[release]) for release in RELEASES})
        runs["relink"] = _measured(world, *world.build())
        for link in world.links.iterdir():
            link.unlink()
        if attempt == "once":
            shutil.copytree(world.store.parent, root / "data", symlinks=True)
            world.tree.rename(root / "slimmed")
        runs["gc"] = _measured(world, "gc")
        shutil.rmtree(world.root)
    runs |= _compiled_and_exported(replace(template, entries=entries), index)
    volatile = {
        name
        for release in RELEASES
        for name in copies[0][release].keys() | copies[1][release].keys()
        if not (
            (one := copies[0][release].get(name)) and (two := copies[1][release].get(name)) and one.same(two)
        )
    }
    return runs, entries, volatile


def _compiled_and_exported(template: Template, index: Index) -> dict[str, Undisturbed]:
    """Put what compiling and exporting leave, undisturbed, into the template; how long they take."""
    runs, root = {}, template.root
    world = new_world(template, root / "more", index, root / "uv-cache")
    world.with_tree()
    runs["native"] = _measured(world, *world.native())
    world.tree.rename(root / "compiled")
    world.with_entry(RELEASES[0], link="result-exported")
    runs["audit"] = _measured(world, "audit", world.links / "result-exported", "--sm", "sm90")
    runs["export"] = _measured(world, *world.export())
    (world.area / "out").rename(root / "exported")
    shutil.rmtree(world.root)
    return runs


def _measured(world: World, *arguments: str | Path) -> Undisturbed:
    started = time.monotonic()
    ended = world.start(*arguments, count=True).finish()
    if ended.status != 0:
        raise RuntimeError(f"an undisturbed `{ended.command}` ended in {ended.status}: {ended.err}")
    return Undisturbed(time.monotonic() - started, ended.calls)


def _checkout(to: Path) -> None:
    """A copy of the package with the project's matrix, without the real locks and expectations."""
    package = to / "python" / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "data"))
    from vllm_variants import data

    shutil.copy(data.root() / "variants.toml", to)
    (to / "locks").mkdir()
    compileall.compile_dir(package, quiet=2, workers=1)


def _tree(tree: Path, scratch: Path) -> None:
    """Libraries, whole and broken, links of all kinds, and files of people whose names are like ours."""
    for folder in ("lib", "pkg", "pkg/.keep.slimming"):
        (tree / folder).mkdir(parents=True)
    library(tree / "lib" / "libone.so.1", _MIXED)
    library(tree / "lib" / "libtwo.so", _PLAIN)
    library(tree / "pkg" / "libthree.so", _PLAIN, more={"__nv_relfatbin": _MIXED})
    library(tree / WITH_PTX, _PTX)
    _compiled(tree / "pkg" / "_real.so", _MIXED, scratch)
    (tree / "lib" / "libone.so").symlink_to("libone.so.1")
    (tree / "lib" / "nowhere.so").symlink_to("absent.so")
    os.link(tree / "lib" / "libtwo.so", tree / "other.so")
    (tree / "lib" / "libone.so.1").chmod(0o755)
    (tree / "pkg" / "libthree.so").chmod(0o444)
    (tree / "pkg" / "broken.so").write_bytes((tree / "lib" / "libtwo.so").read_bytes()[:150_000])
    (tree / "text").write_text("text" * 30_000)
    for name in (
        "notes.slimming",
        ".slimming",
        "libone.so.vllm-variants-new",
        "lib/.old.so.slimming",
        "lib/.libone.so.1.0123456789AB.vllm-variants-new",
        "pkg/.keep.slimming/mine",
    ):
        (tree / name).write_text(f"precious: {name}")


def _ptxas(to: Path) -> None:
    """A compiler that needs no CUDA; its cubin does not say which PTX it was made from."""
    made = to.with_name("sm_90.cubin")
    data = bytearray(empty_cubin(Target.parse("sm_90")))
    data[_FLAGS_AT + 2] = 0
    made.write_bytes(data)
    to.write_text(_PTXAS.format(cubin=made))
    to.chmod(0o755)


def _compiled(to: Path, fatbin: bytes, scratch: Path) -> None:
    """A library that the system's compiler made, with device code in it; a made one without a compiler."""
    code, data = scratch / "real.c", scratch / "real.fatbin"
    data.write_bytes(fatbin)
    code.write_text(_REAL.format(section=".nv_fatbin", fatbin=data))
    command = ["cc", "-shared", "-fPIC", "-o", str(to), str(code)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        library(to, fatbin)


def _wheels(wheels: Path, tree: Path, locks: Path) -> None:
    system = host_system().partition("-")[0]
    wheels.mkdir()
    torch = {
        "torch/__init__.py": b"",
        "torch/lib/libtorch_cuda.so": (tree / "lib" / "libone.so.1").read_bytes(),
        "torch/lib/libc10_cuda.so": (tree / "pkg" / "libthree.so").read_bytes(),
    }
    _wheel(wheels, "torch", "2.9.1", system, torch)
    for release in RELEASES:
        files = {
            "vllm/__init__.py": f'__version__ = "{release}"\n'.encode(),
            "vllm/cli.py": _CLI.encode(),
            "vllm/_C.abi3.so": (tree / "pkg" / "_real.so").read_bytes(),
            "vllm/_moe_C.abi3.so": (tree / "lib" / "libtwo.so").read_bytes(),
            f"vllm-{release}.dist-info/entry_points.txt": b"[console_scripts]\nvllm = vllm.cli:main\n",
        }
        vllm = _wheel(wheels, "vllm", release, system, files)
        lines = [
            f"{path.name.split('-')[0]}=={path.name.split('-')[1]} "
            f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            for path in (*wheels.glob("torch-*"), vllm)
        ]
        (locks / f"{release}-{system}.txt").write_text("\n".join(lines) + "\n")


def _wheel(folder: Path, name: str, version: str, system: str, files: Mapping[str, bytes]) -> Path:
    info, tag = f"{name}-{version}.dist-info", f"cp312-cp312-manylinux_2_28_{system}"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    record = "".join(f"{path},sha256={_base64(data)},{len(data)}\n" for path, data in files.items())
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, data in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            wheel.writestr(member, data)
    return path


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
