"""Evaluation: memory bounds it, one bad variant stops no other, nix-eval-jobs where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.nix import evaluation as nix_eval
from vllm_variants.nix.command import Nix
from vllm_variants.nix.evaluation import Derivation, Refusal

ROWS = matrix.load()
GB = 1_000_000_000


def request(short: str) -> Request:
    return Request(ROWS.variants[short], ROWS.default, Path())


def program(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("available", "processors", "count"), [(64 * GB, 8, 8), (10 * GB, 8, 4), (1 * GB, 8, 1), (64 * GB, 1, 1)]
)
def test_no_more_at_once_than_fit_in_memory(available: int, processors: int, count: int) -> None:
    assert nix_eval.concurrent(available, processors) == count


def test_each_variant_is_evaluated_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nix = program(
        tmp_path,
        "nix",
        """
import json, sys
attribute = next(word for word in sys.argv if "#" in word).split("#")[1]
if attribute.endswith("sm80"):
    sys.exit("error:\\n  … while\\n  error: the model has no sm80")
print(json.dumps(dict(drvPath=f"/drv/{attribute}", out="/out", name="n", features=["big-parallel"])))
""",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    evaluated = nix_eval.evaluate(
        Nix(str(nix), "path:/f"), [request("sm80"), request("sm90-arm64")], workers=2
    )
    assert isinstance(evaluated[0], Refusal)
    assert evaluated[0].error.message == "sm80 does not evaluate: the model has no sm80"
    assert isinstance(evaluated[1], Derivation)
    assert evaluated[1].drv == '/drv/legacyPackages.aarch64-linux.releases."0.13.0".sm90-arm64'
    assert evaluated[1].features == ("big-parallel",)


JOBS = """
import json, sys
if "--help" in sys.argv:
    sys.exit("--workers  --select EXPR")
json.dump(sys.argv[1:], open({arguments!r}, "a"))
select = sys.argv[sys.argv.index("--select") + 1]
for name in ("sm80", "sm90", "sm90-arm64"):
    if f" {{name}};" in select or f" {{name}} " in select:
        if name == "sm80":
            print(json.dumps(dict(attr=name, error="error: no sm80")))
        else:
            facts = dict(attr=name, drvPath="/drv/" + name, name="n", outputs=dict(dist="/d", out="/o"))
            print(json.dumps(facts))
"""


def test_nix_eval_jobs_does_it_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tmp_path / "arguments"
    program(tmp_path, "nix-eval-jobs", JOBS.format(arguments=str(arguments)))
    monkeypatch.setenv("PATH", str(tmp_path))
    nix = Nix("/no/nix", "path:/f", (("nixpkgs", "path:/n"),))
    evaluated = nix_eval.evaluate(nix, [request("sm80"), request("sm90"), request("sm70")], workers=3)
    assert [type(item) for item in evaluated] == [Refusal, Derivation, Refusal]
    assert isinstance(evaluated[1], Derivation) and evaluated[1].out == "/o"
    assert isinstance(evaluated[2], Refusal) and "printed nothing" in evaluated[2].error.message
    words = json.loads(arguments.read_text())
    assert words[words.index("--workers") + 1] == "3"
    assert words[words.index("--max-memory-size") + 1] == "2500"
    assert words[words.index("--override-input") :][:3] == ["--override-input", "nixpkgs", "path:/n"]


def test_a_nix_eval_jobs_that_cannot_select_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nix-eval-jobs", "print('--workers')")
    nix = program(tmp_path, "nix", 'print(\'{"drvPath":"/d","out":"/o","name":"n","features":[]}\')')
    monkeypatch.setenv("PATH", str(tmp_path))
    evaluated = nix_eval.evaluate(Nix(str(nix), "path:/f"), [request("sm80"), request("sm90")], workers=1)
    assert [type(item) for item in evaluated] == [Derivation, Derivation]
