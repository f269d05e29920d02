"""`slim = true`: which packages pass through the slimmer, when, and that they still build."""

from __future__ import annotations

import struct
from pathlib import Path

import making
from paths import MODEL, ROOT
from real_nix import Nix

from vllm_variants.fatbin import elf
from vllm_variants.fatbin.codecs import raw_payload
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model import matrix

SET = f"""(slim: changes:
  let library = import {ROOT}/nix; in library.packageSet {{
    nixpkgs = {MODEL};
    plan = library.plan ({{ system = "x86_64-linux"; variant = "sm100"; inherit slim; }} // changes);
  }})"""
PHASES = """(set: builtins.mapAttrs (_: package: package.slimPhase or "") {
  inherit (set.cudaPackages) cudnn libcublas libcufft libcusparse_lt nccl cuda_cudart;
  inherit (set.python312Packages) torch vllm torchvision;
})"""


def test_the_wheel_and_the_closed_libraries_pass_through_it_and_nothing_else(nix: Nix) -> None:
    phases = nix.value(f"{PHASES} ({SET} true {{ }})")
    slimmed = {name for name, phase in phases.items() if phase}
    assert slimmed == {"torch", "cudnn", "libcublas", "libcufft", "libcusparse_lt"}
    default = matrix.load().default.name
    assert all(f"--release {default} --in-place --sm 10.0\n" in phases[name] for name in slimmed)


def test_a_release_of_ones_own_is_slimmed_for_the_defaults_driver(nix: Nix) -> None:
    own = '{ release = { name = "9.9.9"; }; }'
    assert 'slim "$path" --in-place --sm' in nix.value(f"{PHASES} ({SET} true {own})")["cudnn"]


def test_it_is_off_by_default(nix: Nix) -> None:
    assert set(nix.value(f"{PHASES} ({SET} false {{ }})").values()) == {""}


def test_it_keeps_every_capability_and_ptx_that_the_variant_has(nix: Nix) -> None:
    phases = nix.value(f'{PHASES} ({SET} true {{ extraCapabilities = [ "10.3" ]; ptx = true; }})')
    assert "--in-place --sm 10.0 --sm 10.3 --keep-ptx\n" in phases["cudnn"]


def test_torch_from_source_needs_none(nix: Nix) -> None:
    phases = nix.value(f'{PHASES} ({SET} true {{ torch = "source"; }})')
    assert not phases["torch"]
    assert phases["cudnn"]


def test_it_is_the_last_phase(nix: Nix) -> None:
    """patchelf moves program headers: it must be done by then."""
    assert nix.value(f"({SET} true {{ }}).python312Packages.torch.postPhases")[-1] == "slimPhase"


def test_a_slim_variant_builds_and_runs(building_nix: Nix, checkout: Path) -> None:
    flake = f'(builtins.getFlake "path:{checkout}")'
    built = building_nix.build(
        "--impure", "--expr", f"{flake}.packages.x86_64-linux.sm90.override {{ slim = true; }}"
    )
    assert (built / "bin" / "python").exists()
    said = building_nix.run(
        "log",
        "--impure",
        "--expr",
        f"""
        builtins.head (builtins.filter (m: m.pname or "" == "torch")
          ({flake}.packages.x86_64-linux.sm90.override {{ slim = true; }}).propagatedBuildInputs)""",
    )
    assert "0 B → 0 B" in said or "for sm90" in said


def add_debug_information(path: Path) -> None:
    """Make `.comment` a section `.debug_x` of 9,000 bytes, at the file's end."""
    with opened(path) as source:
        headers = elf.parse(source)
    data = bytearray(path.read_bytes().replace(b".comment", b".debug_x"))
    number = next(n for n, section in enumerate(headers.sections) if section.name == ".comment")
    at = headers.section_headers_at + number * elf.SECTION_HEADER.size
    struct.pack_into("<QQ", data, at + 0x18, len(data), 9000)
    path.write_bytes(data + b"d" * 9000)


def test_a_library_of_the_set_keeps_the_variants_images(
    building_nix: Nix, checkout: Path, tmp_path: Path
) -> None:
    size = 400_000
    kept = making.cubin("sm_100", size)
    both = making.section([making.cubin("sm_90", size), kept])
    whole = making.library(tmp_path / "libcudnn_graph.so.9", both)
    add_debug_information(whole)
    slimmed = building_nix.build(
        "--impure",
        "--expr",
        f"""
        let
          library = import {checkout}/nix;
          set = library.packageSet {{
            nixpkgs = {checkout}/tests/nix/nixpkgs;
            plan = library.plan {{ system = "x86_64-linux"; variant = "sm100"; slim = true; }};
          }};
        in set.cudaPackages.cudnn.overrideAttrs (old: {{
          buildPhase = old.buildPhase + "cp ${{{whole}}} $out/lib/libcudnn_graph.so.9";
        }})
        """,
    )
    library = slimmed / "lib" / "libcudnn_graph.so.9"
    assert library.stat().st_size < whole.stat().st_size - size
    content = library.read_bytes()
    assert b"sm_90 machine code" not in content
    with opened(library) as source:
        images = [
            image
            for section in device_sections(elf.parse(source))
            for container in containers_in(source, section)
            for image in container.images
        ]
        (image,) = (image for image in images if not is_stub(source, image))
        code = raw_payload(source, image)
        names = [section.name for section in elf.parse(source).sections]
    assert code == kept.payload
    assert (image.compression, image.size < size // 10) == ("zstd", True)
    assert ".debug_x" not in names
