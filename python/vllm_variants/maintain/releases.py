"""Add a release: everything that the checkout holds about a vLLM, made from its published wheels.

All of it is made in a copy of the checkout, by the copy's own commands; the files that differ are then put
into the checkout together, or none is (`together.write`). What a person edits there meanwhile stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.builders.wheels import installation, locks
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.errors import Error, InputError, UsageError
from vllm_variants.machine import interpreters
from vllm_variants.maintain import resolution
from vllm_variants.maintain.resolution import Resolution
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS, host_system
from vllm_variants.model.variants import Matrix, Release, Stack
from vllm_variants.system import process, together
from vllm_variants.verify import catalogue, signatures
from vllm_variants.verify.signatures import CalledCheck, Look
from vllm_variants.versions import numbers, order

Say = Callable[[str], None]
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "result-*", "__pycache__", ".*_cache", "*.vllm-variants-new", "tests", "bench"
)
_TABLE = re.compile(r'^\[release\."([^"]+)"\]', re.MULTILINE)


@dataclass(frozen=True)
class Added:
    """A release that was added: its facts, the files that changed, and what a person must look at.

    `packages` are how many each system's lock has; `called` is what became of each check's calls, None
    where they were not tried.
    """

    release: Release
    files: tuple[str, ...]
    packages: dict[str, int]
    called: tuple[CalledCheck, ...] | None
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Options:
    """`python` is the release's (`3.12`; None: the newest release's), `signatures` whether calls are tried.

    With `dry_run` nothing is put into the checkout.
    """

    python: str | None = None
    signatures: bool = True
    dry_run: bool = False


def add(root: Path, name: str, options: Options, say: Say) -> Added:
    """Add release `name` to the checkout at `root`; nothing of it stays when it fails.

    Needs the package index, a gigabyte for the wheels of vLLM and ten for a whole installation. Raises
    `UsageError` for a release that is there, and whatever `Error` a step ends with.
    """
    rows = matrix.read(root / "variants.toml")
    _refuse(rows, name, options)
    with _copied(root) as copy:
        before = _contents(copy)
        release, resolutions = _declare(copy, rows, name, options, say)
        _run(say, copy, "lock", name)
        say(f"deriving what the libraries of vLLM {name} must hold …")
        _derive(copy, release, resolutions, say)
        called: tuple[CalledCheck, ...] | None = None
        looks: tuple[Look, ...] = ()
        if options.signatures:
            called, looks = _signatures(copy, rows, release, say)
        _run(say, copy, "docs")
        texts = _changes(root, copy, before)
        if not options.dry_run:
            together.write(texts)
    files = tuple(str(path.relative_to(root)) for path in sorted(texts))
    return Added(release, files, {r.system: len(r.versions) for r in resolutions}, called, looks)


def _refuse(rows: Matrix, name: str, options: Options) -> None:
    if name in rows.releases:
        raise UsageError(
            f"there is a release {name} already", hint=f"to renew its locks: vllm-variants lock {name}"
        )
    if not matrix.RELEASE.fullmatch(name):
        raise UsageError(f"{name!r} is not a version", hint="write it as 0.34.0")
    if options.python is not None and not re.fullmatch(r"\d+\.\d+", options.python):
        raise UsageError(f"{options.python!r} is no Python that wheels are made for", hint="write it as 3.12")


@contextmanager
def _copied(root: Path) -> Iterator[Path]:
    """A copy of the checkout that a release is made in."""
    with tempfile.TemporaryDirectory(prefix="vllm-variants-release-") as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(root, copy, symlinks=True, ignore=_LEFT_OUT)
        yield copy


def _run(say: Say, copy: Path, *arguments: str | Path) -> str:
    """Run a command of the copy; its stdout. Raises `Error` with its last words, and says the others."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    completed = process.capture(command, env=environment, folder=copy)
    if completed.status:
        words = completed.stderr.strip().splitlines() or ["it said nothing"]
        hint = words.pop().removeprefix("hint: ") if words[-1].startswith("hint: ") and words[1:] else None
        for line in words[:-1]:
            say(line)
        sentence = words[-1].removeprefix("error: ")
        step = " ".join(map(str, arguments[:2]))
        raise Error(f"nothing was added: `{step}` failed: {sentence}", hint=hint)
    return completed.stdout


