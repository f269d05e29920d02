"""Each mend is seen to matter, and each swap that fails upstream is refused when it is evaluated."""

from __future__ import annotations

import re

import pytest
from paths import MODEL, ROOT
from real_nix import Nix, NixFailed

SWAPS = f"(import {ROOT}/tests/nix/swaps.nix {{ nixpkgs = {MODEL}; }})"
TWO = "two of one Python package: /nix/store/*-{0} and /nix/store/*-{0}"
SECOND = "a second CUDA: cuda12.8-libcublas-12.8.1.4 beside cuda12.9-libcublas-12.9.1.4, in xformers"

# Swap → what its evaluation must end in.
REFUSALS = {
    "bare": "attribute 'cudaSupport' missing",
    "passthru-replaced": "passthru.pyproject missing after overrideAttrs overriding",
    "passthru-without-stdenv": (
        "vllm-python312-cuda12_9-sm90 would not be what it says: "
        "compiler GCC 15.2.0: nvcc of this CUDA goes with 14.3.0"
    ),
    "torch-changed-but-not-torch-bin": TWO.format("python3.12-torch-2.9.1"),
    "triton-not-swapped": TWO.format("python3.12-triton-3.5.1"),
    "only-in-vllms-override": TWO.format("python3.12-torch-2.9.1"),
    "refused-and-overridden": TWO.format("python3.12-torch-2.9.1"),
    "refused-and-overridden-twice": TWO.format("python3.12-torch-2.9.1"),
    "refused-and-overridden-by-argument": TWO.format("python3.12-torch-2.9.1"),
    "refused-by-another-output": TWO.format("python3.12-torch-2.9.1"),
    "in-the-variants-override": TWO.format("python3.12-torch-2.9.1"),
    "no-nvshmem": (
        "CUDA 12.9 of this nixpkgs has no libnvshmem, which the wheel of torch 2.9.1 links: set "
        'torch = "source", or leave out the mend "torch-wheel-nvshmem" if your torch-bin finds it elsewhere'
    ),
    "another-cuda-in-passthru": (
        "a second CUDA: cuda12.8-cuda_cudart-12.8.90 beside cuda12.9-cuda_cudart-12.9.86, in "
    ),
    "another-cuda-in-a-join": SECOND,
    "another-cuda-in-a-join-of-packages": SECOND,
    "another-cuda-in-a-library": SECOND,
    "another-cuda-in-a-join-of-a-library": SECOND,
    "source-torch-lacks-one": (
        "torch 2.9.1 of this nixpkgs is compiled for 9.0 only, which does not run on 10.3; "
        "leave the capability out, or take a wheel"
    ),
    "source-torch-lacks-all": (
        "torch 2.9.1 of this nixpkgs cannot be compiled for 10.3: its package lists other capabilities; "
        "leave the capability out, or take a wheel"
    ),
    "vllm-compiled-for-another": (
        "vllm-python312-cuda12_9-sm90 would not be what it says: vLLM is compiled for 8.0, not for 9.0"
    ),
    "env-attribute-at-top-level": (
        "The ‘env’ attribute set cannot contain any attributes passed to derivation. "
        "The following attributes are overlapping: VLLM_TARGET_DEVICE"
    ),
    "without.cuda-version": (
        "this package set is on CUDA 12.8, and release 0.13.0 declares 12.9: "
        'keep the mend "cuda-version", or set cudaPackages in an overlay'
    ),
    "without.cudnn-of-the-wheel": (
        "cuDNN releases since 9.12 (found 9.13.0.50) "
        'support CUDA compute capabilities 7.5 and newer (found ["7.0"])'
    ),
}

# Mend → what the build ends in without it.
FAILURES = {
    "torch-wheel-cmake": "Found two conflicting CUDA versions",
    "torch-wheel-nvshmem": "auto-patchelf could not satisfy dependency libnvshmem_host.so.3",
    "bitsandbytes": "_CCCL_PP_SPLICE_WITH_IMPL20 was not declared",
}


def in_order(text: str, pattern: str) -> bool:
    """Whether the parts of `pattern` between asterisks follow each other in `text`."""
    at = 0
    for part in pattern.split("*"):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def test_every_mend_is_among_these(nix: Nix) -> None:
    mends = set(nix.value(f"builtins.attrNames {SWAPS}.without"))
    by_evaluation = {name.removeprefix("without.") for name in REFUSALS if name.startswith("without.")}
    assert mends == by_evaluation | set(FAILURES) | {"torch-wheel", "cudnn-nvrtc"}


def test_every_mend_is_in_the_documentation(nix: Nix) -> None:
    page = (ROOT / "docs" / "nixpkgs-mends.md").read_text()
    documented = re.findall(r"^\| `([a-z-]+)` \|", page, flags=re.MULTILINE)
    assert documented == nix.value(f"map (mend: mend.name) (import {ROOT}/nix).mends")


