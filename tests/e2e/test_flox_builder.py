"""`vllm-variants build --via flox`, end to end. Flox itself cannot be had here: a script stands for it
that builds the same derivation with real Nix, prints what Nix prints, and leaves Flox's link."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from farm import Farm, Run, farm, holding

from vllm_variants.maintain import flox
from vllm_variants.model import matrix

pytestmark = pytest.mark.nix

FLOX = """#!/bin/sh
# flox build NAME: in the checkout, into ./result-NAME, with the settings of NIX_CONFIG
[ "$1" = build ] || exit 9
echo "$NIX_CONFIG" > {seen}
exec nix build -L --no-write-lock-file --override-input nixpkgs 'path:{model}' --out-link "result-$2" \\
  "path:$PWD#legacyPackages.x86_64-linux.releases.\\"0.13.0\\".${{2##*-}}"
"""


class Checkout:
    """A git checkout with Flox's expressions and a `flox` on PATH."""

    def __init__(self, here: Farm, model: str) -> None:
        self.farm, self.root = here, here.checkout
        if not shutil.which("git"):
            pytest.skip("there is no git here")
        for path, text in flox.expressions(matrix.load()).items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        self.git("init", "-q")
        self.git("add", ".")
        programs = here.root / "programs"
        programs.mkdir()
        self.program = programs / "flox"
        self.program.write_text(FLOX.format(model=model, seen=here.root / "seen"))
        self.program.chmod(0o755)
        here.environment["PATH"] = f"{programs}:{here.environment['PATH']}"

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True)

    def build(self, *arguments: str) -> Run:
        command = [sys.executable, "-m", "vllm_variants", "build", "--via", "flox", "--json"]
        command += ["--links", str(self.farm.links), "--logs", str(self.farm.root / "logs"), *arguments]
        env = {**self.farm.environment, "PYTHONPATH": str(self.root / "python")}
        completed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return Run(completed.returncode, completed.stdout, completed.stderr)


@pytest.fixture
def here(tmp_path: Path) -> Farm:
    return farm(tmp_path)


def test_a_variant_is_built_audited_and_linked(here: Farm) -> None:
    checkout = Checkout(here, str(here.model()))
    run = checkout.build("sm90", "--cores", "3")
    assert run.status == 0, run.err
    fact = run.facts["sm90"]
    assert fact["how"] == "built"
    assert here.link("sm90").resolve() == (checkout.root / here.link("sm90").name).resolve()
    assert json.loads(Path(fact["audit"]).read_text())["verdict"] == "pass"
    assert "[12/12] Building CUDA object" in here.log("sm90")
    assert "with 3 cores" in here.log("sm90")
    settings = (here.root / "seen").read_text()
    assert "cores = 3" in settings
    assert "sandbox = false" in settings, "what the person had set is gone"


def test_a_failure_tells_phase_objects_and_the_line_that_tells_most(here: Farm) -> None:
    checkout = Checkout(here, f"{here.model()}?dir=behaviour/failing")
    run = checkout.build("sm89", "sm90")
    assert run.status == 1
    assert run.facts["sm90"]["status"] == "built"
    assert run.facts["sm89"]["reason"].startswith("sm89 failed at object 58 of 406: csrc/attention")
    assert "mma_m16n8k16" in run.err
    assert not here.link("sm89").exists()


def test_without_keep_going_the_rest_is_skipped(here: Farm) -> None:
    checkout = Checkout(here, f"{here.model()}?dir=behaviour/failing")
    run = checkout.build("sm89", "sm90", "--no-keep-going")
    assert run.facts["sm90"]["status"] == "skipped"


def test_kill_9_of_the_build_ends_flox_and_its_nix_within_two_seconds(here: Farm) -> None:
    mark = f"mark-{here.root.name}"
    checkout = Checkout(here, str(here.model(f": {mark}; echo begun; sleep 300")))
    command = [sys.executable, "-m", "vllm_variants", "build", "--via", "flox", "sm90"]
    command += ["--links", str(here.links), "--logs", str(here.root / "logs")]
    build = subprocess.Popen(
        command,
        env={**here.environment, "PYTHONPATH": str(checkout.root / "python")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log, deadline = here.root / "logs" / "sm90.log", time.monotonic() + 60
    while not (log.exists() and "begun" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holding(mark), "its builder is not found"
    build.kill()
    build.wait()
    deadline = time.monotonic() + 2
    while holding(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not holding(mark)


def test_no_flox_is_a_sentence(here: Farm) -> None:
    checkout = Checkout(here, str(here.model()))
    checkout.program.unlink()
    run = checkout.build("sm90")
    assert run.status == 4
    assert "there is no flox on PATH" in run.err
    assert "--via nix" in run.err


def test_a_tree_without_git_is_a_sentence(here: Farm) -> None:
    checkout = Checkout(here, str(here.model()))
    shutil.rmtree(checkout.root / ".git")
    run = checkout.build("sm90")
    assert run.status == 2, run.err
    assert "is not a git checkout" in run.err


def test_an_untracked_expression_is_a_sentence(here: Farm) -> None:
    checkout = Checkout(here, str(here.model()))
    name = f"{here.link('sm90').name.removeprefix('result-')}.nix"
    checkout.git("rm", "-q", "--cached", f".flox/pkgs/{name}")
    run = checkout.build("sm90")
    assert run.status == 2
    assert f"git does not track .flox/pkgs/{name}" in run.err
    assert f"git add .flox/pkgs/{name}" in run.err


def test_what_cannot_be_linked_is_not_built(here: Farm) -> None:
    here.link("sm90").mkdir()
    run = Checkout(here, str(here.model())).build("sm90")
    assert run.status == 1
    assert "is in the way: it is not a link" in run.err
    assert not (here.root / "seen").exists(), "Flox was started all the same"


def test_without_nix_on_path_the_result_itself_is_audited_and_linked(here: Farm) -> None:
    """Flox brings a Nix of its own."""
    checkout = Checkout(here, str(here.model()))
    folder = Path(shutil.which("nix", path=here.environment["PATH"]) or "").parent
    script = checkout.program.read_text()
    checkout.program.write_text(script.replace("exec nix build", f"exec env PATH={folder}:$PATH nix build"))
    path = here.environment["PATH"].split(":")
    here.environment["PATH"] = ":".join(part for part in path if not (Path(part) / "nix").exists())
    run = checkout.build("sm90")
    assert run.status == 0, run.err
    assert "only the result itself is audited" in run.err
    assert here.link("sm90").resolve() == (checkout.root / here.link("sm90").name).resolve()


def test_another_release_is_a_sentence(here: Farm) -> None:
    checkout = Checkout(here, str(here.model()))
    run = checkout.build("sm90", "--release", "0.11.2")
    assert run.status == 2
    assert "the default release only, not of 0.11.2" in run.err
    assert not (here.root / "seen").exists(), "Flox was started all the same"
