"""Images, locks and folders that are read again: what the audit finds in each."""

from __future__ import annotations

import os
from pathlib import Path

import imaging
import pytest
from making import cubin, library, section
from sample import CODE

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.sieve import Sieve
from vllm_variants.audit.summary import summarise
from vllm_variants.audit.targets import identify
from vllm_variants.audit.targets.found import Kind
from vllm_variants.audit.targets.trees import read_tree
from vllm_variants.fatbin.source import opened


@pytest.fixture
def layers(tmp_path: Path) -> list[bytes]:
    """Two layers: the second removes a library of the first, and hides a folder."""
    data = library(tmp_path / "made.so", CODE).read_bytes()
    first = {
        "a/vllm/_C.abi3.so": data,
        "a/gone.so": data,
        "b/hidden.so": data,
        "a/vllm-0.13.0.dist-info/METADATA": b"x",
    }
    return [
        imaging.layer(first),
        imaging.layer({"a/.wh.gone.so": b"", "b/.wh..wh..opq": b"", "b/new.so": data}),
    ]


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_a_layout_holds_what_its_layers_leave(tmp_path: Path, layers: list[bytes], how: str) -> None:
    found = identify.read(imaging.layout(tmp_path / "image", layers, how=how))
    assert found.kind is Kind.OCI_LAYOUT and found.release == "0.13.0"
    assert [each.path for each in found.libraries] == ["a/vllm/_C.abi3.so", "b/new.so"]
    assert [len(each.containers) for each in found.libraries] == [4, 4]


def test_a_folder_in_the_place_of_a_library_hides_it(tmp_path: Path) -> None:
    data = library(tmp_path / "made.so", CODE).read_bytes()
    upper = imaging.layer({"a/x.so/text": b"1"}, folders=["a", "a/x.so"])
    found = identify.read(
        imaging.layout(tmp_path / "image", [imaging.layer({"a/x.so": data, "a/y.so": data}), upper])
    )
    assert [each.path for each in found.libraries] == ["a/y.so"]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.zst"])
def test_an_archive_holds_the_same(tmp_path: Path, layers: list[bytes], name: str) -> None:
    found = identify.read(imaging.docker_archive(tmp_path / name, layers))
    assert found.kind is Kind.IMAGE_ARCHIVE
    assert [each.path for each in found.libraries] == ["a/vllm/_C.abi3.so", "b/new.so"]


def test_a_library_that_goes_by_once_is_read_as_one_that_lies_there(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", CODE, more={".cask_resource": section([cubin("sm_75", 900)])})
    with path.open("rb") as stream:
        sieve = Sieve(stream, path.stat().st_size, "x", None)
        sieve.run()
    with opened(path) as source:
        lying, gone_by = summarise(source, "p"), summarise(sieve, "p")
    assert lying and gone_by and lying.as_json() == gone_by.as_json()


def test_what_changed_is_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vllm_variants.audit.cache._SETTLING", -1.0)
    read: list[str] = []
    first = read_tree(tree, read.append, "", Cache(tree))
    assert read and read_tree(tree, pytest.fail, "", Cache(tree)) == first
    library(tree / "vllm" / "_C.abi3.so", section([cubin("sm_75", 900)]))
    os.utime(tree / "vllm" / "_C.abi3.so", (0, 0))
    assert len(read_tree(tree, read.append, "", Cache(tree))[0].containers) == 1
