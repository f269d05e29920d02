"""`vllm-variants audit` and `slim` as a person types them."""

from __future__ import annotations

import json
import os
import shutil
import socket
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


def test_strict_wants_something_that_can_be_judged(tree: Path, tmp_path: Path) -> None:
    undecided = run("audit", "--strict", tree)
    assert undecided.returncode == ExitCode.USAGE
    assert "--strict judges, and for which device" in undecided.stderr
    (tmp_path / "empty").mkdir()
    assert run("audit", "--strict", "--sm", "sm90", tmp_path / "empty").returncode == ExitCode.AUDIT


def test_a_gpus_name_is_a_device(tree: Path) -> None:
    path = next(tree.rglob("*.so"))

    told = run("audit", "--why", "--sm", "L40S", path)

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


def result(path: Path, capability: str, release: str = "9.9.9", code: bytes | None = None) -> Path:
    """A result in which one library has code for its own SM, or `code`."""
    sm = f"sm{capability.replace('.', '')}"
    manifest = path / "share" / "vllm-variants" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    facts = {
        "schema": 1,
        "variant": f"vllm-python312-cuda12_9-{sm}",
        "short": sm,
        "capability": capability,
        "system": "x86_64-linux",
        "release": release,
        "builder": "wheels",
    }
    manifest.write_text(json.dumps(facts))
    packages = path / "lib" / "python3.12" / "site-packages" / "vllm"
    packages.mkdir(parents=True)
    library(packages / "_C.abi3.so", code or section([cubin(sm.replace("sm", "sm_"), 9000)]))
    return path


def test_a_result_is_judged_for_its_own_sm(tmp_path: Path) -> None:
    told = run("audit", "--json", result(tmp_path / "r89", "8.9"))

    assert json.loads(told.stdout)["capability"] == "8.9"
    assert "there are no expectations for vLLM 9.9.9 on x86_64-linux" in told.stderr


