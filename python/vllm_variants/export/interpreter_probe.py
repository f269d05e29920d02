"""What a Python consists of; run by that Python, by path, with its standard library alone.

Imports every extension module of the standard library, then prints one JSON object: its prefix, where its
parts are, which extension modules it could import, and each shared library that is loaded now, by the
name under which the loader knows it.
"""

import ctypes
import importlib
import json
import os
import sys
import sysconfig
from pathlib import Path


class _Loaded(ctypes.Structure):
    """The beginning of `struct dl_phdr_info` (dl_iterate_phdr(3))."""

    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


def loaded() -> list[str]:
    """The paths of all shared libraries of this process, as the loader found them."""
    found: list[str] = []
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p)

    def note(info: "ctypes._Pointer[_Loaded]", size: int, data: object) -> int:
        found.append(os.fsdecode(info.contents.name or b""))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(callback_type(note), None)
    return sorted(path for path in found if path.startswith("/"))


def importable(folder: str) -> list[str]:
    """Those extension modules in `folder` (lib-dynload) that can be imported, without Tk's."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    names = sorted(
        {p.name.partition(".")[0] for p in Path(folder).iterdir() if p.name.endswith((suffix, ".abi3.so"))}
    )
    found = []
    for name in names:
        if name.startswith(("_tkinter", "_test", "_xx", "xx")):
            continue
        try:
            importlib.import_module(name)
        except Exception:
            continue
        found.append(name)
    return found


def main() -> None:
    """Print the facts."""
    standard = sysconfig.get_path("stdlib")
    platform = Path(sysconfig.get_path("platstdlib"), "lib-dynload")
    import site

    modules = importable(str(platform)) if platform.is_dir() else []
    for name in ("ssl", "sqlite3", "lzma", "bz2", "zlib", "ctypes"):  # built in, in some Pythons
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        modules.append(name)
    libraries = loaded()
    for name in sys.argv[1:]:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
    facts = {
        "version": sys.version.split()[0],
        "prefix": os.path.realpath(sys.base_prefix),
        "executable": os.path.realpath(sys.executable),
        "stdlib": standard,
        "dynload": str(platform),
        "include": sysconfig.get_path("include"),
        "site": site.getsitepackages([sys.prefix]),
        "modules": sorted(set(modules)),
        "libraries": libraries,
        "asked": [path for path in loaded() if path.rpartition("/")[2] in sys.argv[1:]],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
