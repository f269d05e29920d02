"""The manifest of a result: it is exported with it, so it holds nothing that is a secret."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import manifest
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.model.results import MANIFEST


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        ("https://user:secret@[::1]:8080/simple/?a=b", "https://[::1]:8080/simple/?a=b"),
        ("https://token@wheels.example.org/cu129", "https://wheels.example.org/cu129"),
        ("https://wheels.example.org/cu129", "https://wheels.example.org/cu129"),
        ("/a/folder@2", "/a/folder@2"),
        (None, None),
    ],
)
def test_the_index_is_kept_without_its_credentials(
    index: str | None, kept: str | None, tmp_path: Path
) -> None:
    rows = matrix.load()
    request = Request(rows.parse("sm90-arm64").variant, rows.default, tmp_path, index=index)
    lock: Any = SimpleNamespace(digest="sha256:0")
    python = Interpreter(Path("/usr/bin/python3.12"), "3.12.1", "on PATH")
    manifest.write(tmp_path, request, lock, python, Steps(lambda line: None), {}, {})
    text = (tmp_path / MANIFEST).read_text()
    assert json.loads(text)["index"] == kept
    assert "secret" not in text
