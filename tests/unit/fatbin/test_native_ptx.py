"""What PTX says about itself, and what a cubin made of it must be."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from compiling import ptx_image, ptx_text
from making import Made, container, cuobjdump

from vllm_variants.errors import InputError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.codecs import LZ4, RAW, ZSTD, Encoding, encode, raw_payload
from vllm_variants.fatbin.container import Image, container_at
from vllm_variants.fatbin.native import cubin, ptx
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.cubin import Bytes, WrongCubin
from vllm_variants.fatbin.native.image import cubin_image
from vllm_variants.fatbin.native.ptx import UnknownOption
from vllm_variants.fatbin.source import Malformed
from vllm_variants.fatbin.stub import empty_cubin
from vllm_variants.model.capability import Capability, Target

TARGETS = ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_100f"]
TARGETS += ["sm_103", "sm_103a", "sm_120", "sm_120a", "sm_121"]


def compile_(compiler: Compiler, folder: Path, text: bytes, target: str, *options: str) -> bytes:
    source, made = folder / "a.ptx", folder / "a.cubin"
    source.write_bytes(text)
    command = compiler.command(Target.parse(target), options, source, made)
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return made.read_bytes()


def test_version_target_and_kernels_are_read() -> None:
    read = ptx.parse(ptx_text("scale", "_Z3addPfS_f", target="sm_90a", version="8.6"))
    assert read.version == (8, 6)
    assert read.target == Target.parse("9.0a")
    assert read.entries == {"scale", "_Z3addPfS_f"}


def test_kernels_are_found_however_they_are_written_and_not_in_comments() -> None:
    text = b"""/* .version 1.0
    .entry commented() */
    // .entry also_commented
.version 8.8   // by hand
  .target sm_80, debug
.address_size 64
.func helper() { ret; }
.entry plain() { ret; }
.weak .entry weak() { ret; }
.visible\t.entry
    $odd$name(.param .u64 a) { ret; }
