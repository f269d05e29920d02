"""`vllm-variants build --via nix`, end to end: real Nix, the model of nixpkgs, no network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import source_model
from farm import Farm, farm, holding

pytestmark = pytest.mark.nix


@pytest.fixture
def here(tmp_path: Path) -> Farm:
    return farm(tmp_path)


def test_a_variant_is_built_audited_and_linked(here: Farm) -> None:
    run = here.run(here.model(), "sm90")
    assert run.status == 0, run.err
    fact = run.facts["sm90"]
    assert fact["status"] == "built"
    assert fact["how"] == "built"
    assert here.link("sm90").resolve() == Path(fact["path"])
    version = subprocess.check_output(
        [here.link("sm90") / "bin/python", "-c", "import vllm; print(vllm.__version__)"]
    )
    assert version.decode().strip() == "0.13.0"
    assert json.loads(Path(fact["audit"]).read_text())["verdict"] == "pass"
    assert "[12/12] Building CUDA object" in here.log("sm90")
    assert "a CUDA compile job" in run.err


def test_the_link_keeps_the_result_from_collection(here: Farm) -> None:
    run = here.run(here.model(), "sm90")
    path = run.facts["sm90"]["path"]
    assert "still alive" in here.nix("store", "delete", path).stderr
    here.link("sm90").unlink()
    assert here.nix("store", "delete", path).returncode == 0


def test_cores_are_no_part_of_a_derivation(here: Farm) -> None:
    model = here.model()
    assert here.run(model, "sm90", "--cores", "1").facts["sm90"]["how"] == "built"
    again = here.run(model, "sm90", "--cores", "7")
    assert again.facts["sm90"]["how"] == "already built"


def test_ten_variants_with_failures_are_reported_each_with_its_reason(here: Farm) -> None:
    reports = [here.root / name for name in ("lines.jsonl", "junit.xml", "summary.md")]
    run = here.run(
        f"{here.model()}?dir=behaviour/failing",
        *("--all", "--system", "aarch64-linux", "--nix-option", "extra-platforms=aarch64-linux"),
        *("--max-jobs", "10", "--cores", "1"),
        *("--jsonl", str(reports[0]), "--junit", str(reports[1]), "--summary", str(reports[2])),
    )
    assert run.status == 1, run.err
    assert len(run.facts) == 10
    failed = {short for short, fact in run.facts.items() if fact["status"] == "failed"}
    assert failed == {"sm86", "sm89"}
    assert "mma_m16n8k16" in run.facts["sm89"]["reason"]
    assert "memory ran out" in run.facts["sm86"]["reason"]
    assert "--cores" in run.facts["sm86"]["hint"]
    for short, fact in run.facts.items():
        assert here.link(short).exists() == (short not in failed)
        assert Path(fact["log"]).read_text().count("Building CUDA object") == (58 if short in failed else 406)
    at_once = run.err.index("sm89 failed at object 58 of 406")
    assert "mma_m16n8k16" in run.err[at_once : at_once + 2000]
    assert len(reports[0].read_text().splitlines()) == 10
    suite = ElementTree.parse(reports[1]).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("10", "2")
    assert "8 of 10 variants built" in reports[2].read_text()


def test_a_variant_that_does_not_evaluate_stops_no_other(here: Farm) -> None:
    matrix = here.checkout / "variants.toml"
    text = matrix.read_text()
    start, end = text.index("[variant.sm75]"), text.index("[variant.sm80]")
    matrix.write_text(text[:start] + text[end:])
    run = here.run(here.model(), "sm75", "sm90")
    assert run.status == 1
    assert run.facts["sm90"]["status"] == "built"
    assert run.facts["sm75"]["reason"].startswith("sm75 does not evaluate: ")
    assert "nix eval --show-trace" in run.facts["sm75"]["hint"]


def test_what_a_dependency_failed_of_is_told_to_every_variant_that_needs_it(here: Farm) -> None:
    model = here.model()
    packages = model / "python-packages.nix"
    text = packages.read_text()
    broken = text.replace(
        'pname = "xformers";', 'pname = "xformers"; buildPhase = "echo kernel error: no; exit 3";'
    )
    assert broken != text
    packages.write_text(broken)
    run = here.run(model, "sm80", "sm90")
    assert run.status == 1
    for short in ("sm80", "sm90"):
        assert run.facts[short]["reason"] == f"xformers-0.0.33, which {short} needs, failed: kernel error: no"
        assert not here.link(short).exists()
    assert "kernel error: no" in here.log("xformers-0.0.33")


def test_a_missing_feature_is_a_sentence_with_its_hint(here: Farm) -> None:
    run = here.run(here.model(), "sm90", "--nix-option", "system-features=kvm")
    assert run.status == 3
    assert "needs a machine of x86_64-linux with big-parallel" in run.err
    assert "--builders" in run.err


def test_a_feature_missing_further_down_stops_only_what_needs_it(here: Farm) -> None:
    """Nix itself gives up on everything then, `--keep-going` or not."""
    model = here.model()
    expression = model / "vllm.nix"
    text = expression.read_text()
    original = 'env.VLLM_TARGET_DEVICE = "cuda";'
    assert original in text
    feature = 'lib.optional (targets == "8.0") (derivation { name = "probe"; builder = "/bin/sh"; '
    feature += 'inherit (cudaPackages.backendStdenv) system; requiredSystemFeatures = [ "quantum" ]; })'
    expression.write_text(text.replace(original, f"{original} probe = {feature};"))
    run = here.run(model, "sm80", "sm90")
    assert run.facts["sm90"]["status"] == "built", run.err
    assert run.facts["sm80"]["status"] == "failed"
    assert "no machine here offers what it requires" in run.facts["sm80"]["reason"]


def test_a_result_without_device_code_is_built_but_not_linked(here: Farm) -> None:
    run = here.run(source_model.MODEL, "sm90")
    assert run.status == 5, run.err
    assert "sm90 is built, but not linked: vllm/_C.abi3.so" in run.err
    assert not here.link("sm90").exists()


def test_an_older_link_stays_when_the_audit_fails(here: Farm) -> None:
    good = here.run(here.model(), "sm90").facts["sm90"]["path"]
    assert here.run(source_model.MODEL, "sm90").status == 5
    assert str(here.link("sm90").readlink()) == good


def test_what_is_in_the_way_of_a_link_is_not_removed(here: Farm) -> None:
    here.link("sm90").mkdir()
    run = here.run(here.model(), "sm90")
    assert run.status == 1
    assert "is in the way: it is not a link" in run.err
    assert here.link("sm90").is_dir() and not here.link("sm90").is_symlink()


def test_what_cannot_be_linked_is_not_built_and_stops_no_other(here: Farm) -> None:
    here.link("sm80").mkdir()
    run = here.run(here.model(), "sm80", "sm90")
    assert run.status == 1
    assert "is in the way: it is not a link" in run.facts["sm80"]["reason"]
    assert run.facts["sm90"]["status"] == "built"
    assert not (here.root / "logs" / "sm80.log").exists(), "hours are spent on what cannot be linked"


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small disk needs the right to mount one")
    return folder


def test_a_full_disk_is_a_sentence_and_leaves_nothing(here: Farm, small_disk: Path) -> None:
    try:
        model = here.model('dd if=/dev/zero of="$NIX_BUILD_TOP/objects" bs=1M count=10')
        run = here.run(model, "sm90", env={"TMPDIR": str(small_disk)})
        assert run.status == 6, run.err
        assert "the disk is full" in run.err
        assert "nix-collect-garbage" in run.err
        assert not here.link("sm90").exists()
        assert list(small_disk.iterdir()) == []
    finally:
        subprocess.run(["umount", small_disk], check=True)


def test_a_killed_build_is_tried_again_with_fewer_compile_jobs(here: Farm) -> None:
    mark = here.root / "killed-once"
    model = here.model(f"if [ ! -e {mark} ]; then : > {mark}; kill -KILL $$; fi")
    run = here.run(model, "sm90", "--retries", "1", "--cores", "4")
    assert run.status == 0, run.err
    assert run.facts["sm90"]["attempts"] == 2
    assert "halved because memory ran out" in run.err
    assert "with 2 cores" in here.log("sm90")


def test_a_killed_build_without_retries_says_what_killed_it(here: Farm) -> None:
    run = here.run(here.model("kill -KILL $$"), "sm90")
    assert run.status == 6
    assert "memory ran out" in run.err


def test_an_interruption_stops_nix_and_the_next_run_goes_on(here: Farm) -> None:
    model = f"{here.model()}?dir=behaviour/slow"
    lines = here.root / "lines.jsonl"
    command = here.command(model, "sm90", "--jsonl", str(lines))
    build = subprocess.Popen(
        command, env=here.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    log = here.root / "logs" / "sm90.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "[9/406]" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    build.send_signal(signal.SIGINT)
    out, err = build.communicate(timeout=60)
    assert build.returncode == 130, err
    assert json.loads(out)["outcomes"][0]["status"] == "interrupted"
    assert json.loads(lines.read_text())["status"] == "interrupted"
    assert "stay in the store" in err
    assert not here.link("sm90").exists()
    assert list(here.links.iterdir()) == []
    size = log.stat().st_size
    time.sleep(0.5)
    assert log.stat().st_size == size, "the build goes on"
    assert not _processes_of(here), "a builder is still there"


def _started(here: Farm, model: str, words: str) -> subprocess.Popen[str]:
    """A build that has come as far as these words in sm90's log."""
    build = subprocess.Popen(
        here.command(model, "sm90"),
        env=here.environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    log = here.root / "logs" / "sm90.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and words in log.read_text(errors="replace")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline, "the build did not start"
    return build


TALKING = "while :; do echo a line that the compiler prints, one of very many; done"


def test_a_build_that_talks_without_end_is_stopped_within_two_seconds_of_nixs_end(here: Farm) -> None:
    mark = f"mark-{here.root.name}"
    build = _started(here, str(here.model(f": {mark}; {TALKING}")), "a line that the compiler prints")
    assert holding(mark), "its builder is not found"
    build.send_signal(signal.SIGINT)
    ended, deadline = 0.0, time.monotonic() + 60
    while build.poll() is None and time.monotonic() < deadline:
        if not ended and not holding(mark) and not _processes_of(here):
            ended = time.monotonic()
        time.sleep(0.02)
    assert build.returncode == 130
    assert not ended or time.monotonic() - ended < 2
    assert time.monotonic() < deadline - 60 + 10, "Nix was not stopped but killed in the end"
    assert not holding(mark), "a builder is still there"


def test_kill_9_of_the_build_ends_nix_and_its_builders_within_two_seconds(here: Farm) -> None:
    mark = f"mark-{here.root.name}"
    build = _started(here, str(here.model(f": {mark}; echo begun; sleep 300")), "begun")
    assert holding(mark), "its builder is not found"
    build.kill()
    build.wait()
    deadline = time.monotonic() + 2
    while (holding(mark) or _processes_of(here)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _processes_of(here), "Nix goes on"
    assert not holding(mark), "a builder is still there"


def _processes_of(here: Farm) -> list[str]:
    completed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False)
    if completed.returncode:
        return []
    return [
        line for line in completed.stdout.splitlines() if str(here.root) in line and "nix" in line.split()[0]
    ]


def test_two_at_once_build_once_and_both_link(here: Farm, tmp_path: Path) -> None:
    model = here.model("sleep 1; echo once >> " + str(tmp_path / "builds"))
    other = tmp_path / "other"
    other.mkdir()
    commands = [here.command(model, "sm90"), here.command(model, "sm90", "--links", str(other))]
    started = [
        subprocess.Popen(c, env=here.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    ends = [(build.communicate(timeout=120), build.returncode) for build in started]
    assert [status for _, status in ends] == [0, 0], ends
    assert (tmp_path / "builds").read_text() == "once\n"
    name = here.link("sm90").name
    assert (other / name).resolve() == here.link("sm90").resolve()


def test_without_keep_going_the_rest_is_not_tried(here: Farm) -> None:
    run = here.run(
        f"{here.model()}?dir=behaviour/failing", "sm89", "sm90", "--no-keep-going", "--max-jobs", "1"
    )
    assert run.status == 1
    assert run.facts["sm89"]["status"] == "failed"


def test_untracked_files_are_named_since_nix_does_not_see_them(here: Farm) -> None:
    if not shutil.which("git"):
        pytest.skip("there is no git here")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=here.checkout, check=True, capture_output=True)
    (here.checkout / "nix" / "new.nix").write_text("{ }\n")
    run = here.run(here.model(), "sm90", "--flake", str(here.checkout))
    assert "Nix does not see files that git does not track (nix/new.nix)" in run.err
    assert run.status == 0, run.err


def test_no_nix_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_variants", "build", "--via", "nix", "sm90"]
    env = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(source_model.ROOT / "python")}
    completed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 4
    assert "there is no nix on PATH" in completed.stderr
    assert "--via wheels" in completed.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cores", "4"], "--cores goes with --via nix or flox, not with --via wheels"),
        (["--via", "nix", "--index", "https://host"], "--index goes with --via wheels, not with --via nix"),
        (["--via", "nix", "--signing-key", "key"], "--signing-key goes with --push"),
        (["--via", "nix", "--push", "cache"], "--push cache is not the address of a store"),
        (["--via", "nix", "--override-input", "nixpkgs"], "--override-input 'nixpkgs' is not understood"),
        (["--system", "aarch64-linux"], "--system goes with --all"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "vllm_variants", "build", "sm90", *arguments]
    env = {**os.environ, "PYTHONPATH": str(source_model.ROOT / "python")}
    completed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 2, completed.stderr
    assert sentence in completed.stderr
