"""An export that is killed leaves nothing under its name, and the next one sweeps what it left beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import vllm_variants
from unit.export.conftest import MINOR, write_base, write_result
from vllm_variants.export import workspace

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
def test_a_killed_export_leaves_nothing_that_the_next_does_not_sweep(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = write_result(tmp_path / "result")
    base = f"oci:{write_base(tmp_path / 'base')}" if form.startswith("oci") else ""
    python = tmp_path / "python"
    (python / "bin").mkdir(parents=True)
    (python / "bin" / f"python{MINOR}").write_text("python")
    outputs, temporary = tmp_path / "outputs", tmp_path / "temporary"
    outputs.mkdir()
    temporary.mkdir()
    words = [str(result), f"{form}:{outputs / 'made'}", str(python), MINOR, base]
    env = {**os.environ, "TMPDIR": str(temporary)}
    killed = subprocess.run([sys.executable, "-c", SCRIPT, *words], check=False, env=env)
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in outputs.iterdir() if not path.name.startswith(".made.")] == []
    assert [path.name for path in temporary.iterdir() if "vllm-variants-export" in path.name]
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    vllm_variants.export_results(result, words[1], base=base or None)
    assert [path.name for path in outputs.iterdir()] == ["made"]
    assert list(temporary.iterdir()) == []


def test_the_workspace_of_an_export_at_work_and_of_another_user_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workspace.opened() as first, workspace.opened() as second:
        assert first.is_dir()
        assert second.is_dir()
    left = tmp_path / ".vllm-variants-export.0123456789ab.vllm-variants-new"
    left.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    with workspace.opened():
        assert left.is_dir()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workspace.opened():
        assert not left.exists()
