"""`vllm-variants release add`, end to end: a copy of the checkout, real uv, and an index of toy wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_index
from making import cubin, library, section
from validating import require_valid

from vllm_variants import data
from vllm_variants.builders.wheels import locks
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS

pytestmark = pytest.mark.skipif(
    not os.environ.get("VLLM_VARIANTS_TEST_SLOW"),
    reason="a minute or more a test: set VLLM_VARIANTS_TEST_SLOW=1",
)

NEW = "99.0.0"
PARTS = ("python", "locks", "expectations", "schemas", "docs", ".flox", "nix", "pkgs", "advisories")
FILES = ("variants.toml", "pyproject.toml", "README.md", "flake.nix", "flake.lock")


class Adding:
    """A copy of the checkout, and an index that has vLLM 99.0.0 on CUDA 13.0 for both systems."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.root = folder / "checkout"
        here = data.checkout()
        assert here is not None
        for part in PARTS:
            if (here / part).is_dir():
                shutil.copytree(here / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(here / name, self.root / name)
        self.index = toy_index.ToyIndex(folder / "index")
        self.index.wheels.mkdir(parents=True)
        for system in SYSTEMS:
            self.publish(system)
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("UV_")},
            "PYTHONPATH": str(self.root / "python"),
            "UV_DEFAULT_INDEX": self.index.serve(),
            "UV_CACHE_DIR": str(cache),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CONFIG_DIRS": str(folder / "config"),
        }

    def publish(self, system: str) -> None:
        """Put the wheels of one system into the index."""
        architecture = locks.platform_of(system)

        def put(name: str, version: str, glibc: str, *requires: str, code: bytes = b"") -> None:
            module = name.replace("-", "_")
            files: dict[str, str | bytes] = {f"{module}/__init__.py": ""}
            if code:
                files[f"{module}/_C.abi3.so"] = code
            platform = f"manylinux_{glibc}_{architecture}"
            toy_index.wheel(self.index.wheels, module, version, platform, files, requires)

        code = library(self.index.root / "code.so", section([cubin("sm_90a")], [cubin("sm_80")]))
        toolkit = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-nvcc>=13.0", "triton-cu12")
        put("vllm", NEW, "2_28", "torch==2.99.0", code=code.read_bytes())
        put("torch", "2.99.0", "2_34", *toolkit)
        put("nvidia-cuda-runtime", "13.0.96", "2_28")
        for version in ("13.0.88", "13.5.37"):
            put("nvidia-cuda-nvcc", version, "2_28")
        put("triton-cu12", "1.0", "2_28")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vllm_variants", "release", "add", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def texts(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uv's cache, for all of them: asking every interpreter of a machine what it is takes seconds."""
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def adding(tmp_path: Path, cache: Path) -> Adding:
    return Adding(tmp_path, cache)


def test_a_published_vllm_becomes_a_release(adding: Adding) -> None:
    before = adding.texts()
    completed = adding.run(NEW, "--no-signatures", "--json")
    assert completed.returncode == 0, completed.stderr
    facts = json.loads(completed.stdout)
    require_valid(facts)
    after = adding.texts()
    assert {name for name in after if after[name] != before.get(name)} == set(facts["files"])
    assert not before.keys() - after.keys()
    release = matrix.read(adding.root / "variants.toml").release(NEW)
    stack = release.stack
    assert (stack.cuda, stack.torch, stack.driver, release.glibc) == ("13.0", "2.99.0", "580", "2.34")
    assert (release.nixpkgs, release.builders) == (None, ("wheels",))
    for system in SYSTEMS:
        lock = after[f"locks/{NEW}-{locks.platform_of(system)}.txt"].decode()
        assert f"vllm=={NEW} \\\n    --hash=sha256:" in lock
        assert "nvidia-cuda-nvcc==13.0.88" in lock  # not 13.5, which is a newer toolkit
        assert "cu12" not in lock
        assert "127.0.0.1" not in lock
    expected = after[f"expectations/{NEW}.toml"].decode()
    assert '[x86_64-linux."vllm/_C.abi3.so"]\ncontainers = 2' in expected
    assert f"**{NEW}**" in after["README.md"].decode() + after.get("docs/versions.md", b"").decode()


def test_a_dry_run_says_what_would_change_and_changes_nothing(adding: Adding) -> None:
    before = adding.texts()
    completed = adding.run(NEW, "--no-signatures", "--dry-run")
    assert completed.returncode == 0, completed.stderr
    assert "would change: " in completed.stderr
    assert adding.texts() == before


def _no_aarch64(adding: Adding) -> None:
    for wheel in adding.index.wheels.glob("vllm-*aarch64.whl"):
        wheel.unlink()


def _broken_page(adding: Adding) -> None:
    page = adding.root / "README.md"
    page.write_text(page.read_text() + "<!-- generated: nonsense -->\n<!-- end generated -->\n")


def _broken_wheel(adding: Adding) -> None:
    for wheel in adding.index.wheels.glob("vllm-*x86_64.whl"):
        content = wheel.read_bytes()
        wheel.write_bytes(content[: len(content) // 2])


def _unwritable(adding: Adding) -> None:
    (adding.root / "expectations" / f"{NEW}.toml").mkdir()


def test_a_release_whose_operators_cannot_be_called_is_not_added(adding: Adding) -> None:
    """The toy's torch is an empty module: the process that calls the checks ends at once."""
    before = adding.texts()
    completed = adding.run(NEW)
    assert completed.returncode == 1, completed.stderr
    assert "the checks' calls were not all tried: the process ended with status 1" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert adding.texts() == before


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_aarch64, f"uv found no set of wheels for vLLM {NEW} on aarch64-linux"),
        (_broken_page, "nothing was added: `docs` failed: README.md: nothing generates 'nonsense'"),
        (_broken_wheel, "a wheel that was downloaded is damaged"),
        (_unwritable, f"{NEW}.toml"),
    ],
)
def test_a_failure_at_any_step_leaves_nothing_behind(
    adding: Adding, spoil: Callable[[Adding], None], sentence: str
) -> None:
    spoil(adding)
    before = adding.texts()
    completed = adding.run(NEW, "--no-signatures")
    assert completed.returncode != 0, completed.stderr
    assert sentence in completed.stderr
    assert "Traceback" not in completed.stderr
    assert adding.texts() == before
    assert list(adding.root.rglob("*.vllm-variants-new")) == []