def test_with_all_of_it_the_variant_evaluates(nix: Nix) -> None:
    assert nix.value(f"{SWAPS}.all.drvPath")


def test_one_cuda_by_whatever_way_is_no_second(nix: Nix) -> None:
    assert nix.value(f"{SWAPS}.the-same-cuda-in-all-of-these.drvPath")


@pytest.mark.parametrize("swap", REFUSALS)
def test_it_is_refused_when_it_is_evaluated(nix: Nix, swap: str) -> None:
    with pytest.raises(NixFailed) as refused:
        nix.value(f"{SWAPS}.{swap}.drvPath")
    assert in_order(str(refused.value), REFUSALS[swap]), str(refused.value)


def test_a_name_still_evaluates_where_only_the_derivation_is_refused(nix: Nix) -> None:
    """A test that forces only names would prove nothing."""
    assert nix.value(f"{SWAPS}.without.cudnn-of-the-wheel.name")
    assert nix.value(f"{SWAPS}.triton-not-swapped.name")
    assert nix.value(f"{SWAPS}.refused-and-overridden.name")
    assert nix.value(f"{SWAPS}.refused-and-overridden.cmakeFlags")


@pytest.mark.parametrize("mend", FAILURES)
def test_without_it_the_build_fails(building_nix: Nix, mend: str) -> None:
    with pytest.raises(NixFailed) as failed:
        building_nix.build("-L", "--impure", "--expr", f"{SWAPS}.without.{mend}")
    assert FAILURES[mend] in failed.value.stderr


def test_unchecked_the_build_itself_fails_on_two_torches(building_nix: Nix) -> None:
    """What the check at evaluation saves: upstream this comes hours later."""
    assert building_nix.value(f"{SWAPS}.only-in-vllms-override-unchecked.drvPath")
    with pytest.raises(NixFailed) as failed:
        building_nix.build("-L", "--impure", "--expr", f"{SWAPS}.only-in-vllms-override-unchecked")
    assert "Found duplicated packages in closure for dependency 'torch'" in failed.value.stderr


def test_the_wheels_cmake_leaves_cuda_to_nixpkgs(building_nix: Nix) -> None:
    """All three of what nixpkgs does to source torch's CMake files."""
    torch = building_nix.build("--impure", "--expr", f"{SWAPS}.torch-wheel")
    (cmake,) = torch.glob("lib/python3.*/site-packages/torch/share/cmake/Caffe2")
    lines = (cmake / "public" / "cuda.cmake").read_text().splitlines()
    assert lines == [
        '# set(CUDAToolkit_ROOT "${CUDA_TOOLKIT_ROOT_DIR}")',
        'message(WARNING "Found two conflicting CUDA versions:"',
    ]
    assert not (cmake / "FindCUDAToolkit.cmake").exists()


def test_the_wheel_stands_in_for_torch_only_with_its_mend(nix: Nix) -> None:
    torches = 'builtins.filter (module: module.pname or null == "torch") variant.propagatedBuildInputs'
    is_wheel = f"(variant: map (module: module.isWheel) ({torches}))"
    assert nix.value(f"{is_wheel} {SWAPS}.without.bitsandbytes") == [True]
    assert nix.value(f"{is_wheel} {SWAPS}.without.torch-wheel") == [False]


def test_a_cpu_wheel_is_refused_on_arm(nix: Nix) -> None:
    with pytest.raises(
        NixFailed, match=r"^torch-bin is a CPU wheel, by its address: https://.*/whl/cpu/torch-2\.9\.1"
    ):
        nix.value(f"{SWAPS}.cpu-wheel-on-arm")


def test_ptx_is_no_capability(nix: Nix) -> None:
    with pytest.raises(NixFailed, match=r"^attribute '\"9\.0\+PTX\"' missing"):
        nix.value(f"{SWAPS}.ptx-as-a-capability")


def test_cudnn_finds_nvrtc_under_every_name_of_the_cuda_set(nix: Nix) -> None:
    found = nix.value(f"{SWAPS}.cudnn")
    (runpath,) = found["mended"]["cudaPackages"]
    assert runpath.endswith("-cuda_nvrtc-12.9.86/lib")
    assert set(map(tuple, found["mended"].values())) == {(runpath,)}
    assert set(map(tuple, found["unmended"].values())) == {()}


def test_an_override_of_the_alias_leaves_the_versioned_set_as_it_was(nix: Nix) -> None:
    found = nix.value(f"{SWAPS}.cudnn")["on-the-alias-only"]
    assert found == {"cudaPackages": ["nvrtc"], "cudaPackages_12": [], "cudaPackages_12_9": []}
