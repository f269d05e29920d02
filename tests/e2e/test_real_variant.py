"""One real variant, end to end, as a person builds it. The only test that downloads gigabytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_variants.doctor import wheels as doctor
from vllm_variants.doctor.wheels import State
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.results import Result, read

# One worker only: its tests share the one build.
pytestmark = [pytest.mark.network, pytest.mark.xdist_group("real-variant")]

RELEASE = matrix.load().default
SHORT = "sm90"
HOST = host_system()


def _obstacle() -> str | None:
    if HOST != "x86_64-linux":
        return f"its wheels are on the public index for x86_64-linux only, and this is {HOST}"
    problems = [f for f in doctor.examine_for_wheels(RELEASE, Path.home()) if f.state is State.PROBLEM]
    return "; ".join(f"{f.about}: {f.text}" for f in problems) or None


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A place on the disk of uv's cache, so that nothing is copied that can be linked."""
    base = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache")
    base.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="vllm-variants-e2e.", dir=base))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    obstacle = _obstacle()
    if obstacle:
        pytest.skip(f"no real variant can be built here: {obstacle}")
    told = _build(folder)
    assert told.returncode == 0, told.stderr
    built = read(folder / f"result-vllm-python312-cuda12_9-{SHORT}")
    sizes = built.manifest.facts["bytes"]
    print(
        f"fetched and installed {sizes['installed'] / 1e9:.2f} GB, slimmed to {sizes['result'] / 1e9:.2f} GB"
    )
    return built


def _build(folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vllm_variants", "build", SHORT, "--json"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def _python(result: Result, code: str) -> str:
    command = [str(result.python), "-c", code]
    told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip().splitlines()[-1]


def test_vllm_is_the_releases(result: Result) -> None:
    assert _python(result, "import vllm; print(vllm.__version__)") == RELEASE.name


def test_its_interface_imports(result: Result) -> None:
    assert _python(result, "from vllm import LLM; print(LLM.__name__)") == "LLM"


def test_torch_and_cuda_are_the_stacks(result: Result) -> None:
    packages = result.manifest.facts["packages"]
    assert packages["torch"] == RELEASE.stack.torch
    runtime = packages["nvidia-cuda-runtime-cu12"]
    assert runtime.startswith(f"{RELEASE.stack.cuda}.")


def test_it_is_slimmed_and_audited(result: Result) -> None:
    steps = {step["name"]: step for step in result.manifest.facts["steps"]}
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(
        ("install", "files", "slim", "records", "bytecode", "audit"), "ran"
    )
    assert steps["slim"]["ratio"] < 0.42  # 0.405 of what the rules before it left
    assert steps["audit"]["verdict"] in {"pass", "jit"}
    assert steps["audit"]["expectations"] is True
    assert steps["audit"]["totals"]["foreign"] < 1_000_000
    assert steps["audit"]["totals"]["jit_driver"] == 575  # vLLM's PTX is of CUDA 12.9


def test_building_it_again_takes_no_time(result: Result, folder: Path) -> None:
    started = time.monotonic()
    told = _build(folder)
    assert json.loads(told.stdout)["outcomes"][0]["path"] == str(result.path)
    assert time.monotonic() - started < 10  # two seconds on a quiet machine (bench/)


def test_every_slimmed_library_still_loads_its_symbols(result: Result) -> None:
    """The loader maps them as split segments; what they need is inside the result."""
    code = (
        "import ctypes, glob, torch, os; site = os.path.dirname(os.path.dirname(torch.__file__));"
        "paths = sorted(glob.glob(site + '/nvidia/*/lib/*.so*'));"
        "[ctypes.CDLL(p) for p in paths if 'nvshmem' not in p and 'cufile' not in p]; print(len(paths))"
    )
    assert int(_python(result, code)) > 20


def test_nothing_of_it_is_the_hosts(result: Result) -> None:
    code = "import json, torch, vllm; maps = open('/proc/self/maps').read().splitlines();"
    code += "print(json.dumps([line.split()[-1] for line in maps if 'libcud' in line or 'libtorch' in line]))"
    loaded = json.loads(_python(result, code))
    assert loaded
    assert all(str(result.path) in path for path in loaded)


def test_the_checks_arithmetic_holds_with_the_results_torch(result: Result) -> None:
    """tests/unit/verify/test_references.py needs a torch, and here is one."""
    tests = Path(__file__).parents[1] / "unit" / "verify" / "test_references.py"
    more = [str(Path(pytest.__file__).parents[1]), str(Path(doctor.__file__).parents[1])]
    code = (
        # No plugins: theirs may be compiled for the Python that runs this suite.
        "import os, sys; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1';"
        f"sys.path += {more!r}; import pytest;"
        f"status = pytest.main(['-q', '-p', 'no:cacheprovider', {str(tests)!r}]);"
        "print(int(status))"
    )
    assert _python(result, code) == "0"


def test_what_loads_and_imports_is_what_the_published_wheels_do(result: Result, folder: Path) -> None:
    """Every library and every package with native code, without uv's cache; both trees at once."""
    bench = Path(__file__).parents[2] / "bench" / "dlopen.py"
    command = [sys.executable, str(bench), str(result.path), "--work", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    facts = json.loads(done.stdout)
    assert facts["differences"] == {}
    assert facts["libraries"] > 400 and facts["load"] + facts["load_beside_torch"] > 400
    assert facts["packages"] > 50 and facts["import"] > 45
