"""Fuzz the reader and the slimmer with coverage as guide (atheris, libFuzzer's engine for Python).

    pip install atheris
    python bench/fuzz.py CORPUS-FOLDER -max_total_time=300

Whatever the bytes: reading, auditing and slimming end in an answer or in an error that names file
and offset, within bounded steps; and what was slimmed has been proven. Anything else is a crash.
The corpus starts with libraries made by the tests. At the end libFuzzer prints executions and
coverage.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "unit" / "fatbin")]

with atheris.instrument_imports(include=["vllm_variants"]):
    from vllm_variants.audit.library import audit_library
    from vllm_variants.capability import Capability
    from vllm_variants.errors import InputError
    from vllm_variants.fatbin import elf, layout, library
    from vllm_variants.fatbin.source import Malformed, mapped
    from vllm_variants.fatbin.verify import Wrong

DEVICE = Capability(9, 0)
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
library.SMALLEST_HOLE = 0x1000  # small inputs have small holes


def one(data: bytes) -> None:
    path = FOLDER / "input.so"
    path.write_bytes(data)
    with mapped(path) as source:
        found = audit_library(source, "input.so", DEVICE)
        if found and found.problem:
            assert "at offset 0x" in found.problem
            assert "input.so" in found.problem
    try:
        library.slim_file(path, [DEVICE], to=FOLDER / "new.so")
    except (Malformed, Wrong):
        pass  # refused, with a sentence
    except InputError as error:
        assert error.message
    assert {p.name for p in FOLDER.iterdir()} <= {"input.so", "new.so"}


def seed(folder: Path) -> None:
    """Write a first corpus: whole libraries, small ones, for both machines."""
    from making import AARCH64, X86_64, Made, container, cubin, ptx, section
    from making import library as made

    folder.mkdir(parents=True, exist_ok=True)
    bodies = [
        section([cubin("sm_90", 600)]),
        section(
            [cubin("sm_80", 9000), cubin("sm_90a", 700), ptx("compute_80", 300)], [cubin("sm_100f", 9000)]
        ),
        section([ptx("compute_120", 9000)], [Made("sm_50", b"lto" * 9, code=8)], [], padding=24),
    ]
    for index, body in enumerate(bodies):
        for machine in (X86_64, AARCH64):
            more = {"__nv_relfatbin": body, ".cask_resource": b"table" + container(cubin("sm_120", 9000))}
            made(folder / f"seed-{index}-{machine}", body, machine=machine, more=more if index else {})


def main() -> None:
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and not Path(sys.argv[1]).exists():
        seed(Path(sys.argv[1]))
    assert elf.PAGE_SIZES
    assert layout
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
