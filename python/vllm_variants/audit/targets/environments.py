"""Python environments: a venv, a conda prefix, or whatever an interpreter imports from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets.found import Found, Kind, Progress, release_in
from vllm_variants.audit.targets.trees import inside, read_tree
from vllm_variants.errors import InputError, MissingError
from vllm_variants.system import process

_NOT_OF_IT = ("pkgs", "envs")
"""Of a conda root prefix: packages as they were downloaded, and other environments."""
_ASK = (
    "import json,site,sys,sysconfig;p=sysconfig.get_paths();"
    "print(json.dumps({'prefix':sys.prefix,'paths':[p['purelib'],p['platlib'],*"
    "([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),*site.getsitepackages()]}))"
)


def is_environment(folder: Path) -> bool:
    """Whether a folder is a venv, a conda prefix, or has site-packages where Python looks for them."""
    return (
        (folder / "pyvenv.cfg").is_file()
        or (folder / "conda-meta").is_dir()
        or next(folder.glob("lib/python3*/site-packages"), None) is not None
    )


def active(variables: Mapping[str, str], folder: Path) -> Path:
    """The environment that somebody works in: an activated one, else `.venv` in the current folder or above.

    Raises `MissingError` where there is none.
    """
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if variables.get(name):
            return Path(variables[name])
    for above in (folder, *folder.parents):
        if (above / ".venv" / "pyvenv.cfg").is_file():
            return above / ".venv"
    raise MissingError(
        "no PATH is named, no environment is activated, and there is no .venv here",
        hint="name what to audit: vllm-variants audit PATH, or --python PATH for an interpreter's packages",
    )


def read_environment(prefix: Path, progress: Progress, fresh: bool, remember: bool = False) -> Found:
    """Everything below an environment's prefix; `remember`: what was read is written into it."""
    cache = Cache(prefix, fresh)
    libraries = read_tree(prefix, progress, "", cache, _NOT_OF_IT)
    if remember:
        cache.remember()
    folders = sorted({folder.resolve() for folder in prefix.glob("lib*/python3*/site-packages")})
    notes = _elsewhere(folders)
    names = [path.name for folder in folders for path in inside(folder)]
    if _uses_system(prefix):
        notes.append(
            f"{prefix} also uses the system's packages, which were not read: --python reads them too"
        )
    return Found(Kind.ENVIRONMENT, tuple(libraries), release_in(names), tuple(notes))


def _uses_system(prefix: Path) -> bool:
    try:
        text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    settings = dict(line.partition("=")[::2] for line in text.lower().splitlines())
    return any(
        key.strip() == "include-system-site-packages" and value.strip() == "true"
        for key, value in settings.items()
    )


def _elsewhere(folders: list[Path]) -> list[str]:
    """A sentence on each folder outside that a `.pth` file adds to the path: it was not read."""
    notes = []
    for folder in folders:
        for file in folder.glob("*.pth"):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                added = (
                    (folder / line.strip()).resolve()
                    if line.strip() and not line.startswith(("import ", "#"))
                    else None
                )
                if added and added.is_dir() and not added.is_relative_to(folder.resolve()):
                    notes.append(f"{file.name} adds {added}, which was not read: audit it by its name")
    return notes


def interpreter(program: Path) -> Path:
    """The path of an interpreter, as a shell finds what was named; `MissingError` where there is none."""
    found = shutil.which(program)
    if found is None:
        raise MissingError(
            f"{program} is no program that can be run", hint="name an interpreter: --python .venv/bin/python"
        )
    return Path(found)


def read_python(program: Path, progress: Progress, fresh: bool) -> Found:
    """What an interpreter imports from, as it says itself.

    Raises `MissingError` where the program is not there, `InputError` where it is no Python.
    """
    prefix, folders = _asked(program)
    if is_environment(prefix) and all(folder.is_relative_to(prefix) for folder in folders):
        return read_environment(prefix, progress, fresh)
    libraries: list[LibrarySummary] = []
    for folder in folders:
        libraries += read_tree(folder, progress, f"{folder}/", Cache(folder, fresh))
    names = [path.name for folder in folders for path in inside(folder)]
    return Found(Kind.ENVIRONMENT, tuple(libraries), release_in(names), tuple(_elsewhere(folders)))


def _asked(program: Path) -> tuple[Path, list[Path]]:
    """An interpreter's prefix, and the folders of packages that it has."""
    try:
        completed = process.capture(
            [program, "-I", "-c", _ASK] if os.sep in str(program) else [str(program), "-I", "-c", _ASK]
        )
        facts = json.loads(completed.stdout)
        prefix, paths = Path(facts["prefix"]), [Path(path) for path in dict.fromkeys(facts["paths"])]
    except FileNotFoundError as error:
        raise MissingError(
            f"{program} does not exist", hint="name an interpreter: --python .venv/bin/python"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{program} is no Python interpreter that answers",
            hint="try it: PYTHON -c 'import sys; print(sys.prefix)'",
        ) from error
    return prefix, [path for path in paths if path.is_dir()]
