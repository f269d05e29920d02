"""What is being audited, linked and pushed when a person asks to stop."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.builders.source import closure_audit, finishing
from vllm_variants.builders.source import nix as nix_builder
from vllm_variants.builders.source.finishing import Finisher
from vllm_variants.builders.source.options import Options
from vllm_variants.errors import Interrupted
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Manifest, Result
from vllm_variants.nix.command import Nix
from vllm_variants.nix.evaluation import Derivation

ROWS = matrix.load()
# `nix copy` as it is with a slow cache; everything else is as good as done.
NIX = """#!/bin/sh
case " $* " in *" copy "*) echo $$ > {pid}; exec sleep 600;; esac
"""


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    program = tmp_path / "nix"
    program.write_text(NIX.format(pid=tmp_path / "pid"))
    program.chmod(0o755)
    # `nix-store --check-validity --print-invalid`: all is whole.
    (tmp_path / "nix-store").write_text("#!/bin/sh\n")
    (tmp_path / "nix-store").chmod(0o755)
    return Nix(str(program), "", store="ssh-ng://far")


def test_an_upload_is_ended_by_an_interruption(
    tmp_path: Path, nix: Nix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result comes from a remote store, slowly, in a thread; Ctrl-C comes in the main one."""
    request = Request(ROWS.parse("sm90").variant, ROWS.default, tmp_path)
    ended: list[Outcome] = []
    batch = nix_builder.Batch(nix, Options(), None, lambda text: None, ended.append)

    def interrupted(self: nix_builder.Batch, wait: bool = False) -> None:
        deadline = time.monotonic() + 20
        while wait and not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if wait:
            raise Interrupted

    monkeypatch.setattr(nix_builder.Batch, "_collect", interrupted)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        batch.run([Derivation(request, "/nix/store/x.drv", "/nix/store/x", "x")])
    assert time.monotonic() - started < 5
    assert [outcome.status for outcome in ended] == [Status.INTERRUPTED]
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize("stopped", [True, False])
def test_no_step_is_begun_after_a_stop(
    tmp_path: Path, nix: Nix, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    request = Request(ROWS.parse("sm90").variant, ROWS.default, tmp_path)
    (tmp_path / "nix").write_text("#!/bin/sh\n")
    result = Result(tmp_path, Manifest({}))
    audits: list[Path] = []
    monkeypatch.setattr(finishing, "identified", lambda request, out: result)
    monkeypatch.setattr(closure_audit, "audited", lambda *_: audits.append(tmp_path) or tmp_path)
    built = Outcome(request.name, "sm90", Status.BUILT)
    finisher = Finisher(nix, None, lambda: stopped)
    outcome = finisher.finish(request, "/nix/store/x", built, lambda text: None)
    assert audits == ([] if stopped else [tmp_path])
    assert outcome.ok is not stopped
    assert not stopped or str(outcome.error) == "interrupted"
