"""An export that is killed leaves nothing under its name, and the next one sweeps what it left beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import vllm_variants
from unit.export.conftest import MINOR, write_base, write_result

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import vllm_variants
    from vllm_variants.export import portable
    from vllm_variants.export.interpreter import Runtime
    from vllm_variants.machine.interpreters import Interpreter

    result, to, python, minor, base = sys.argv[1:]
    runtime = Runtime(Path(python), minor, f"{minor}.0", (), "2.28", f"lib/python{minor}/site-packages")
    portable.interpreter.chosen = lambda *a: Interpreter(Path(sys.executable), runtime.version, "")
    portable.interpreter.take = lambda *a: runtime

    def die(done, total):
        os.kill(os.getpid(), signal.SIGKILL)

    vllm_variants.export_results(result, to, base=base or None, progress=die)
    """
)


@pytest.mark.parametrize("form", ["folder", "tar.zst", "oci", "oci-archive"])
@pytest.mark.usefixtures("made_before")
def test_a_killed_export_leaves_nothing_that_the_next_does_not_sweep(form: str, tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    base = f"oci:{write_base(tmp_path / 'base')}" if form.startswith("oci") else ""
    python = tmp_path / "python"
    (python / "bin").mkdir(parents=True)
    (python / "bin" / f"python{MINOR}").write_text("python")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    words = [str(result), f"{form}:{outputs / 'made'}", str(python), MINOR, base]
    killed = subprocess.run([sys.executable, "-c", SCRIPT, *words], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in outputs.iterdir() if not path.name.startswith(".made.")] == []
    vllm_variants.export_results(result, words[1], base=base or None)
    assert [path.name for path in outputs.iterdir()] == ["made"]
