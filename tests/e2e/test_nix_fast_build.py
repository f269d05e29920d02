"""`--engine nix-fast-build`: a script stands for the program, evaluates and builds with real Nix, and
writes its report in the program's form (its version 2)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from farm import Farm, farm

pytestmark = pytest.mark.nix

PROGRAM = """#!{python}
import json, re, subprocess, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
names = re.search(r"inherit \\(set\\) ([^;]*);", value("--select"))[1].split()
override = words[words.index("--override-input"):][:3]
assert value("--max-jobs") == "1" and ["--option", "cores", "3"] == words[words.index("cores") - 1:][:3]
results = []
for name in names:
    target = value("--flake") + "." + name
    done = subprocess.run(["nix", "eval", "--raw", target + ".drvPath", "--no-write-lock-file", *override],
        capture_output=True, text=True)
    facts = dict(attr=name, duration=1.5, success=done.returncode == 0, error=done.stderr or None)
    results.append(dict(facts, type="EVAL"))
    if done.returncode:
        continue
    drv = done.stdout
    print("building", name, file=sys.stderr)
    done = subprocess.run(["nix", "build", "-L", "--no-link", "--print-out-paths", drv + "^out"],
        capture_output=True, text=True)
    facts = dict(attr=name, type="BUILD", duration=2.5, success=done.returncode == 0, drvPath=drv)
    facts["error"] = None if facts["success"] else done.stderr
    facts["outputs"] = dict(out=done.stdout.strip()) if facts["success"] else None
    results.append(facts)
json.dump(dict(results=results), open(value("--result-file"), "w"))
sys.exit(any(not result["success"] for result in results))
"""


@pytest.fixture
def here(tmp_path: Path) -> Farm:
    made = farm(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "nix-fast-build"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    made.environment["PATH"] = f"{programs}:{made.environment['PATH']}"
    return made


def run(here: Farm, model: str, *arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    command = ("--engine", "nix-fast-build", "--cores", "3", "--max-jobs", "1", *arguments)
    words = here.command(model, *command)
    at = words.index("--logs")
    del words[at : at + 2]
    ended = here.start(words)
    return ended.status, ended.facts if ended.out else {}, ended.err


def test_what_it_builds_is_audited_and_linked(here: Farm) -> None:
    status, facts, err = run(here, str(here.model()), "sm80", "sm90")
    assert status == 0, err
    for short in ("sm80", "sm90"):
        assert here.link(short).resolve() == Path(facts[short]["path"])
        assert Path(facts[short]["audit"]).exists()
    assert "building sm80" in err, "its own words are passed on"


def test_its_failures_are_told_as_ours_are(here: Farm) -> None:
    matrix = here.checkout / "variants.toml"
    text = matrix.read_text()
    start, end = text.index("[variant.sm75]"), text.index("[variant.sm80]")
    matrix.write_text(text[:start] + text[end:])
    status, facts, err = run(here, f"{here.model()}?dir=behaviour/failing", "sm75", "sm89", "sm90")
    assert status == 1, err
    assert facts["sm90"]["status"] == "built"
    assert "mma_m16n8k16" in facts["sm89"]["reason"]
    assert facts["sm75"]["reason"].startswith("sm75 does not evaluate: ")


def test_what_cannot_be_linked_is_not_built(here: Farm) -> None:
    here.link("sm80").mkdir()
    status, facts, err = run(here, str(here.model()), "sm80", "sm90")
    assert status == 1
    assert "is in the way: it is not a link" in facts["sm80"]["reason"]
    assert facts["sm90"]["status"] == "built"
    assert "building sm80" not in err


def test_without_it_there_is_a_sentence(here: Farm) -> None:
    (here.root / "programs" / "nix-fast-build").unlink()
    status, _, err = run(here, str(here.model()), "sm90")
    assert status == 4
    assert "there is no nix-fast-build on PATH" in err
