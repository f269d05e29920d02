"""What a built variant is: the same kind of result as one made of wheels, and its knobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from paths import MODEL, ROOT
from real_nix import Nix, NixFailed
from validating import require_valid

from vllm_variants import documents
from vllm_variants.model import matrix, results
from vllm_variants.model.results import Result

MATRIX = matrix.load()
SYSTEM = "x86_64-linux"


def variant(arguments: str = "", name: str = "sm90") -> str:
    """A variant out of the library, on the model."""
    return (
        f"((import {ROOT}/nix).mkVariant "
        f'{{ nixpkgs = {MODEL}; system = "{SYSTEM}"; variant = "{name}"; {arguments} }})'
    )


def targets(nix: Nix, expression: str) -> str:
    (flag,) = nix.value(f"{expression}.cmakeFlags")
    return str(flag).removeprefix("-DTORCH_CUDA_ARCH_LIST:STRING=")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def result(building_nix: Nix, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    link = tmp_path_factory.mktemp("result") / "result-sm90"
    building_nix.run("build", "--no-update-lock-file", "--out-link", link, f"path:{checkout}#sm90")
    return results.read(link)


def test_its_python_imports_vllm_and_torch(result: Result) -> None:
    said = run(result.python, "-c", "import torch, vllm; print(vllm.__version__, torch.__version__)")
    assert said == "0.13.0 2.9.1\n"
    assert (result.path / "bin" / "python3").readlink() == Path("python")


def test_its_child_processes_do_too(result: Result) -> None:
    """vLLM starts its workers through sys.executable."""
    child = "import vllm; print(vllm.__version__)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run(result.python, "-c", parent) == "0.13.0\n"


def test_its_python_takes_nothing_from_the_persons_own_packages(result: Result, tmp_path: Path) -> None:
    assert run(result.python, "-c", "import os; print(os.environ['PYTHONNOUSERSITE'])") == "true\n"


def test_its_vllm_runs(result: Result) -> None:
    assert run(result.path / "bin" / "vllm", "serve") == "vllm 0.13.0 serve\n"


def test_arguments_pass_through_untouched(result: Result) -> None:
    arguments = ["a b", "", "$HOME", "'", "*"]
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(run(result.python, "-c", echo, *arguments)) == arguments


def test_its_manifest_is_read_like_any_other(result: Result) -> None:
    manifest = result.manifest
    assert manifest.variant == "vllm-python312-cuda12_9-sm90"
    assert (manifest.short, str(manifest.capability), manifest.system) == ("sm90", "9.0", SYSTEM)
    assert (manifest.release, manifest.builder, manifest.created) == ("0.13.0", "nix", "")
    assert manifest.facts["stack"] == MATRIX.default.stack.as_dict()
    assert manifest.facts["torch"] == "wheel"
    assert manifest.facts["packages"]["vllm"] == "0.13.0"
    assert manifest.facts["packages"]["torch"] == "2.9.1"
    assert manifest.facts["python"].startswith("3.12.")


def test_its_manifest_is_what_the_schema_says(result: Result) -> None:
    require_valid(result.manifest.facts, documents.MANIFEST)


@pytest.mark.parametrize(
    "arguments",
    ['torch = "source";', 'slim = true; extraCapabilities = [ "10.0" ];', 'variant.capability = "12.1";'],
)
def test_the_manifest_of_other_knobs_is_what_the_schema_says(nix: Nix, arguments: str) -> None:
    chosen = arguments if "variant" in arguments else f'variant = "sm90"; {arguments}'
    made = f'(import {ROOT}/nix).mkVariant {{ nixpkgs = {MODEL}; system = "{SYSTEM}"; {chosen} }}'
    require_valid(json.loads(nix.value(f"({made}).manifest.text")), documents.MANIFEST)


def test_its_manifest_names_the_revision(nix: Nix) -> None:
    pinned = f'{{ outPath = {MODEL}; rev = "{MATRIX.default.nixpkgs}"; }}'
    text = nix.value(
        f'((import {ROOT}/nix).mkVariant {{ nixpkgs = {pinned}; system = "{SYSTEM}"; variant = "sm90"; }})'
        ".manifest.text"
    )
    assert json.loads(text)["nixpkgs"] == MATRIX.default.nixpkgs


def test_it_needs_a_big_builder_and_says_nothing_of_cores(nix: Nix) -> None:
    assert nix.value(f"{variant()}.requiredSystemFeatures") == ["big-parallel"]
    with pytest.raises(NixFailed, match=r"features \{big-parallel\} is required"):
        nix.run(
            "build",
            "--impure",
            "--no-link",
            "--option",
            "system-features",
            "",
            "--expr",
            variant(name="sm75"),
        )


# ── the driver ──


def on_a_fake_host(shell: str) -> str:
    """A variant whose wrappers look for the driver with a shell that stands for a fake host."""
    return variant(
        f"""overlays = [ (final: _: {{
          runtimeShell = toString (final.writeShellScript "shell-of-a-fake-host" ''{shell}'');
        }}) ];"""
    )


OFFERED = "import os; print(os.environ.get('LD_LIBRARY_PATH'), os.environ.get('TRITON_LIBCUDA_PATH'))"


def test_programs_are_offered_the_hosts_driver(building_nix: Nix, tmp_path: Path) -> None:
    driver = tmp_path / "root" / "usr" / "lib64"
    driver.mkdir(parents=True)
    (driver / "libcuda.so.1").touch()
    built = building_nix.build("--impure", "--expr", on_a_fake_host(f'exec /bin/sh "$1" {tmp_path}/root'))
    environment = {"XDG_CACHE_HOME": str(tmp_path), "LD_LIBRARY_PATH": "/theirs"}
    library_path, triton = run(built / "bin" / "python", "-c", OFFERED, **environment).split()
    offered, theirs = library_path.split(":")
    assert theirs == "/theirs"
    assert offered == triton
    assert [path.name for path in Path(offered).iterdir()] == ["libcuda.so.1"]
    assert run(built / "bin" / "vllm", "serve", **environment) == "vllm 0.13.0 serve\n"


def test_a_driver_search_that_fails_stops_nothing(building_nix: Nix) -> None:
    built = building_nix.build("--impure", "--expr", on_a_fake_host("exit 3"))
    assert run(built / "bin" / "python", "-c", OFFERED, LD_LIBRARY_PATH="/theirs") == "/theirs None\n"
    assert run(built / "bin" / "vllm", "serve") == "vllm 0.13.0 serve\n"


# ── knobs ──


def test_ptx_is_kept_when_asked(nix: Nix) -> None:
    assert targets(nix, variant("ptx = true;")) == "9.0+PTX"
    assert targets(nix, variant('ptx = true; extraCapabilities = [ "12.0" ];')) == "9.0;12.0+PTX"


def test_more_than_one_capability(nix: Nix) -> None:
    """What a machine with GB200 and GB300 wants."""
    both = variant('extraCapabilities = [ "10.3" ];', name="sm100")
    assert targets(nix, both) == "10.0;10.3"
    assert nix.value(f"{both}.manifest.text") != ""
    bitsandbytes = 'builtins.filter (m: m.pname or "" == "bitsandbytes")'
    (flags,) = nix.value(f"map (m: m.cmakeFlags) ({bitsandbytes} {both}.propagatedBuildInputs)")
    assert "-DCOMPUTE_CAPABILITY=100;103" in flags


def test_its_manifest_says_what_torch_has_images_for(nix: Nix) -> None:
    """Source torch takes what its own list has of the set's capabilities; the wheel is PyTorch's choice."""

    def torch(arguments: str, name: str = "sm100") -> list[object]:
        manifest = json.loads(nix.value(f"{variant(arguments, name)}.manifest.text"))
        return [manifest["torch"], manifest["capabilities"], manifest["torch_capabilities"]]

    both = 'extraCapabilities = [ "10.3" ];'
    published = ["7.0", "7.5", "8.0", "8.6", "9.0", "10.0", "12.0"]
    assert torch(both + 'torch = "source";') == ["source", ["10.0", "10.3"], ["10.0"]]
    assert torch(both) == ["wheel", ["10.0", "10.3"], published]
    assert torch("", "sm90") == ["wheel", ["9.0"], published]
    assert torch("slim = true;", "sm90") == ["wheel", ["9.0"], None]
    given = 'torch = { url = "https://x/whl/cu129/torch-2.9.1.whl"; hash = ""; };'
    assert torch(given, "sm90") == ["wheel", ["9.0"], None]


def test_torch_from_source(nix: Nix) -> None:
    source = variant('torch = "source";')
    assert nix.value(f"{source}.torch") == "source"
    assert nix.value(f"{source}.drvPath") != nix.value(f"{variant()}.drvPath")


def test_an_sm_of_ones_own(nix: Nix) -> None:
    own = f"""((import {ROOT}/nix).mkVariant {{
      nixpkgs = {MODEL}; system = "{SYSTEM}"; variant.capability = "12.1";
    }})"""
    assert nix.value(f"{own}.pname") == "vllm-python312-cuda12_9-sm121"
    assert targets(nix, own) == "12.1"


def test_another_cuda(nix: Nix) -> None:
    newer = variant('release.cuda = "13.0"; torch = "source";')
    assert nix.value(f"{newer}.pname") == "vllm-python312-cuda13_0-sm90"
    assert nix.value(f"{newer}.versions.cuda") == "13.0"


def test_a_wheel_for_another_major_of_cuda_is_refused(nix: Nix) -> None:
    with pytest.raises(NixFailed) as refused:
        nix.value(variant('release.cuda = "13.0";') + ".drvPath")
    assert str(refused.value) == (
        "torch-bin is a wheel for CUDA 12, and release 0.13.0 declares CUDA 13.0: "
        'set torch = "source", or torch = { url = …; hash = …; } to a wheel for CUDA 13 '
        "(https://wheels.example/whl/cu128/torch-2.9.1%2Bcu128-cp312-cp312-manylinux_2_28_x86_64.whl)"
    )


@pytest.mark.parametrize(
    "url", ["https://x/whl/cu130/torch-2.9.1-cp312.whl", "https://x/torch-2.9.1%2Bcu130-cp312.whl"]
)
def test_a_wheel_for_the_major_of_cuda_that_is_declared_is_taken(nix: Nix, url: str) -> None:
    given = f'torch = {{ url = "{url}"; hash = ""; }}; release.cuda = "13.0";'
    assert nix.value(variant(given) + ".drvPath")
    with pytest.raises(NixFailed, match=r"^torch-bin is a wheel for CUDA 13, and release 0\.13\.0 declares"):
        nix.value(variant(given.partition("release")[0]) + ".drvPath")


def test_the_example_of_the_documentation_evaluates(nix: Nix) -> None:
    """On the model, which packages this vLLM and this torch only."""
    page = (ROOT / "docs" / "nix.md").read_text()
    (example,) = re.findall(r"^vllm-variants\.lib\.mkVariant \{.*?^\}", page, flags=re.DOTALL | re.MULTILINE)
    here = str(example).replace("0.14.0", "0.13.0").replace("2.10.0", MATRIX.default.stack.torch)
    scope = f"let vllm-variants.lib = import {ROOT}/nix; nixpkgs = {MODEL}; in"
    assert here != str(example)
    assert "sm121-0.13.0.drv" in nix.value(f"{scope} ({here}).drvPath")


def test_a_cuda_that_nixpkgs_lacks_is_refused(nix: Nix) -> None:
    with pytest.raises(NixFailed) as refused:
        nix.value(variant('release.cuda = "13.2";') + ".drvPath")
    assert (
        str(refused.value) == "this nixpkgs has no cudaPackages_13_2, and release 0.13.0 declares CUDA 13.2"
    )


def test_a_python_that_nixpkgs_lacks_is_refused(nix: Nix) -> None:
    with pytest.raises(NixFailed, match="this nixpkgs has no python315Packages"):
        nix.value(variant('release.python = "3.15";') + ".drvPath")


def test_another_torch_than_declared_is_refused(nix: Nix) -> None:
    with pytest.raises(NixFailed, match=r"packages torch 2\.9\.1, and release 0\.13\.0 declares 2\.8\.0"):
        nix.value(variant('release.torch = "2.8.0";') + ".drvPath")


def test_overlays_of_ones_own_come_last(nix: Nix) -> None:
    mine = variant('overlays = [ (_: prev: { python312 = prev.python312; mark = "mine"; }) ];')
    assert nix.value(f"{mine}.drvPath") == nix.value(f"{variant()}.drvPath")


def test_override_takes_the_same_arguments(nix: Nix) -> None:
    assert targets(nix, f"({variant()}.override {{ ptx = true; }})") == "9.0+PTX"
    assert targets(nix, f'({variant()}.override (old: {{ variant = "sm80"; }}))') == "8.0"
    twice = f'(({variant()}.override {{ ptx = true; }}).override {{ variant = "sm80"; }})'
    assert targets(nix, twice) == "8.0+PTX"


def test_override_and_override_attrs_may_follow_each_other(nix: Nix) -> None:
    def marked(expression: str) -> str:
        return f'({expression}.overrideAttrs (old: {{ mark = (old.mark or "") + "x"; }}))'

    def with_ptx(expression: str) -> str:
        return f"({expression}.override {{ ptx = true; }})"

    for changed in (with_ptx(marked(variant())), marked(with_ptx(variant()))):
        assert targets(nix, changed) == "9.0+PTX"
        assert nix.value(f"{changed}.mark") == "x"
    assert nix.value(f"{with_ptx(marked(marked(variant())))}.mark") == "xx"


def test_its_name_moves_with_an_override_and_with_override_attrs(nix: Nix) -> None:
    assert nix.value(f'({variant()}.override {{ variant = "sm80"; }}).pname').endswith("-sm80")
    assert nix.value(f'({variant()}.overrideAttrs {{ name = "mine"; }}).name') == "mine"


def test_a_change_by_override_attrs_is_in_what_proves_it(nix: Nix) -> None:
    audit = nix.value(f"{variant()}.tests.audit.drvPath")
    assert nix.value(f'({variant()}.overrideAttrs {{ mark = "x"; }}).tests.audit.drvPath') != audit


def test_all_of_the_derivation_is_at_hand(nix: Nix) -> None:
    assert nix.value(f"{variant()}.package.drvPath") == nix.value(f"{variant()}.drvPath")
    assert nix.value(f"{variant()}.package.env.VLLM_TARGET_DEVICE or {variant()}.package.VLLM_TARGET_DEVICE")


def test_knobs_left_alone_change_nothing(nix: Nix) -> None:
    spelled_out = variant("ptx = false; slim = false; extraCapabilities = [ ]; torch = null; overlays = [ ];")
    assert nix.value(f"{spelled_out}.drvPath") == nix.value(f"{variant()}.drvPath")
