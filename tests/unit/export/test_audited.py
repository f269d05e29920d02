"""`audit` reads every form of an export, and finds in it what is in the result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import toy_results
from toy_results import World

import vllm_variants
from unit.export.conftest import take, write_base
from vllm_variants.errors import MissingError
from vllm_variants.export.interpreter import Runtime
from vllm_variants.machine import interpreters

try:
    interpreters.find(toy_results.MATRIX.default.stack.python)
except MissingError as absent:
    pytest.skip(f"the builder needs Python: {absent.message}", allow_module_level=True)

FORMS = ("folder", "tar.zst", "oci", "oci-archive", "wheels")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with toy_results.world(tmp_path_factory.mktemp("world")) as made:
        yield made


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", "audit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def audited(*words: str | Path) -> dict[str, object]:
    """What `audit --json` says: the device, and each library's images."""
    completed = run("--json", *words)
    assert completed.returncode in (0, 5), completed.stderr
    document = json.loads(completed.stdout)
    libraries = {Path(each["path"]).name: each["images"] for each in document["libraries"]}
    return {"capability": document["capability"], "libraries": libraries}


@pytest.mark.parametrize("form", FORMS)
def test_an_audit_finds_in_an_export_what_is_in_the_result(
    form: str,
    world: World,
    tmp_path: Path,
    small_python: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take(small_python, monkeypatch)
    result = world.build("sm90")
    options = {"base": f"oci:{write_base(tmp_path / 'base')}"} if form.startswith("oci") else {}
    made = tmp_path / "made"
    vllm_variants.export_results(result.path, f"{form}:{made}", **options)
    expected = audited(result.path)
    assert expected["libraries"]
    device = ["--sm", "sm90"] if form in ("tar.zst", "oci-archive") else []
    assert audited(made, *device) == expected


def test_an_archive_that_is_cut_off_is_refused(
    world: World,
    tmp_path: Path,
    small_python: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take(small_python, monkeypatch)
    made = tmp_path / "made"
    vllm_variants.export_results(world.build("sm90").path, f"tar.zst:{made}")
    made.write_bytes(made.read_bytes()[:-200])
    completed = run(made, "--sm", "sm90")
    assert completed.returncode == 2
    assert "cannot be read" in completed.stderr
