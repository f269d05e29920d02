"""Record the modules that serving imports: python bench/serving_modules.py RESULT > …/wheels/serving.txt

Imports in the result what `vllm serve` imports in its processes. A machine without a GPU does not import
all of it (Triton is off), so folders of which that is known are named here. A folder stands for all
its modules where at least half of their bytes are imported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections import defaultdict
from pathlib import Path

IMPORTED = (
    "vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main", "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner", "vllm.compilation.backends",
    "vllm.v1.attention.backends.flash_attn", "vllm.v1.attention.backends.flashinfer",
    "vllm.model_executor.models.registry", "vllm.model_executor.models.llama",
    "torch._inductor.compile_fx", "torch._inductor.codegen.triton",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
)  # fmt: skip
WHOLE = (
    "vllm", "triton", "torch/_inductor", "torch/_dynamo", "torch/_functorch", "torch/fx",
)  # fmt: skip
SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    print("module", getattr(module, "__file__", None))
"""


def imported(result: Path, site: Path) -> set[str]:
    """The modules below `site` that the imports load, relative to it."""
    told = subprocess.run(
        [result / "bin" / "python", "-c", SCRIPT, *IMPORTED], capture_output=True, text=True, check=True
    )
    paths = {line.removeprefix("module ") for line in told.stdout.splitlines() if line.startswith("module ")}
    return {
        os.path.relpath(path, site) for path in paths if path.startswith(f"{site}/") and path.endswith(".py")
    }


def condensed(modules: set[str], site: Path) -> list[str]:
    """The modules, with `folder/` for those below a folder of which nearly all is imported."""
    total: dict[str, int] = defaultdict(int)
    used: dict[str, int] = defaultdict(int)
    for path in site.rglob("*.py"):
        name = str(path.relative_to(site))
        size = path.stat().st_size
        for folder in list(Path(name).parents)[:-1]:
            total[str(folder)] += size
            used[str(folder)] += size * (name in modules)
    whole = {folder for folder in total if used[folder] >= 0.9 * total[folder]} | set(WHOLE)

    def entry(name: str) -> str:
        outermost = [str(folder) for folder in list(Path(name).parents)[-2::-1] if str(folder) in whole]
        return f"{outermost[0]}/" if outermost else name

    return sorted({entry(name) for name in modules} | {f"{folder}/" for folder in WHOLE})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    result = parser.parse_args().result.resolve()
    (site,) = result.glob("lib/python3.*/site-packages")
    print("\n".join(condensed(imported(result, site), site)))


if __name__ == "__main__":
    main()
