"""The fp4 check judges what the operator does at each call; torch and vLLM are stand-ins that only count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import vllm_variants

SCRIPT = """
import json, sys
from unittest.mock import MagicMock
for name in ("torch", "vllm", "vllm._custom_ops"):
    sys.modules[name] = MagicMock()
from vllm_variants.checks import quantisation
operator = quantisation.ops.scaled_fp4_quant
operator.return_value = (MagicMock(), MagicMock())
quantisation.fp4_dequantised = MagicMock()

class Run:
    dry, capability, cases = False, (10, 0), []
    def normal(self, *shape, dtype):
        return MagicMock()
    def case(self, name, call, reference, tolerance, **options):
        self.cases.append(call)

run = Run()
quantisation.fp4(run)
counts = [operator.call_count]
for _ in range(2):
    for call in run.cases:
        call()
    counts.append(operator.call_count)
inputs = {id(call.args[0]) for call in operator.call_args_list}
print(json.dumps({"cases": len(run.cases), "counts": counts, "inputs": len(inputs)}))
"""


def test_the_fp4_operator_runs_anew_whenever_a_case_is_judged() -> None:
    """So that poisoned memory reaches it, and a second call can differ from the first."""
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(Path(vllm_variants.__file__).parents[1])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout) == {"cases": 4, "counts": [0, 4, 8], "inputs": 4}
