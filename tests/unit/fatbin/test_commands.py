"""`vllm-variants audit` and `slim` as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import cubin, library, ptx, section

from vllm_variants.errors import ExitCode

CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_89", 9000), cubin("sm_90", 9000)],
    [cubin("sm_80", 90_000), ptx("compute_80", 5000)],
)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    packages = tmp_path / "tree" / "lib" / "python3.12" / "site-packages"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm-0.13.0.dist-info").mkdir()
    library(packages / "vllm" / "_C.abi3.so", CODE)
    return tmp_path / "tree"


def test_audit_prints_a_table_and_a_verdict(tree: Path) -> None:
    told = run("audit", "--sm", "sm90", tree / "lib" / "python3.12" / "site-packages" / "vllm")

    assert told.returncode == 0
    assert "_C.abi3.so" in told.stdout
    assert "verdict for sm90: foreign" in told.stdout
    assert "PTX only in 1 of 2" in told.stdout
    assert "of PTX, driver ≥ 575" in told.stdout


def test_audit_prints_json_and_nothing_else(tree: Path) -> None:
    told = run("audit", "--sm", "9.0", "--json", tree / "lib" / "python3.12" / "site-packages" / "vllm")

    facts = json.loads(told.stdout)
    assert facts["capability"] == "9.0"
    assert facts["verdict"] == "foreign"
    assert facts["libraries"][0]["fits"] == {"native": 1, "jit": 1}


def test_strict_fails_unless_everything_runs_as_it_is(tree: Path) -> None:
    assert (
        run(
            "audit", "--sm", "sm90", "--strict", tree / "lib" / "python3.12" / "site-packages" / "vllm"
        ).returncode
        == 5
    )
    assert run("audit", "--strict", tree).returncode == 0  # nothing was judged


def test_a_gpus_name_is_a_device(tree: Path) -> None:
    path = next(tree.rglob("*.so"))

    told = run("audit", "--why", "L40S", path)

    assert told.returncode == 0
    assert "on sm89 (compute capability 8.9)" in told.stdout
    assert "runs: machine code for exactly 8.9" in told.stdout
    assert "could run, but sm_89 is better" in told.stdout


def test_missing_code_of_a_release_fails_with_the_audits_exit_code(tree: Path) -> None:
    """The tree says it is vLLM 0.13.0, whose wheel has more than this."""
    told = run("audit", "--sm", "sm90", tree)

    assert told.returncode == ExitCode.AUDIT
    assert "held to vLLM 0.13.0: missing" in told.stdout
    assert "_vllm_fa3_C.abi3.so: is not there" in told.stdout


def test_a_result_is_judged_for_its_own_sm(tree: Path) -> None:
    manifest = tree / "share" / "vllm-variants" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    facts = {
        "schema": 1,
        "variant": "vllm-python312-cuda12_9-sm89",
        "short": "sm89",
        "capability": "8.9",
        "system": "x86_64-linux",
        "release": "9.9.9",
        "builder": "wheels",
    }
    manifest.write_text(json.dumps(facts))

    told = run("audit", "--json", tree)

    assert json.loads(told.stdout)["capability"] == "8.9"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["audit", "nowhere"], ExitCode.MISSING, "nowhere does not exist"),
        (["audit", "--sm", "sm9x", "."], ExitCode.USAGE, "sm9x"),
        (["slim", "nowhere", "--sm", "90", "-o", "x"], ExitCode.MISSING, "nowhere does not exist"),
        (["slim", ".", "--sm", "90"], ExitCode.USAGE, "say where the slimmed files go"),
        (["slim", ".", "--sm", "90", "-o", "x", "--in-place"], ExitCode.USAGE, "say where"),
        (["slim", "", "--sm", "90", "--in-place"], ExitCode.USAGE, "an empty path names nothing"),
        (["slim", ".", "--sm", "90", "-o", ""], ExitCode.USAGE, "an empty path names nothing"),
        (["slim", ".", "--sm", "sm999", "--in-place"], ExitCode.USAGE, "no variant is for sm999"),
        (["slim", ".", "--sm", "0.0", "--in-place"], ExitCode.USAGE, "or --force if you mean it"),
        (["slim", ".", "--sm", "90", "--in-place", "-j", "-3"], ExitCode.USAGE, "greater than or equal to 0"),
        (
            ["slim", "/dev/zero", "--sm", "90", "--in-place"],
            ExitCode.USAGE,
            "is a device, not a regular file",
        ),
        (["slim", "/dev/null/x", "--sm", "90", "--in-place"], ExitCode.MISSING, "does not exist"),
        (["slim", "x" * 300, "--sm", "90", "--in-place"], ExitCode.USAGE, "File name too long"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], code: ExitCode, says: str) -> None:
    told = run(*words)

    assert told.returncode == code
    assert says in told.stderr
    assert "Traceback" not in told.stderr


def test_closure_without_nix_is_one_sentence(tree: Path) -> None:
    environment = {**os.environ, "PATH": "/nowhere"}
    command = [sys.executable, "-m", "vllm_variants", "audit", "--closure", str(tree)]

    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert told.returncode == ExitCode.MISSING
    assert "nix-store, which is not installed" in told.stderr


def test_closure_audits_every_path_that_nix_names(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    library(other / "libcublas.so", section([cubin("sm_90", 5000)]))
    fake = tmp_path / "bin" / "nix-store"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' {tree} {other}\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "vllm_variants", "audit", "--closure", "--json", str(tree)]

    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{fake.parent}:/bin"},
    )

    libraries = [each["path"] for each in json.loads(told.stdout)["libraries"]]
    assert [Path(path).name for path in libraries] == ["_C.abi3.so", "libcublas.so"]


def test_slim_writes_a_copy_and_tells_what_it_saved(tree: Path, tmp_path: Path) -> None:
    told = run("slim", tree, "--sm", "sm90", "-o", tmp_path / "slimmed", "-j", 1)

    assert told.returncode == 0
    assert "for sm90" in told.stderr
    assert next((tmp_path / "slimmed").rglob("*.so")).stat().st_size < 120_000
    assert next(tree.rglob("*.so")).stat().st_size > 190_000
    assert (tmp_path / "slimmed" / "lib" / "python3.12" / "site-packages" / "vllm-0.13.0.dist-info").is_dir()


def test_slim_one_library_for_two_devices_as_json(tree: Path, tmp_path: Path) -> None:
    path = next(tree.rglob("*.so"))

    told = run("slim", path, "--sm", "sm89", "--sm", "H100", "-o", tmp_path / "new.so", "--json")

    facts = json.loads(told.stdout)
    assert facts["devices"] == ["8.9", "9.0"]
    assert facts["after"] == (tmp_path / "new.so").stat().st_size


def test_slim_in_place_follows_a_link_to_one_library(tree: Path, tmp_path: Path) -> None:
    path = next(tree.rglob("*.so"))
    link = tmp_path / "link.so"
    link.symlink_to(path)

    assert run("slim", link, "--sm", "90", "--in-place").returncode == 0

    assert link.is_symlink()
    assert path.stat().st_size < 120_000


def test_slim_refuses_what_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")

    told = run("slim", tmp_path / "text", "--sm", "90", "--in-place")

    assert told.returncode == ExitCode.USAGE
    assert "cannot be slimmed: no ELF64 library" in told.stderr


@pytest.mark.parametrize(
    ("to", "code", "says"),
    [
        ("no/such/out", ExitCode.MISSING, "mkdir -p"),
        ("file/out", ExitCode.USAGE, "Not a directory"),
        ("link", ExitCode.USAGE, "exists already"),
        ("n" * 300, ExitCode.USAGE, "File name too long"),
        ("/proc/out", ExitCode.RESOURCES, "/proc/out cannot be"),
    ],
)
@pytest.mark.parametrize("what", ["tree", "library"])
def test_an_output_that_cannot_be_is_one_sentence(
    tree: Path, tmp_path: Path, to: str, code: ExitCode, says: str, what: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))

    path = tree if what == "tree" else next(tree.rglob("*.so"))
    told = run("slim", path, "--sm", "90", "-o", tmp_path / to)

    assert (told.returncode, told.stdout) == (code, "")
    assert says in told.stderr
    assert "Traceback" not in told.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["tree", "library"])
def test_a_name_of_250_letters_is_an_output(tree: Path, tmp_path: Path, what: str) -> None:
    to = tmp_path / ("n" * 250)

    told = run("slim", tree if what == "tree" else next(tree.rglob("*.so")), "--sm", "90", "-o", to)

    assert told.returncode == 0, told.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [to.name, "tree"]


def test_an_output_in_the_input_is_refused_and_nothing_is_made(tree: Path) -> None:
    before = sorted(tree.rglob("*"))

    told = run("slim", tree, "--sm", "90", "-o", tree / "lib" / "out")

    assert told.returncode == ExitCode.USAGE
    assert "lies in" in told.stderr
    assert sorted(tree.rglob("*")) == before


def test_slim_warns_when_nothing_is_left_that_runs(tree: Path, tmp_path: Path) -> None:
    path = library(tmp_path / "old.so", section([cubin("sm_80", 200_000)]))

    told = run("slim", path, "--sm", "89", "--sm", "sm999", "--force", "-o", tmp_path / "new.so")

    assert told.returncode == 0
    assert f"warning: nothing in {path} runs on sm999" in told.stderr
    assert "runs on sm89" not in told.stderr


def test_related_capabilities_of_the_matrix_are_devices(tree: Path, tmp_path: Path) -> None:
    assert run("slim", tree, "--sm", "10.3", "-o", tmp_path / "slimmed").returncode == 0


def test_a_fifo_is_refused_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    told = run("slim", tmp_path / "fifo", "--sm", "90", "--in-place")

    assert told.returncode == ExitCode.USAGE
    assert "is a FIFO, not a regular file" in told.stderr


def test_files_that_were_not_slimmed_for_an_outer_reason_end_in_a_failure(tree: Path) -> None:
    """Tests may run as root, who may write anywhere: so the system's answer is made up."""
    script = (
        "import sys; from vllm_variants.fatbin import library; from vllm_variants.cli import main\n"
        "def refuse(*given): raise PermissionError(13, 'Permission denied')\n"
        "library.atomic._create = refuse; sys.argv[0] = 'vllm-variants'; main()"
    )
    command = [sys.executable, "-c", script, "slim", str(tree), "--sm", "90", "--in-place", "--json"]

    told = subprocess.run(command, capture_output=True, text=True, check=False)

    assert told.returncode == ExitCode.FAILED
    assert "1 of 1 files were not slimmed" in told.stderr
    assert "cannot be written: Permission denied" in told.stderr
    (file,) = json.loads(told.stdout)["files"]
    assert file["failed"]


def test_an_unchanged_library_is_copied_whole_to_the_output(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_90", 90_000)]))

    assert run("slim", path, "--sm", "90", "-o", tmp_path / "new.so").returncode == 0

    assert (tmp_path / "new.so").read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made.so", "new.so"]
