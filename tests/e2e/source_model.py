"""A checkout and a model of nixpkgs whose vLLM leaves libraries that an audit accepts.

The model in tests/nix/nixpkgs leaves a text where vLLM has its extensions. A copy of it made here
puts real ELF files there, small ones, each with one container of one image for its SM, under the
names that the release's expectations have. Everything else is as the model has it.
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

from vllm_variants.audit import contents as expectations
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "nix" / "nixpkgs"
# What Nix reads of the checkout.
PARTS = (
    "flake.lock",
    "flake.nix",
    "nix",
    "pkgs",
    "variants.toml",
    "python",
    "pyproject.toml",
    "LICENSE",
    "locks",
)
_LEAVES = """echo "_C for $targets" > "$out/lib/python3.12/site-packages/vllm/_C.abi3.so\""""


def checkout(into: Path) -> Path:
    """A copy of what Nix reads of this checkout, so that edits beside a test change no derivation."""
    for part in PARTS:
        source, target = ROOT / part, into / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (into / "README.md").write_text("")
    return into


def model(into: Path, while_building: str = "") -> Path:
    """A copy of the model with device code; `while_building` is shell that vLLM's build runs first."""
    shutil.copytree(MODEL, into)
    (into / "interpreter").write_text(f"{sys.executable}\n")
    expression = into / "vllm.nix"
    text = expression.read_text()
    assert _LEAVES in text, "the model's vLLM leaves its library otherwise now"
    copied = """cp -r ${./libraries}/''${targets%%;*}/vllm "$out/lib/python3.12/site-packages/\""""
    phase = "buildPhase = ''\n"
    assert text.count(phase) == 1
    text = text.replace(phase, f"{phase}    {while_building}\n")
    expression.write_text(text.replace(_LEAVES, copied))
    rows = matrix.load()
    for variant in rows.variants.values():
        folder = into / "libraries" / str(variant.capability)
        for release in rows.packaged.values():
            known = expectations.load(release.name, variant.system)
            for name in known.libraries if known else ["vllm/_C.abi3.so"]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(library(variant.capability))
    return into


def library(capability: Capability, machine: int = 62) -> bytes:
    """A shared library with one container of one cubin for `capability` in `.nv_fatbin`."""
    payload = b"\x7fELF" + bytes(252)
    digits = capability.major * 10 + capability.minor
    cubin, header_size, flags = 2, 64, 0x11
    image = struct.pack("<HHIQII", cubin, 0x0101, header_size, len(payload), 0, 0)
    image += struct.pack("<HHIIIQQQ", 0, 8, digits, 0, 0, flags, 0, 0)
    section = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(image) + len(payload)) + image + payload
    names = b"\0.nv_fatbin\0.shstrtab\0"
    fatbin_at, names_at = 4096, 4096 + len(section)
    headers_at = (names_at + len(names) + 7) & ~7
    headers = _section(0, 0, 0, 0, 0) + _section(1, 1, 2, fatbin_at, len(section))
    headers += _section(12, 3, 0, names_at, len(names))
    header = struct.pack("<16sHHIQQQ", b"\x7fELF\2\1\1" + bytes(9), 3, machine, 1, 0, 64, headers_at)
    header += struct.pack("<IHHHHHH", 0, 64, 56, 1, 64, 3, 2)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, headers_at, headers_at, 4096)
    body = (header + load).ljust(fatbin_at, b"\0") + section + names
    return body.ljust(headers_at, b"\0") + headers


def _section(name: int, kind: int, flags: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, flags, offset if flags else 0, offset, size, 0, 0, 8, 0)