def _declare(
    copy: Path, rows: Matrix, name: str, options: Options, say: Say
) -> tuple[Release, list[Resolution]]:
    """Write the release's table and the inputs of its locks into the copy; (it, what it resolves to)."""
    python = options.python or rows.newest_first[0].stack.python
    with tempfile.TemporaryDirectory(prefix=".resolving.", dir=copy) as aside:
        say(f"resolving vLLM {name} with Python {python} …")
        first = [resolution.resolve(name, system, python, None, Path(aside)) for system in SYSTEMS]
        _require_name(name, first)
        torch, cuda = (resolution.same(first, what) for what in ("torch", "cuda"))
        held = _inputs(copy, name, cuda, torch, first)
        found = [resolution.resolve(name, system, python, held, Path(aside)) for system in SYSTEMS]
    glibc = max((each.glibc(python) for each in found), key=numbers)
    stack = Stack(python, cuda, resolution.driver(rows, cuda), torch)
    own = rows.newest_first[0].own_variants
    release = Release(name, None, stack, ("wheels",), glibc, own)
    path = copy / "variants.toml"
    path.write_text(with_table(path.read_text(encoding="utf-8"), rows, release), encoding="utf-8")
    return release, found


def _require_name(name: str, resolutions: Sequence[Resolution]) -> None:
    """Refuse a spelling of a version that is another on the index: 0.34 is its 0.34.0."""
    for found in (each.versions.get("vllm") for each in resolutions):
        if found != name:
            raise UsageError(
                f"the index has no vLLM {name} by that name, but {found}",
                hint=f"vllm-variants release add {found}",
            )


def _inputs(copy: Path, name: str, cuda: str, torch: str, resolutions: Sequence[Resolution]) -> Path:
    """Write what the locks are made from, unless the stack has it already; the path of the overrides."""
    folder = copy / "locks"
    (folder / f"{name}.in").write_text(f"vllm=={name}\n", encoding="utf-8")
    held = folder / f"cuda{cuda}-torch{torch}.overrides"
    if not held.is_file():
        lines = [line for each in resolutions for line in resolution.overrides(each).splitlines(True)]
        held.write_text("".join(dict.fromkeys(lines)), encoding="utf-8")
    compiler = folder / f"cuda{cuda}.compiler.in"
    if not compiler.is_file():
        major, minor = numbers(cuda)[:2]
        package = "nvidia-cuda-nvcc" if major > 12 else f"nvidia-cuda-nvcc-cu{major}"
        compiler.write_text(f"{package}>={cuda},<{major}.{minor + 1}\n", encoding="utf-8")
    return held


def with_table(text: str, rows: Matrix, release: Release) -> str:
    """The text of the matrix with the release's table, before the first older one that is not the default.

    Raises `InputError` for a text without tables of releases.
    """
    stack = release.stack
    lines = [
        f'[release."{release.name}"] # no nixpkgs packages it: made of published wheels only',
        'builders = ["wheels"]',
        f'python = "{stack.python}"',
        f'cuda = "{stack.cuda}"',
        f'driver = "{stack.driver}"',
        f'glibc = "{release.glibc}"',
        f'torch = "{stack.torch}"',
    ]
    if release.own_variants:
        lines.append(f"own-variants = {json.dumps(list(release.own_variants))}")
    table = "\n".join(lines) + "\n\n"
    tables = list(_TABLE.finditer(text))
    if not tables:
        raise InputError("variants.toml has no table of a release")
    for match in tables:
        if match[1] != rows.default.name and order(match[1]) < order(release.name):
            return text[: match.start()] + table + text[match.start() :]
    after = re.search(r"\n\n|\Z", text[tables[-1].end() :])
    at = tables[-1].end() + (after.start() if after else 0)
    return text[:at].rstrip("\n") + "\n\n" + table.rstrip("\n") + "\n" + text[at:].removeprefix("\n")


