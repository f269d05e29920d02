"""`vllm-variants pin`, end to end: real Nix; GitHub's answers come from programs that stand for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from farm import Farm, Run, farm

from vllm_variants.model import matrix

pytestmark = pytest.mark.nix

OLD = matrix.load().default.nixpkgs
NEW = "0123456789abcdef0123456789abcdef01234567"
WHEN = 1790000000
FILES = ("variants.toml", "flake.nix", "flake.lock", "README.md", "docs/versions.md")
PAGE = "# Page\n\n<!-- generated: versions -->\n<!-- end generated -->\n"

# Answers as nix-prefetch-github does, or fails with the words in `say`.
PREFETCH = """#!{python}
import json, sys
words = open({say!r}).read()
if words:
    sys.exit(words)
print(json.dumps(dict(owner="NixOS", repo="nixpkgs", rev={rev!r}, hash={hash!r})))
"""
# Nix, with GitHub's nixpkgs in its store already.
NIX = """#!{python}
import json, os, sys
if "metadata" in sys.argv:
    locked = dict(rev={rev!r}, narHash={hash!r}, lastModified={when})
    print(json.dumps(dict(locked=locked, path={path!r})))
else:
    os.execv({nix!r}, [{nix!r}, *sys.argv[1:]])
"""


class Pinning:
    """A checkout whose `pin` meets a GitHub with one revision of the model."""

    def __init__(
        self, here: Farm, vllm: str = "0.13.0", change: Callable[[Path], None] = lambda _: None
    ) -> None:
        self.farm, self.root = here, here.checkout
        for name in ("README.md", "docs/versions.md"):
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_text(PAGE)
        (self.root / ".flox/pkgs").mkdir(parents=True)
        self.run_command("docs")
        model = here.model(fresh=False)
        (model / "default.nix").write_text(
            (model / "default.nix").read_text().replace('vllm ? "0.13.0"', f'vllm ? "{vllm}"')
        )
        change(model)
        path = here.nix("store", "add-path", "--name", "source", str(model)).stdout.strip()
        digest = here.nix("hash", "path", "--sri", path).stdout.strip()
        self.say = here.root / "say"
        self.say.write_text("")
        programs = here.root / "github"
        programs.mkdir()
        nix = subprocess.check_output(["sh", "-c", "command -v nix"], env=here.environment, text=True).strip()
        facts = {"python": sys.executable, "rev": NEW, "hash": digest, "when": WHEN, "path": path}
        facts |= {"nix": nix, "say": str(self.say)}
        for name, text in (("nix-prefetch-github", PREFETCH), ("nix", NIX)):
            (programs / name).write_text(text.format(**facts))
            (programs / name).chmod(0o755)
        here.environment["PATH"] = f"{programs}:{here.environment['PATH']}"
        self.hash = digest

    def run_command(self, *arguments: str) -> Run:
        env = {**self.farm.environment, "PYTHONPATH": str(self.root / "python")}
        command = [sys.executable, "-m", "vllm_variants", *arguments]
        completed = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return Run(completed.returncode, completed.stdout, completed.stderr)

    def texts(self) -> dict[str, str]:
        return {name: (self.root / name).read_text() for name in FILES}


@pytest.fixture
def here(tmp_path: Path) -> Farm:
    return farm(tmp_path)


def test_a_pin_moves_every_file_together_and_no_other_character(here: Farm) -> None:
    pinning = Pinning(here)
    before = pinning.texts()
    run = pinning.run_command("pin", NEW, "--json")
    assert run.status == 0, run.err
    after = pinning.texts()
    for name in ("variants.toml", "flake.nix"):
        assert after[name] == before[name].replace(OLD, NEW)
    was, now = json.loads(before["flake.lock"]), json.loads(after["flake.lock"])
    was["nodes"]["nixpkgs"]["locked"] |= {"rev": NEW, "narHash": pinning.hash, "lastModified": WHEN}
    was["nodes"]["nixpkgs"]["original"]["rev"] = NEW
    assert now == was
    assert after["flake.lock"].count("\n") == before["flake.lock"].count("\n")
    for name in ("README.md", "docs/versions.md"):
        assert f"`{NEW[:7]}`" in after[name]
        assert OLD[:7] not in after[name]
    facts = json.loads(run.out)
    assert facts["files"] == [*FILES[:3], "README.md", "docs/versions.md"]
    assert facts["changes"]["vLLM"] == {"before": "0.13.0", "after": "0.13.0"}
    assert "evaluating" in run.err
    assert list(pinning.root.rglob(".*.vllm-variants-new")) == []


def test_what_a_person_edits_meanwhile_stays(here: Farm) -> None:
    pinning = Pinning(here)
    nix = here.root / "github" / "nix"
    edit = f"open({str(pinning.root / 'README.md')!r}, 'a').write('mine')"
    nix.write_text(nix.read_text().replace("else:\n", f"else:\n    {edit}\n"))
    before = pinning.texts()
    run = pinning.run_command("pin", NEW)
    assert run.status == 1
    assert f"nothing was changed: somebody edited {pinning.root}" in run.err
    after = pinning.texts()
    assert after.pop("README.md").startswith(before.pop("README.md") + "mine")
    assert after == before


def test_what_was_pinned_builds(here: Farm) -> None:
    pinning = Pinning(here)
    assert pinning.run_command("pin", NEW).status == 0
    completed = pinning.run_command("build", "--via", "nix", "sm90", "--links", str(here.links))
    assert completed.status == 0, completed.err
    manifest = json.loads((here.link("sm90") / "share/vllm-variants/manifest.json").read_text())
    assert manifest["nixpkgs"] == NEW


def test_a_second_release_has_a_pin_of_its_own(here: Farm) -> None:
    pinning = Pinning(here, vllm="0.11.2")
    run = pinning.run_command("pin", NEW, "--release", "0.11.2")
    assert run.status == 0, run.err
    after = pinning.texts()
    assert OLD in after["variants.toml"]
    assert f'nixpkgs-0_11_2.url = "github:NixOS/nixpkgs/{NEW}"' in after["flake.nix"]
    assert json.loads(after["flake.lock"])["nodes"]["nixpkgs"]["locked"]["rev"] == OLD


def test_a_tag_is_kept_beside_the_commit_and_given_up_with_it(here: Farm) -> None:
    pinning = Pinning(here)
    assert pinning.run_command("pin", "26.05").status == 0
    line = f'nixpkgs = "{NEW}" # at 26.05; the revision that packages this vLLM'
    assert line in pinning.texts()["variants.toml"]
    assert pinning.run_command("pin", "--latest").status == 0
    assert line.replace("26.05", "nixos-unstable") in pinning.texts()["variants.toml"]
    assert pinning.run_command("pin", NEW).status == 0
    assert line.replace("at 26.05; ", "") in pinning.texts()["variants.toml"]


def test_a_pin_that_is_there_changes_nothing(here: Farm) -> None:
    pinning = Pinning(here)
    assert pinning.run_command("pin", NEW).status == 0
    again = pinning.run_command("pin", NEW, "--json")
    assert again.status == 0
    assert json.loads(again.out)["files"] == []


def test_a_dry_run_shows_and_changes_nothing(here: Farm) -> None:
    pinning = Pinning(here)
    before = pinning.texts()
    run = pinning.run_command("pin", NEW, "--dry-run")
    assert run.status == 0, run.err
    assert "would change: variants.toml, flake.nix, flake.lock" in run.err
    assert pinning.texts() == before


def test_another_torch_moves_too_and_leaves_the_locks_to_do(here: Farm) -> None:
    def newer(model: Path) -> None:
        packages = model / "python-packages.nix"
        packages.write_text(packages.read_text().replace("2.9.1", "2.10.0"))

    pinning = Pinning(here, change=newer)
    run = pinning.run_command("pin", NEW, "--json")
    assert run.status == 0, run.err
    assert json.loads(run.out)["changes"]["torch"] == {"before": "2.9.1", "after": "2.10.0"}
    assert "vllm-variants lock 0.13.0" in json.loads(run.out)["todo"][0]
    text = pinning.texts()["variants.toml"]
    assert text.count('torch = "2.10.0"') == 1
    assert text.count('torch = "2.9.1"') == 1


def _refused(pinning: Pinning, status: int, *sentences: str, arguments: tuple[str, ...] = (NEW,)) -> None:
    before = pinning.texts()
    run = pinning.run_command("pin", *arguments)
    assert run.status == status, run.err
    for sentence in sentences:
        assert sentence in run.err
    assert "Traceback" not in run.err
    assert pinning.texts() == before


def test_a_nixpkgs_with_another_vllm_is_refused(here: Farm) -> None:
    _refused(Pinning(here, vllm="0.14.0"), 2, "packages vLLM 0.14.0, and the release is 0.13.0", "0.14.0")


def test_a_nixpkgs_without_the_cuda_is_refused(here: Farm) -> None:
    def without(model: Path) -> None:
        cuda = model / "cuda.nix"
        cuda.write_text(cuda.read_text().replace("cudaPackages_12_9 = set", "cudaPackages_12_7 = set"))

    _refused(Pinning(here, change=without), 3, "has no CUDA 12.9 any more")


def test_a_nixpkgs_with_which_nothing_evaluates_is_refused(here: Farm) -> None:
    def broken(model: Path) -> None:
        packages = model / "python-packages.nix"
        failing = 'pname = "xformers"; buildPhase = throw "xformers is broken";'
        packages.write_text(packages.read_text().replace('pname = "xformers";', failing))

    sentence = "nothing was changed: with it, sm70 does not evaluate: xformers is broken"
    _refused(Pinning(here, change=broken), 1, sentence)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("fatal: unable to access 'x': Could not resolve host: github.com", 6, "cannot be reached"),
        ("error: unable to download 'https://github.com/x': HTTP error 429", 6, "refuses further requests"),
        ("API rate limit exceeded", 6, "access-tokens"),
        ("Prefetch failed: Unable to locate revision. nix-prefetch-github failed to …", 2, "has no revision"),
        ("error: unable to download 'https://github.com/x.tar.gz': HTTP error 404", 2, "has no revision"),
        ("Prefetch failed: Unable to calculate hash sum.", 4, "nix-prefetch-git"),
    ],
)
def test_githubs_refusals_are_sentences(here: Farm, words: str, status: int, sentence: str) -> None:
    pinning = Pinning(here)
    pinning.say.write_text(words)
    _refused(pinning, status, sentence)


def test_two_hashes_for_one_revision_are_refused(here: Farm) -> None:
    pinning = Pinning(here)
    program = here.root / "github" / "nix-prefetch-github"
    program.write_text(program.read_text().replace(pinning.hash, "sha256-" + "A" * 43 + "="))
    _refused(pinning, 1, "two hashes of 0123456")


@pytest.mark.parametrize("arguments", [(), (NEW, "--latest"), ("--upload-pack=x",), ("a b",)])
def test_a_command_line_that_names_no_revision_is_refused(here: Farm, arguments: tuple[str, ...]) -> None:
    _refused(Pinning(here), 2, arguments=arguments)


def test_a_flake_without_the_input_is_named(here: Farm) -> None:
    pinning = Pinning(here)
    flake = pinning.root / "flake.nix"
    flake.write_text(flake.read_text().replace(OLD, "nixos-unstable"))
    _refused(pinning, 2, "flake.nix has no lines for the input nixpkgs")


def test_the_real_program_says_in_one_sentence_that_there_is_no_network(here: Farm) -> None:
    real = subprocess.run(
        [sys.executable, "-c", "import nix_prefetch_github"], check=False, capture_output=True
    )
    if real.returncode:
        pytest.skip("nix-prefetch-github is not installed: it is in locks/tool-test.txt")
    pinning = Pinning(here)
    for name in ("nix-prefetch-github", "nix"):
        (here.root / "github" / name).unlink()
    # No address answers, whatever the network of this machine.
    here.environment |= {"https_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    run = pinning.run_command("pin", "26.05")
    assert run.status in (4, 6), run.err
    assert "Traceback" not in run.err
    assert "GitHub cannot be reached from here" in run.err or "nix-prefetch-git" in run.err
