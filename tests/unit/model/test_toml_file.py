"""The one reader of TOML, and that nobody reads it in another way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vllm_variants
from vllm_variants.errors import InputError, ResourceError
from vllm_variants.model import toml_file

PACKAGE = Path(vllm_variants.__file__).parent


def test_tables_are_read_whatever_ends_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'[a]\r\nb = "\xc3\xa9"\r\n')
    assert toml_file.load(path) == {"a": {"b": "é"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = 1\nb = \n", ":2: not valid TOML"),
        (b"a = 1\nb = '\xff'\n", ":2: not UTF-8"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"[[[", "not valid TOML"),
    ],
)
def test_what_is_broken_is_named_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        toml_file.load(path)
    assert str(path) in caught.value.message


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="Is a directory"):
        toml_file.load(tmp_path)


@pytest.mark.parametrize("text", ["a\\x64", "a\\\\x", 'three """ quotes', "\x00\x1b[31m\x7f", "é\u2028"])
def test_a_text_is_written_as_what_is_read_back(text: str) -> None:
    written = toml_file.dumps({"a": text, "list": [{"b": text}]})
    assert toml_file.parse(written, Path()) == {"a": text, "list": [{"b": text}]}


def test_nothing_else_in_the_package_parses_toml() -> None:
    """Besides what runs inside a result, where there is the standard library only."""
    bare = {"checks", "verify"}
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"toml", "tomllib"} & set(names) and path.relative_to(PACKAGE).parts[0] not in bare:
                readers.add(path.relative_to(PACKAGE).as_posix())
    assert readers == {"model/toml_file.py"}