def test_each_of_several_results_has_a_report_for_its_own_sm(tmp_path: Path) -> None:
    r80, r90 = result(tmp_path / "r80", "8.0"), result(tmp_path / "r90", "9.0")

    told = run("audit", r80, r90, "--json", "--strict")

    assert told.returncode == 0
    facts = json.loads(told.stdout)
    assert facts["verdict"] == "pass"
    assert [(report["roots"], report["capability"]) for report in facts["reports"]] == [
        ([str(r80)], "8.0"),
        ([str(r90)], "9.0"),
    ]
    assert {library["path"] for report in facts["reports"] for library in report["libraries"]} == {
        "lib/python3.12/site-packages/vllm/_C.abi3.so"
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_broken_result_is_not_hidden_by_a_good_one_beside_it(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    """Each is held to what its release has: two libraries of one name are not one."""
    expected = {name: text for name, text in _expected("0.13.0", "sm90").items() if text}
    paths = [tmp_path / "good", tmp_path / "bad"]
    for path in paths:
        result(path, "9.0", "0.13.0")
        for name in expected:
            made = path / "lib" / "python3.12" / "site-packages" / name
            made.parent.mkdir(parents=True, exist_ok=True)
            library(made, section([cubin("sm_90" if path.name == "good" else "sm_80", 5000)]))
    words = [paths[index] for index in order]

    assert run("audit", paths[0]).returncode == 0
    assert run("audit", paths[1]).returncode == ExitCode.AUDIT
    told = run("audit", *words)

    assert told.returncode == ExitCode.AUDIT
    assert "nothing in it runs on sm90" in told.stdout
    assert all(f"{path} on sm90:\n" in told.stdout for path in paths)


def _expected(release: str, sm: str) -> dict[str, int]:
    """Libraries of a release's wheel → how many containers are of use to an SM."""
    from vllm_variants.audit import contents as expectations

    known = expectations.load(release, "x86_64-linux")
    assert known
    return {name: each.by_sm[sm].usable for name, each in known.libraries.items()}


def test_a_result_whose_libraries_are_all_gone_fails(tmp_path: Path) -> None:
    bare = result(tmp_path / "r90", "9.0", "0.13.0")
    for path in bare.rglob("*.so"):
        path.unlink()

    told = run("audit", bare)

    assert told.returncode == ExitCode.AUDIT
    assert "vllm/_C.abi3.so: is not there" in told.stdout


def test_sm_is_for_what_does_not_say_its_own(tmp_path: Path, tree: Path) -> None:
    r80 = result(tmp_path / "r80", "8.0")
    plain = tree / "lib" / "python3.12" / "site-packages" / "vllm"

    told = run("audit", r80, plain, "--sm", "sm90", "--json")

    reports = json.loads(told.stdout)["reports"]
    assert [(report["capability"], report["verdict"]) for report in reports] == [
        ("8.0", "pass"),
        ("9.0", "foreign"),
    ]
    assert f"{r80} is a result, judged for its own 8.0" in told.stderr


def test_release_is_for_what_does_not_say_its_own(tmp_path: Path, tree: Path) -> None:
    r80 = result(tmp_path / "r80", "8.0")

    told = run("audit", r80, tree, "--sm", "sm90", "--release", "0.11.2", "--json")

    assert [report["release"] for report in json.loads(told.stdout)["reports"]] == [None, "0.11.2"]
    assert f"{r80} is a result, held to its own 9.9.9" in told.stderr


def test_results_alone_can_be_judged_for_another_sm(tmp_path: Path) -> None:
    r80 = result(tmp_path / "r80", "8.0")

    assert json.loads(run("audit", r80, "--sm", "8.6", "--json").stdout)["capability"] == "8.6"


def test_without_sm_a_plain_tree_beside_a_result_is_only_listed(tmp_path: Path, tree: Path) -> None:
    told = run("audit", result(tmp_path / "r80", "8.0"), tree, "--json")

    assert told.returncode == 0
    assert [report["verdict"] for report in json.loads(told.stdout)["reports"]] == ["pass", None]


def test_an_unknown_release_is_refused_with_the_nearest_name(tree: Path) -> None:
    told = run("audit", "--sm", "sm90", "--release", "0.13.1", tree)

    assert told.returncode == ExitCode.USAGE
    assert "there is no release '0.13.1'" in told.stderr
    assert "did you mean 0.13.0?" in told.stderr


def test_a_device_that_the_matrix_does_not_know_is_remarked_on(tree: Path) -> None:
    assert "no variant of the matrix is for 99.9" in run("audit", "--sm", "sm999", tree).stderr
    assert "no variant" not in run("audit", "--sm", "10.3", tree).stderr


def test_a_tree_that_is_held_to_nothing_says_why(tree: Path) -> None:
    info = tree / "lib" / "python3.12" / "site-packages" / "vllm-0.13.0.dist-info"
    info.rename(info.with_name("vllm-0.13.0rc1.dist-info"))

    told = run("audit", "--sm", "sm90", tree)
    assert told.returncode == 0
    assert "held to no release: there are no expectations for vLLM 0.13.0rc1 on x86_64-linux" in told.stderr
    assert "have no sm87" in run("audit", "--sm", "8.7", "--release", "0.13.0", tree).stderr


def test_a_truncated_library_fails_without_a_device_too(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", CODE)
    path.write_bytes(path.read_bytes()[:9000])

    told = run("audit", path)

    assert told.returncode == ExitCode.AUDIT
    assert "missing: made.so: " in told.stdout


def test_why_goes_on_after_what_is_no_library(tree: Path) -> None:
    (tree / "kernel.cubin").write_bytes(cubin("sm_90", 9000).payload)
    broken = library(tree / "broken.so", CODE)
    broken.write_bytes(broken.read_bytes()[:9000])

    told = run("audit", "--why", "--sm", "sm90", tree)

    assert told.returncode == ExitCode.AUDIT
    assert "_C.abi3.so on sm90" in told.stdout
    assert "kernel.cubin: passed over" in told.stderr
    assert "broken.so: cannot be read" in told.stderr
    broken.unlink()
    assert run("audit", "--why", "--sm", "sm90", tree).returncode == 0


@pytest.mark.parametrize("kind", ["/dev/zero", "link", "fifo", "socket"])
@pytest.mark.parametrize("mode", [["--sm", "90"], ["--why", "--sm", "90"], []])
def test_what_has_no_end_is_not_read(tmp_path: Path, kind: str, mode: list[str]) -> None:
    path = tmp_path / kind
    if kind == "/dev/zero":
        path = Path(kind)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))

    told = run("audit", *mode, path)

    assert told.returncode == ExitCode.USAGE
    assert f"error: {path} is a " in told.stderr
    assert "Traceback" not in told.stderr


def unprivileged() -> list[str]:
    """What makes a command of root respect the modes of files."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_what_may_not_be_read_in_a_tree_is_a_problem_and_the_rest_is_audited(tree: Path) -> None:
    library(tree / "secret.so", CODE).chmod(0)
    (tree / "closed").mkdir()
    (tree / "closed").chmod(0)
    (tree / "listed").mkdir()
    library(tree / "listed" / "made.so", CODE)
    (tree / "listed").chmod(0o400)
    command = [*unprivileged(), sys.executable, "-m", "vllm_variants", "audit", "--json", str(tree)]

    told = subprocess.run(command, capture_output=True, text=True, check=False)
    alone = subprocess.run(
        [*command[:-1], str(tree / "listed" / "made.so")], capture_output=True, text=True, check=False
    )
    for name in ("closed", "listed"):
        (tree / name).chmod(0o700)

    assert told.returncode == ExitCode.AUDIT, told.stderr
    found = {each["path"]: each["problem"] for each in json.loads(told.stdout)["libraries"]}
    assert found.pop("lib/python3.12/site-packages/vllm/_C.abi3.so") == ""
    assert found == dict.fromkeys(
        ("secret.so", "closed", "listed/made.so"), "cannot be read: Permission denied"
    )
    assert alone.returncode == ExitCode.USAGE
    assert "made.so cannot be read: Permission denied" in alone.stderr


def test_a_path_of_too_many_letters_is_one_sentence() -> None:
    completed = run("audit", "x/" * 3000)

    assert completed.returncode == ExitCode.USAGE
    assert "File name too long" in completed.stderr


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


def test_a_closure_can_be_listed_in_a_file(tmp_path: Path) -> None:
    """As in Nix's sandbox, where nix-store may not be asked; all of it is judged for the result's SM."""
    r90 = result(tmp_path / "r90", "9.0")
    (tmp_path / "other").mkdir()
    library(tmp_path / "other" / "libcublas.so", section([cubin("sm_90", 5000), cubin("sm_80", 90_000)]))
    (tmp_path / "store-paths").write_text(f"{tmp_path / 'other'}\n{r90}\n")

    told = run("audit", r90, "--closure-from", tmp_path / "store-paths", "--json")

    facts = json.loads(told.stdout)
    assert (facts["capability"], facts["verdict"], len(facts["libraries"])) == ("9.0", "foreign", 2)


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

    told = run("slim", path, "--sm", "90", "-o", tmp_path / "new.so", "--keep-symbols", "--compress", "none")

    assert told.returncode == 0
    assert (tmp_path / "new.so").read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made.so", "new.so"]


def test_a_dry_run_shows_what_each_rule_would_save_and_writes_nothing(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_80", 200_000), cubin("sm_90", 300_000)]))
    before = path.read_bytes()
    shown = run("slim", path, "--sm", "90", "--dry-run")
    assert shown.returncode == 0 and "would save" in shown.stdout
    for rule in ("images that none of the devices runs", "images stored in less room"):
        assert rule in shown.stdout
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_cache_of_compiled_code_is_cleared_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "cubins" / "ab" / f"ab{'0' * 62}.cubin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"code")
    monkeypatch.setenv("VLLM_VARIANTS_CUBINS", str(tmp_path / "cubins"))
    assert "1 cubins would be removed" in run("gc", "--cache", "--dry-run").stderr and kept.exists()
    assert "1 cubins removed" in run("gc", "--cache").stderr and not kept.exists()