def _derive(copy: Path, release: Release, resolutions: Sequence[Resolution], say: Say) -> None:
    """Unpack vLLM's wheel of each system, and write what their libraries hold into `expectations/`."""
    with tempfile.TemporaryDirectory(prefix="vllm-variants-wheels-") as aside:
        folders = []
        for each in resolutions:
            # Named as the wheel that it was: from the name the release is read.
            folders.append(Path(aside, each.wheels["vllm"][0]))
            own = Path(aside, f"{locks.platform_of(each.system)}.txt")
            own.write_text(_own_lines(copy, release, each.system), encoding="utf-8")
            command: list[str | Path] = ["pip", "install", "--quiet", "--require-hashes", "--no-deps"]
            command += ["--only-binary", ":all:", "--python-version", release.stack.python, "--target"]
            command += [folders[-1], "--python-platform", locks.wheel_platform(release, each.system), "-r"]
            installation.uv_run([*command, own], Path(sys.executable), [])
        text = _run(say, copy, "audit", "--derive", *folders)
    (copy / "expectations" / f"{release.name}.toml").write_text(text, encoding="utf-8")


def _own_lines(copy: Path, release: Release, system: str) -> str:
    """vLLM's own lines of a lock, with its hashes."""
    path = copy / "locks" / f"{release.name}-{locks.platform_of(system)}.txt"
    text = path.read_text(encoding="utf-8")
    match = re.search(r"^vllm==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    if not match:
        raise Error(f"the lock {path.name} that was made has no vLLM")
    return match[0]


def _signatures(
    copy: Path, rows: Matrix, release: Release, say: Say
) -> tuple[tuple[CalledCheck, ...], tuple[Look, ...]]:
    """Install the release as this host would run it, and try what the checks call."""
    system = host_system()
    say("installing it, to try what the GPU checks call …")
    path = copy / "locks" / f"{release.name}-{locks.platform_of(system)}.txt"
    with tempfile.TemporaryDirectory(prefix="vllm-variants-installed-") as aside:
        interpreter = interpreters.find(release.stack.python)
        installation.environment(Path(aside), interpreter)
        installation.sync(Path(aside), Lock(release, system, path, None), [path], None)
        checks = catalogue.read()
        say(f"calling {len(checks)} checks without a GPU …")
        called = signatures.record(Path(aside, "bin", "python"), checks)
    folder = copy / "signatures"
    before = next((folder / f"{r.name}.json" for r in rows.newest_first
                   if (folder / f"{r.name}.json").is_file()), None)  # fmt: skip
    folder.mkdir(exist_ok=True)
    text = json.dumps(signatures.document(release.name, called), indent=1) + "\n"
    (folder / f"{release.name}.json").write_text(text, encoding="utf-8")
    sms = sorted({variant.capability.sm for variant in rows.every_variant})
    earlier = signatures.read(before) if before else ()
    return tuple(called), tuple(signatures.to_look_at(release.name, checks, called, earlier, sms))


def _contents(root: Path) -> dict[Path, bytes]:
    """Every file below `root` that is no link: its path there → its digest."""
    paths = (path for path in root.rglob("*") if "__pycache__" not in path.parts and not path.is_symlink())
    return {path.relative_to(root): digest for path in paths if (digest := _digest(path))}


def _digest(path: Path) -> bytes | None:
    """The SHA-256 of a file; None: there is none."""
    return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None


def _changes(root: Path, copy: Path, before: Mapping[Path, bytes]) -> dict[Path, str]:
    """Every file of the copy that is new or other than `before`: its path in the checkout → its text.

    Raises `Error` where the checkout's own file is not as it was then: somebody else changed it.
    """
    changed = [path for path, digest in sorted(_contents(copy).items()) if digest != before.get(path)]
    for path in changed:
        if _digest(root / path) != before.get(path):
            raise Error(
                f"nothing was added: {root / path} was changed while the release was made",
                hint="run it again: what uv downloaded is kept",
            )
    return {root / path: (copy / path).read_text(encoding="utf-8") for path in changed}
