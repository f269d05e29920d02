"""One section of a file is found as reading all headers finds it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from making import cubin, library, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Section
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.source import Malformed
from vllm_variants.fatbin.stub import empty_cubin
from vllm_variants.model.capability import Target


def of_all(source: Bytes, name: str) -> Section | None:
    return next((section for section in elfs.parse(source).sections if section.name == name), None)


def outcome(read: Callable[[Bytes, str], Section | None], data: bytes, name: str) -> object:
    try:
        return read(Bytes("it", data), name)
    except Malformed as error:
        return error.message


@pytest.fixture(params=["library", "cubin"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    if request.param == "cubin":
        return empty_cubin(Target.parse("sm_90"))
    return library(tmp_path / "x.so", section([cubin("sm_90", 900)])).read_bytes()


def test_each_name_gives_its_first_section(data: bytes) -> None:
    names = {section.name for section in elfs.parse(Bytes("it", data)).sections if section.name}
    assert len(names) >= 3
    for name in [*names, ".str", "strtab", ".none"]:
        assert outcome(elfs.section_named, data, name) == outcome(of_all, data, name)
    assert elfs.section_named(Bytes("it", data), ".none") is None


def test_broken_headers_are_broken_for_one_section_too(data: bytes) -> None:
    chance, at = random.Random(7), int.from_bytes(data[40:48], "little")
    names = [section.name for section in elfs.parse(Bytes("it", data)).sections if section.name]
    refused = 0
    for _ in range(600):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 2, 5])):
            broken[chance.choice([chance.randrange(64), chance.randrange(at, len(data))])] = chance.choice(
                [0, 1, 255, chance.randrange(256)]
            )
        name = chance.choice(names)
        found = outcome(elfs.section_named, bytes(broken), name)
        assert found == outcome(of_all, bytes(broken), name)
        refused += isinstance(found, str)
    assert 60 < refused < 540
