"""CPython in a folder of its own that needs nothing of this host but glibc: taken, made relocatable, checked.

Python finds its standard library beside its own program (Modules/getpath.py), so a copy works anywhere once
three things are seen to: shared libraries of the host that its modules load come along, run paths are
relative, and the variables of its build (`_sysconfigdata…`) name no folder of this machine. The check
then has the copy import all that the original could, and looks at every library that was loaded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import bytecode
from vllm_variants.errors import Error, MissingError
from vllm_variants.export import host_packages, run_path
from vllm_variants.export.others import Other
from vllm_variants.machine import interpreters
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.results import Result
from vllm_variants.system import folders, process, uv
from vllm_variants.system.progress import Say
from vllm_variants.versions import numbers

_PROBE = Path(__file__).with_name("interpreter_probe.py")
_PATIENCE = 120.0
"""Seconds that an interpreter has to import its standard library, and uv to fetch one."""
_GLIBC = re.compile(
    r"(lib(c|m|dl|pthread|rt|util|resolv|anl|mvec|BrokenLocale|nss_\w+|thread_db)\.so\.\d+|ld-linux-[\w-]+\.so\.\d)"
)
"""Libraries of glibc itself, which fit the host's loader and no other."""
_FALLBACK = ("libgcc_s.so.1", "libstdc++.so.6")
"""Libraries that wheels expect of a host; taken from the export only where the host has none."""
_LEFT_OUT = (
    *("site-packages", "dist-packages", "__pycache__", "ensurepip", "lib2to3", "config-*", "*.a"),
    *("test", "tests", "idlelib", "turtledemo", "tkinter", "_tkinter*.so", "_test*.so", "xx*.so"),
)
"""Of the standard library, what serving never imports: tests, Tk, static libraries, installers."""
_LICENCE = "Python-2.0.1"
_VERSION = re.compile(rb"GLIBC_2\.(\d+)\x00")


