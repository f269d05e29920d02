"""`checks/run.py` itself, in an interpreter whose torch and vLLM are stand-ins of a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.verify.catalogue import CHECKS

TORCH = """\
import types
float16, bfloat16, float32, uint8, int32, int64 = "float16", "bfloat16", "float32", "uint8", "int32", "int64"
__version__ = "2.9.1+cu128"
class Tensor: pass
class Generator:
    def manual_seed(self, seed): return self
def device(name): return name
cuda = types.SimpleNamespace(
    get_device_capability=lambda *_: (9, 0), synchronize=lambda: None, is_available=lambda: CARD
)
CARD = True
"""
VLLM = '__version__ = "0.13.0"\n'
PLATFORMS = """\
class CudaPlatform:
    def is_cuda(self): return True
    def get_device_capability(self): return (9, 0)
class UnspecifiedPlatform:
    def is_cuda(self): return False
current_platform = CudaPlatform()
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A site-packages folder with stand-ins for torch and vLLM 0.13.0."""
    root = tmp_path / "site-packages"
    for name, text in {
        "torch/__init__.py": TORCH,
        "vllm/__init__.py": VLLM,
        "vllm/platforms.py": PLATFORMS,
        "vllm-0.13.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.13.0\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def check(packages: Path, name: str, *arguments: str, stdin: str = "") -> list[dict[str, Any]]:
    """The JSON lines of one check; stdout must hold nothing else."""
    completed = subprocess.run(
        [sys.executable, "-S", str(CHECKS / "run.py"), name, "--script", "imports", *arguments],
        env=os.environ | {"PYTHONPATH": str(packages)},
        input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in completed.stdout.splitlines()]


def test_a_recognised_card_is_ok(packages: Path) -> None:
    (outcome,) = check(packages, "import.platform", "--seed", "3")
    assert (outcome["check"], outcome["status"], outcome["seed"]) == ("import.platform", "ok", 3)
    assert outcome["facts"] == {"distribution": "0.13.0", "vllm": "0.13.0", "platform": "CudaPlatform"}


def test_an_empty_metadata_folder_beside_vllms_own_is_named(packages: Path) -> None:
    (packages / "vllm-0.13.0.dist-info" / "METADATA").unlink()
    (outcome,) = check(packages, "import.platform")
    assert outcome["status"] == "failed"
    assert "a foreign or an empty vllm-*.dist-info folder" in outcome["reason"]


def test_metadata_of_another_release_is_named(packages: Path) -> None:
    (packages / "vllm" / "__init__.py").write_text('__version__ = "0.11.2"\n')
    (outcome,) = check(packages, "import.platform")
    assert "vLLM is 0.11.2, and its installed metadata says 0.13.0" in outcome["reason"]


def test_an_unrecognised_card_is_named(packages: Path) -> None:
    text = PLATFORMS.replace("current_platform = CudaPlatform()", "current_platform = UnspecifiedPlatform()")
    (packages / "vllm" / "platforms.py").write_text(text)
    (outcome,) = check(packages, "import.platform")
    assert outcome["reason"] == (
        "vLLM does not recognise the card: its platform is UnspecifiedPlatform, not CUDA"
    )


def test_a_machine_without_a_card_fails_the_device_check(packages: Path) -> None:
    (packages / "torch" / "__init__.py").write_text(TORCH.replace("CARD = True", "CARD = False"))
    (outcome,) = check(packages, "import.device")
    assert outcome["status"] == "failed"
    assert "torch finds no CUDA device" in outcome["reason"]


def test_libraries_that_print_do_not_disturb_the_answer(packages: Path) -> None:
    (packages / "vllm" / "__init__.py").write_text(VLLM + 'print("INFO: welcome to vLLM")\n')
    (outcome,) = check(packages, "import.platform")
    assert outcome["status"] == "ok"


def test_broken_imports_are_an_outcome_with_a_sentence(packages: Path) -> None:
    (packages / "torch" / "__init__.py").write_text('raise ImportError("libcudart.so.12: no such file")\n')
    (outcome,) = check(packages, "import.platform", "--gated")
    assert outcome["status"] == "failed"
    assert outcome["reason"] == "its imports fail: ImportError: libcudart.so.12: no such file"


def test_a_gated_check_is_ready_first_and_answers_after_a_line(packages: Path) -> None:
    ready, outcome = check(packages, "import.platform", "--gated", stdin="go\n")
    assert ready["event"] == "ready"
    assert outcome["status"] == "ok"
    assert [record["event"] for record in check(packages, "import.platform", "--gated")] == ["ready"]