"""
    read = ptx.parse(text)
    assert read.version == (8, 8)
    assert read.entries == {"plain", "weak", "$odd$name"}


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 90, b"garbage", b".version 8.8\n.entry a()", b".target sm_80\n"]
)
def test_what_is_no_ptx_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="it is no PTX"):
        ptx.parse(text)


@pytest.mark.parametrize("target", TARGETS)
def test_a_cubin_of_every_target_is_what_its_ptx_asked_for(
    compiler: Compiler, tmp_path: Path, target: str
) -> None:
    text = ptx_text("scale", "shift", target=target if target[-1] in "af" else "sm_75")
    made = cubin.parse(compile_(compiler, tmp_path, text, target))

    cubin.require(made, ptx.parse(text), Target.parse(target))
    assert made.kernels == {"scale": (8, 4), "shift": (8, 4)}
    assert made.target.sm == target.rstrip("f")
    assert made.virtual == ptx.parse(text).target.capability


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_120a"])
def test_a_cubin_of_cuda_13_is_known_too(compiler13: Compiler, tmp_path: Path, target: str) -> None:
    text = ptx_text(target=target if target.endswith("a") else "sm_75", version="9.0")
    made = cubin.parse(compile_(compiler13, tmp_path, text, target))

    cubin.require(made, ptx.parse(text), Target.parse(target))
    assert made.abi == 8
    assert made.virtual == ptx.parse(text).target.capability


def test_family_ptx_becomes_machine_code_of_any_member(compiler: Compiler, tmp_path: Path) -> None:
    for target in ("sm_100", "sm_103"):
        text = ptx_text(target="sm_100f")
        made = cubin.parse(compile_(compiler, tmp_path, text, target))
        cubin.require(made, ptx.parse(text), Target.parse(target))


def test_a_cubin_that_is_not_what_was_asked_for_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    text = ptx_text("scale", "shift")
    made, asked = cubin.parse(compile_(compiler, tmp_path, text, "sm_90")), ptx.parse(text)
    for read, target, words in (
        (asked, "9.0a", "it is for 9.0, not 9.0a"),
        (asked, "8.9", "it is for 9.0, not 8.9"),
        (replace(asked, target=Target.parse("7.5")), "9.0", "made from PTX for 8.0, not 7.5"),
        (replace(asked, entries=frozenset({"scale"})), "9.0", "1 kernels that the PTX has not, shift"),
        (
            replace(asked, parameters={"shift": ()}),
            "9.0",
            "shift takes parameters of 8, 4 bytes, not no bytes",
        ),
        (replace(asked, entries=asked.entries | {"more"}), "9.0", "lacks 1 of 3 kernels, more for one"),
    ):
        with pytest.raises(WrongCubin, match=words):
            cubin.require(made, read, Target.parse(target))


PARAMETERS = """
.version 8.8
.target sm_80
.address_size 64
.visible .entry many(
    .param .u64 .ptr .global .align 16 many_param_0,
    .param .f32 many_param_1, .param .align 64 .b8 many_param_2[13],
    .param .u8 many_param_3
)
.maxntid 128, 1, 1
{ ret; }
.entry none() { ret; }
.weak .entry bare
{ ret; }
.entry large(.param .b64 large_param_0, .param .align 8 .b8 large_param_1[20000]) { ret; }
.entry sampled(.param .texref sampled_param_0, .param .b32 sampled_param_1) { ret; }
"""
SIZES = {"many": (8, 4, 13, 1), "none": (), "bare": (), "large": (8, 20000)}


def test_the_parameters_of_kernels_are_read_however_they_are_declared() -> None:
    read = ptx.parse(PARAMETERS.encode())
    assert read.parameters == SIZES
    assert read.entries == {*SIZES, "sampled"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_100", "sm_120"])
def test_a_cubin_says_what_its_kernels_take(
    compiler: Compiler, compiler13: Compiler, tmp_path: Path, target: str
) -> None:
    text = PARAMETERS.replace("sm_80", target).encode()
    for ptxas in (compiler, compiler13):
        made = cubin.parse(compile_(ptxas, tmp_path, text, target))
        assert {name: made.kernels[name] for name in SIZES} == SIZES
        cubin.require(made, ptx.parse(text), Target.parse(target))


def test_a_cubin_with_another_kernel_of_the_same_name_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    text = ptx_text("scale")
    other = text.replace(b".param .f32 by", b".param .f32 by, .param .u8 more")
    assert other != text
    made = cubin.parse(compile_(compiler, tmp_path, other, "sm_90"))
    with pytest.raises(WrongCubin, match="scale takes parameters of 8, 4, 1 bytes, not 8, 4 bytes"):
        cubin.require(made, ptx.parse(text), Target.parse("9.0"))


def test_the_parameters_of_a_kernel_with_a_very_long_name_are_found(
    compiler: Compiler, tmp_path: Path
) -> None:
    name = "_ZN" + "long" * 200
    made = cubin.parse(compile_(compiler, tmp_path, ptx_text(name), "sm_90"))
    assert made.kernels == {name: (8, 4)}


def test_a_kernel_without_code_is_none(compiler: Compiler, tmp_path: Path) -> None:
    data = bytearray(compile_(compiler, tmp_path, ptx_text("scale"), "sm_90"))
    elf = elfs.parse(Bytes("a cubin", bytes(data)))
    symbols = next(section for section in elf.sections if section.name == ".symtab")
    for at in range(symbols.offset, symbols.end, 24):
        data[at + 6 : at + 8] = bytes(2)  # a symbol's section: none
    with pytest.raises(WrongCubin, match="it lacks 1 of 1 kernels"):
        cubin.require(cubin.parse(bytes(data)), ptx.parse(ptx_text("scale")), Target.parse("9.0"))


def test_a_broken_cubin_is_one_error_at_every_length(compiler: Compiler, tmp_path: Path) -> None:
    whole = compile_(compiler, tmp_path, ptx_text(), "sm_100a")
    for length in range(0, len(whole), 37):
        with pytest.raises(WrongCubin):
            cubin.require(cubin.parse(whole[:length]), ptx.parse(ptx_text()), Target.parse("10.0a"))
    for at in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        try:
            cubin.parse(bytes(damaged))
        except WrongCubin as error:
            assert error.message


def test_the_stub_of_a_target_is_read_as_a_cubin_without_kernels() -> None:
    for word in ("sm_80", "sm_90a", "sm_100", "sm_120a"):
        read = cubin.parse(empty_cubin(Target.parse(word)))
        assert (read.target.sm, read.kernels) == (word, {})


def stored(made: Made) -> tuple[Bytes, Image]:
    source = Bytes("lib.so", container(made))
    return source, container_at(source, 0, source.size).images[0]


@pytest.mark.parametrize("options", ["", "-v  ", "--register-usage-level=3  ", "-lineinfo -fmad=false " * 3])
def test_the_options_in_a_header_are_read(options: str) -> None:
    assert ptx.stored_options(*stored(ptx_image(ptx_text(), options=options))) == options.strip()


def test_options_outside_the_header_are_refused() -> None:
    for at, value in ((0x14, 79), (0x40, 500), (0x44, 500)):
        data = bytearray(container(ptx_image(ptx_text())))
        data[16 + at] = value & 0xFF
        data[16 + at + 1] = value >> 8
        source = Bytes("lib.so", bytes(data))
        with pytest.raises(Malformed, match="options lie outside"):
            ptx.stored_options(source, container_at(source, 0, source.size).images[0])


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("", ()),
        ("-v", ()),
        ("-lineinfo -v", ("-lineinfo",)),
        ("--fmad=false", ("--fmad", "false")),
        ("-O2 -maxrregcount 64", ("-O2", "-maxrregcount", "64")),
        ("--register-usage-level=3", ("--register-usage-level", "3")),
    ],
)
def test_known_options_are_passed_on(stored: str, given: tuple[str, ...]) -> None:
    assert ptx.compiler_options(stored) == given


@pytest.mark.parametrize(
    "stored",
    ["--new-thing", "-c", "-fmad=maybe", "-O 2", "-arch=sm_80", "-o /tmp/x", "-O3;ls", "--fmad", "@f"],
)
def test_an_unknown_option_is_refused_and_named(stored: str) -> None:
    with pytest.raises(UnknownOption, match="which is not known here"):
        ptx.compiler_options(stored)


def test_ptxas_takes_every_option_that_is_known(compiler: Compiler, tmp_path: Path) -> None:
    values = {"true|false": "false", "c[agsv]": "cg", "wb|cg|cs|wt": "wb"}
    for option in sorted(ptx._PLAIN - {"-g", "--device-debug"}):
        compile_(compiler, tmp_path, ptx_text(), "sm_90", *ptx.compiler_options(option))
    for option, pattern in ptx._VALUED.items():
        words = f"{option}={values.get(pattern, '2' if '4' in pattern else '32')}"
        if "usage" in option.lower():
            words = f"{option}=3"
        compile_(compiler, tmp_path, ptx_text(), "sm_90", *ptx.compiler_options(words))


@pytest.mark.parametrize("encoding", [RAW, LZ4, ZSTD], ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_90a", "sm_100", "sm_120a"])
def test_an_image_made_here_is_read_back_and_cuobjdump_agrees(
    compiler: Compiler, tmp_path: Path, target: str, encoding: Encoding
) -> None:
    text = ptx_text("scale", target=target if target.endswith("a") else "sm_75")
    raw = compile_(compiler, tmp_path, text, target)
    _, stands_for = stored(ptx_image(text))
    made = cubin_image(cubin.parse(raw), Target.parse(target), encode(raw, encoding), stands_for)
    whole = container(_Bare(made.data))
    (tmp_path / "a.fatbin").write_bytes(whole)

    source = Bytes("a.fatbin", whole)
    (image,) = container_at(source, 0, source.size).images
    assert image == replace(made.image, offset=16)
    assert (image.known, image.target.sm, image.compression) == (True, target, str(encoding.codec))
    assert raw_payload(source, image)[: len(raw)] == raw
    assert image.header_size == (64 if image.target.capability < Capability(10, 0) else 96)
    listed = subprocess.run(
        [cuobjdump(), "-elf", str(tmp_path / "a.fatbin")], capture_output=True, text=True, check=False
    )
    assert f"arch = {target}" in listed.stdout, listed.stderr
    assert ".text.scale" in listed.stdout


class _Bare(Made):
    """Bytes that are an image already."""

    def __init__(self, data: bytes) -> None:
        super().__init__("sm_90", data)

    @property
    def data(self) -> bytes:
        return self.payload
