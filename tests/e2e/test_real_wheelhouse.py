"""A package of a real result, repacked: NCCL, held to the published wheel, read by pip and the audit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vllm_variants import audit
from vllm_variants.errors import Error, ResourceError
from vllm_variants.export import canonical_zip, changes, downloads, packages, published
from vllm_variants.export.repack import Repack
from vllm_variants.model.platforms import host_system
from vllm_variants.model.results import Result
from vllm_variants.store import Store

pytestmark = pytest.mark.network
NAME = "nvidia-nccl-cu12"


@pytest.fixture(scope="module")
def result() -> Result:
    for entry in Store.default().entries():
        manifest = entry.result.manifest if entry.result else None
        if entry.result and manifest and manifest.builder == "wheels" and manifest.system == host_system():
            found = packages.of_result(entry.result)
            if NAME in changes.of_result(entry.result, found):
                return entry.result
    pytest.skip("the store has no slimmed result: vllm-variants build sm90")


def digests(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


def test_nccl_is_the_published_wheel_but_for_its_library(result: Result, tmp_path: Path) -> None:
    (package,) = (p for p in packages.of_result(result) if p.name == NAME)
    try:
        source = published.of_result(result, [package])[NAME]
        downloads.fetch([(NAME, source)], result.manifest.facts["stack"]["python"], tmp_path, tmp_path)
    except ResourceError as error:
        pytest.skip(error.message)
    except Error as error:
        pytest.skip(f"the result is of another version of this program: {error.message}")
    changed = changes.of_result(result, [package])[NAME]
    sm = result.manifest.capability.sm
    repack = Repack(package, source, result.manifest, changed, local=sm)
    wheel = tmp_path / repack.file
    canonical_zip.write(wheel, repack.members(), repack.record, lambda count: None)

    info = f"nvidia_nccl_cu12-{package.version}"
    theirs = {name.replace(info, f"{info}+{sm}"): d for name, d in digests(tmp_path / source.file).items()}
    ours = digests(wheel)
    dist = f"{info}+{sm}.dist-info"
    different = {name for name in theirs | ours if theirs.get(name) != ours.get(name)}
    assert different == {
        "nvidia/nccl/lib/libnccl.so.2",
        f"{dist}/METADATA",
        f"{dist}/RECORD",
        f"{dist}/vllm_variants.json",
    }
    assert wheel.stat().st_size < (tmp_path / source.file).stat().st_size / 2
    assert audit.audit_tree(wheel, result.manifest.capability).verdict in (
        audit.Verdict.PASS,
        audit.Verdict.JIT,
    )
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--dry-run", "--no-deps", "--no-index"]
    completed = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, check=False)
    assert f"Would install nvidia-nccl-cu12-{package.version}+{sm}" in completed.stdout
