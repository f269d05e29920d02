"""What is said of PTX that was compiled ahead: through the API, in `slim --json`, and in a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import ptx_image, ptx_text
from jsonschema import Draft202012Validator
from making import cubin, library, section
from validating import require_closed, require_valid

import vllm_variants
from vllm_variants import documents
from vllm_variants.builders.wheels import native
from vllm_variants.fatbin.native.compiler import Compiler

COMPILED = [ptx_image(ptx_text("scale")), cubin("sm_75", 9000)]
LEFT = [ptx_image(b".version 99.9 this is no PTX")]


@pytest.fixture
def report(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> vllm_variants.SlimReport:
    """Of a tree with PTX that is compiled, and PTX that cannot be."""
    monkeypatch.setenv("VLLM_VARIANTS_PTXAS", str(compiler.ptxas))
    monkeypatch.setenv("VLLM_VARIANTS_CUBINS", str(tmp_path / "cubins"))
    (tmp_path / "tree").mkdir()
    library(tmp_path / "tree" / "a.so", section(COMPILED, LEFT))
    heard: list[str] = []
    made = vllm_variants.slim(tmp_path / "tree", "sm90", in_place=True, native=True, say=heard.append)
    assert heard, "how far the compiler is"
    return made


def test_the_report_is_what_its_schema_says(report: vllm_variants.SlimReport) -> None:
    document = report.as_dict()
    require_valid(document)
    require_closed(document)
    (compiled,) = document["native"]
    assert compiled["cubins"] and compiled["left"]
    assert document["files"][0]["compiled_images"] == 1


def test_a_manifest_holds_its_sums(report: vllm_variants.SlimReport, compiler: Compiler) -> None:
    schema = documents.schema(documents.MANIFEST)
    sums = native.summary(report.native, compiler)
    Draft202012Validator({"$ref": "#/$defs/native", "$defs": schema["$defs"]}).validate(sums)
    assert sums["cubins"] == 1 and sums["left"]