@dataclass(frozen=True)
class Runtime:
    """A relocatable CPython at `path`: `bin/python3.12`, `lib/`, `include/`.

    `bundled` are the host's libraries that came along, by name; `glibc` is the oldest that it runs on; `site`
    is where it looks for packages, relative to it (Debian's: lib/python3/dist-packages). `parts` says what of
    this host it is made of.
    """

    path: Path
    minor: str
    version: str
    bundled: tuple[str, ...]
    glibc: str
    site: str
    parts: tuple[Other, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The facts of it in an export's manifest."""
        return {"version": self.version, "glibc": self.glibc, "libraries": list(self.bundled)}


def chosen(result: Result, requested: Path | None, say: Say) -> Interpreter:
    """The Python to take: the one asked for, else one that uv installs, else the result's own.

    Raises `UsageError` for one of another version than the result needs, `MissingError` without any.
    """
    minor = _minor(result)
    if requested:
        return interpreters.find(minor, requested)
    installed = _installed_by_uv(minor)
    if installed:
        return interpreters.find(minor, installed)
    program = own(result)
    say(f"uv could not install Python {minor}: taking {program} along")
    if not program.is_file():
        raise MissingError(
            f"{result.path} needs {program}, which is not there", hint="name one with --python"
        )
    return interpreters.find(minor, program)


def own(result: Result) -> Path:
    """The interpreter of this host that a result runs with, links resolved."""
    return (result.path / "bin" / f"python{_minor(result)}").resolve()


def _minor(result: Result) -> str:
    return ".".join(str(result.manifest.facts["python"]).split(".")[:2])


def _installed_by_uv(minor: str) -> Path | None:
    """A Python that uv installs (python-build-standalone, made to be moved); None where it cannot."""
    folder = folders.cache() / "python"
    pattern = f"cpython-{minor}.*/bin/python{minor}"
    command: list[str | Path] = [
        uv.program(),
        "python",
        "install",
        "--install-dir",
        folder,
        "--no-bin",
        minor,
    ]
    if not (found := sorted(folder.glob(pattern))):
        try:
            process.capture(command, seconds=_PATIENCE)
        except OSError:
            return None
        found = sorted(folder.glob(pattern))
    return max(found, key=lambda path: numbers(path.parts[-3].split("-")[1]), default=None)


def take(interpreter: Interpreter, to: Path, say: Say) -> Runtime:
    """Make the folder `to`, which must not exist, a relocatable copy of a CPython, and check it.

    Raises `MissingError` where a part of it cannot be made relocatable, `Error` where the copy is not what
    the original is.
    """
    facts = _probe(interpreter.path, *_FALLBACK)
    minor = ".".join(interpreter.version.split(".")[:2])
    program = to / "bin" / f"python{minor}"
    program.parent.mkdir(parents=True)
    shutil.copyfile(interpreter.path, program)
    program.chmod(0o755)
    standard = to / "lib" / f"python{minor}"
    left_out = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(facts["stdlib"], standard, ignore=left_out)
    if not (standard / "lib-dynload").is_dir() and Path(facts["dynload"]).is_dir():
        shutil.copytree(facts["dynload"], standard / "lib-dynload", ignore=left_out)
    _take_headers(Path(facts["include"]), to / "include" / f"python{minor}", say)
    bundled, fallbacks = _bundled(facts), _fallbacks(facts)
    _take_libraries(bundled, fallbacks, to / "lib")
    _make_relative(program, standard, bundled)
    _forget_prefix(standard, facts["prefix"])
    bytecode.write(
        Steps(_quiet), bytecode.Bytecode.ALL, Interpreter(program, interpreter.version, ""), standard
    )
    site = _require_same(program, facts, to)
    parts = _parts(interpreter, standard, bundled, fallbacks)
    return Runtime(to, minor, interpreter.version, tuple(sorted(bundled)), _oldest_glibc(to), site, parts)


def _quiet(line: str) -> None:
    pass


def _probe(program: Path, *names: str) -> dict[str, Any]:
    """What `interpreter_probe.py` says of a Python; `names` are libraries that it looks for as well."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    command: list[str | Path] = [program, "-I", "-S", "-B", _PROBE, *names]
    try:
        completed = process.capture(command, env=environment, folder=Path("/"), seconds=_PATIENCE)
        facts: dict[str, Any] = json.loads(completed.stdout)
    except (OSError, ValueError) as error:
        raise Error(
            f"{program} does not say what it consists of: {error}", hint="name another with --python"
        ) from error
    return facts


def _take_headers(source: Path, target: Path, say: Say) -> None:
    if (source / "Python.h").is_file():
        shutil.copytree(source, target)
    else:
        say(f"warning: {source} has no Python.h: Triton cannot compile launchers (install python3-dev)")


def _bundled(facts: Mapping[str, Any]) -> dict[str, Path]:
    """The libraries of the host that the Python loads, by the names under which it asks for them."""
    modules = str(facts["dynload"])
    paths = [Path(path) for path in facts["libraries"] if not str(path).startswith(modules)]
    return {path.name: path for path in paths if not _GLIBC.fullmatch(path.name)}


def _fallbacks(facts: Mapping[str, Any]) -> dict[str, Path]:
    """The libraries that wheels expect of a host; raises `MissingError` where this one has none."""
    found = {Path(path).name: Path(path) for path in facts["asked"]}
    if missing := set(_FALLBACK) - {*found, *_bundled(facts)}:
        raise MissingError(f"this machine has no {', '.join(sorted(missing))}", hint="install libstdc++6")
    return found


def _take_libraries(bundled: Mapping[str, Path], fallbacks: Mapping[str, Path], to: Path) -> None:
    for name, path in bundled.items():
        shutil.copyfile(path, to / name)
    if fallbacks:
        (to / "fallback").mkdir()
    for name, path in fallbacks.items():
        shutil.copyfile(path, to / "fallback" / name)


def _parts(
    interpreter: Interpreter, standard: Path, bundled: Mapping[str, Path], fallbacks: Mapping[str, Path]
) -> tuple[Other, ...]:
    """CPython with its licence, its package of this host's distribution if it has one, and its libraries'."""
    text, version = standard / "LICENSE.txt", interpreter.version
    python = Other("cpython", version, f"pkg:generic/cpython@{version}", (_LICENCE,), "", (text,))
    if not text.is_file():  # Debian has it in the package's copyright file
        python = replace(python, texts=())
    package = [found for found in host_packages.of([interpreter.path]) if found.version]
    libraries = {*bundled.values(), *fallbacks.values()}
    own = {path for path in libraries if path.name.startswith("libpython")}
    return (python, *package, *host_packages.of(sorted(libraries - own)))


def _make_relative(program: Path, standard: Path, bundled: Mapping[str, Path]) -> None:
    """Have the program, its modules and what came along look for each other beside themselves."""
    lib = standard.parent
    if bundled:
        run_path.make_relative(program, "$ORIGIN/../lib")
    for path in (*(lib / name for name in bundled), *standard.rglob("*.so")):
        found = run_path.read(path)
        if found and not found.text.startswith("$ORIGIN"):
            run_path.make_relative(path, "$ORIGIN" if path.parent == lib else "$ORIGIN/../..")


def _forget_prefix(standard: Path, prefix: str) -> None:
    """Make the variables of the Python's build follow it: they name where it was installed."""
    for path in standard.glob("_sysconfigdata_*.py"):
        text = path.read_text(encoding="utf-8")
        if prefix not in ("/", "/usr") and prefix in text:
            text = text.replace(prefix, "@prefix@") + (
                "\nimport sys as _sys\n"
                "build_time_vars = {\n"
                "    name: value.replace('@prefix@', _sys.base_prefix) if isinstance(value, str) else value\n"
                "    for name, value in build_time_vars.items()\n"
                "}\n"
            )
            path.write_text(text, encoding="utf-8")


def _require_same(program: Path, facts: Mapping[str, Any], folder: Path) -> str:
    """Where the copy looks for packages, relative to it.

    Raises `Error` unless it imports all that the original did, with no library of the host but glibc's.
    """
    copy = _probe(program)
    lost = sorted(set(facts["modules"]) - set(copy["modules"]) - {"_ctypes_test"})
    if lost:
        raise Error(f"Python's copy cannot import {', '.join(lost)}", hint="name another with --python")
    if Path(copy["prefix"]) != folder.resolve():
        raise Error(f"Python's copy takes {copy['prefix']} for its home", hint="name another with --python")
    own = str(folder.resolve())
    foreign = [
        path
        for path in copy["libraries"]
        if not _GLIBC.fullmatch(Path(path).name) and not str(Path(path).resolve()).startswith(own)
    ]
    if foreign:
        raise Error(f"Python's copy still loads {', '.join(foreign)}", hint="name another with --python")
    usual = str(
        folder.resolve() / "lib" / f"python{'.'.join(copy['version'].split('.')[:2])}" / "site-packages"
    )
    return str(Path(usual if usual in copy["site"] else copy["site"][-1]).relative_to(folder.resolve()))


def _oldest_glibc(folder: Path) -> str:
    """The newest version of glibc that a binary in `folder` asks for; each names its versions in full."""
    newest = 17  # manylinux's oldest, which every x86_64 and aarch64 system has
    for path in folder.rglob("*"):
        if (
            path.is_file()
            and not path.is_symlink()
            and (path.suffix == ".so" or ".so." in path.name or path.parent.name == "bin")
        ):
            newest = max([newest, *(int(found) for found in _VERSION.findall(path.read_bytes()))])
    return f"2.{newest}"
