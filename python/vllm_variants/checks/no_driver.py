"""Load libraries that need `libcuda.so.1` on a machine without NVIDIA's driver, to read what they register.

The loader is satisfied by any loaded library of that name (ELF specification, DT_SONAME), and resolves
functions when they are first called (RTLD_LAZY): so an empty library will do, as long as nobody calls
the driver.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import tempfile
from pathlib import Path

_DRIVER = "libcuda.so.1"
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
_PAGE = 0x10000  # the largest page of either machine


def stand_in() -> None:
    """Make `libcuda.so.1` something that the loader has, and let it resolve functions late.

    Nothing happens where the driver's own is found. Raises `OSError` where no file can be written.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, _DRIVER)
            path.write_bytes(_empty_library(_DRIVER))
            ctypes.CDLL(str(path))
        sys.setdlopenflags(os.RTLD_LAZY)


def _empty_library(soname: str) -> bytes:
    """A shared library that defines nothing: headers, one empty symbol, its name, a dynamic section."""
    head, segment, symbol, tag = 64, 56, 24, 16
    strings = b"\0" + soname.encode() + b"\0"
    symbols = head + 2 * segment
    hashes = symbols + symbol
    names = hashes + 16
    dynamic = -(-(names + len(strings)) // 8) * 8
    # DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME, DT_NULL
    tags = ((4, hashes), (5, names), (6, symbols), (10, len(strings)), (11, symbol), (14, 1), (0, 0))
    end = dynamic + tag * len(tags)
    machine = _MACHINES[platform.machine()]
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, head, 0, 0, head, segment, 2, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, end, end, _PAGE)  # PT_LOAD, readable and writable
    size = end - dynamic
    elf += struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, size, size, 8)  # PT_DYNAMIC
    elf += bytes(symbol) + struct.pack("<4I", 1, 1, 0, 0) + strings
    return elf.ljust(dynamic, b"\0") + b"".join(struct.pack("<QQ", *entry) for entry in tags)
