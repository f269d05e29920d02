"""What waits for the driver's compiler is planned of the libraries alone in which the audit saw any of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fatbin"))

from making import capabilities, cubin, library, ptx, section

from vllm_variants.audit import audit_tree
from vllm_variants.builders.wheels import device_code, native


@pytest.mark.parametrize("sm", ["8.0", "9.0", "12.0"])
def test_the_audit_knows_which_libraries_may_wait(tmp_path: Path, sm: str) -> None:
    (device,) = capabilities(sm)
    library(tmp_path / "both.so", section([cubin("sm_90"), ptx("compute_80", 5000)], [cubin("sm_80")]))
    library(tmp_path / "waits.so", section([ptx("compute_80", 9000)], [ptx("compute_70", 700)]))
    library(tmp_path / "runs.so", section([cubin("sm_80")], [cubin("sm_90")], [cubin("sm_120")]))
    odd = replace(cubin("sm_90"), flags=1 << 30)  # not understood: it decides nothing in a plan
    library(tmp_path / "odd.so", section([odd, ptx("compute_80", 3000)]))
    report = audit_tree(tmp_path, device)

    libraries = device_code.with_ptx_to_compile(report, tmp_path)

    assert tmp_path / "runs.so" not in libraries
    assert {tmp_path / "waits.so", tmp_path / "odd.so"} <= {*libraries}
    found = native.waiting(tmp_path, device, libraries)
    assert found == native.waiting(tmp_path, device)
    assert found.libraries >= 2
