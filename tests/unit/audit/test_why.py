"""Why a device runs what it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample import ADA

from vllm_variants.audit.why import why
from vllm_variants.errors import InputError
from vllm_variants.fatbin.source import opened


def test_why_groups_containers_and_gives_each_image_its_reason(tree: Path) -> None:
    with opened(tree / "vllm" / "_C.abi3.so") as source:
        sets = why(source, ADA)

    told = {str(each.as_dict()["runs"]): dict(each.reasons) for each in sets}
    assert told["sm_80"]["sm_80"] == "runs: machine code for 8.0 suits later minors of major 8, here 8.9"
    assert {each.containers for each in sets} == {1}
    nothing = [dict(each.reasons) for each in sets if not each.choice]
    assert {"sm_90a": "cannot run: `a` code is for exactly 9.0"} in nothing


def test_why_refuses_what_is_no_library(tree: Path) -> None:
    with opened(tree / "vllm" / "text.py") as source, pytest.raises(InputError, match="not an ELF64 library"):
        why(source, ADA)
