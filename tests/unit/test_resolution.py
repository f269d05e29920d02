"""What a release's stack is, from what uv resolved; and where its table goes in the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.errors import Error, UnsupportedError
from vllm_variants.maintain import releases, resolution
from vllm_variants.maintain.resolution import Resolution
from vllm_variants.model import matrix
from vllm_variants.model.variants import Release, Stack

X86 = "x86_64-linux"


def resolved(system: str = X86, **versions: str) -> Resolution:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return Resolution(system, {"torch": "2.14.0+cu130"} | named, {})


def wheels(*files: str) -> Resolution:
    return Resolution(X86, {}, {"package": files})


@pytest.mark.parametrize(
    ("files", "glibc"),
    [
        (("p-1-py3-none-any.whl",), "2.17"),
        (("p-1-cp38-abi3-manylinux_2_28_x86_64.whl",), "2.28"),
        (("p-1-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",), "2.17"),
        # The older of two wheels for the same Python will do.
        (("p-1-cp312-cp312-manylinux_2_34_x86_64.whl", "p-1-cp312-cp312-manylinux_2_28_x86_64.whl"), "2.28"),
        # Those of another Python, of one without its lock, and of another machine do not count.
        (("p-1-cp38-abi3-manylinux_2_34_x86_64.whl", "p-1-cp313-abi3-manylinux_2_28_x86_64.whl"), "2.34"),
        (("p-1-cp312-cp312-manylinux_2_34_x86_64.whl", "p-1-cp312-cp312t-manylinux_2_28_x86_64.whl"), "2.34"),
        (("p-1-cp310-cp310-manylinux_2_17_x86_64.whl", "p-1-py2.py3-none-manylinux_2_34_x86_64.whl"), "2.34"),
        (("p-1-cp312-cp312-manylinux_2_34_x86_64.whl", "p-1-cp313-cp313-manylinux_2_28_x86_64.whl"), "2.34"),
        (("p-1-cp38-abi3-manylinux_2_34_x86_64.whl", "p-1-cp38-abi3-manylinux_2_28_aarch64.whl"), "2.34"),
    ],
)
def test_the_c_library_is_the_oldest_that_has_a_wheel_of_everything(
    files: tuple[str, ...], glibc: str
) -> None:
    assert wheels(*files).glibc("3.12") == glibc


def test_cuda_is_that_of_the_runtime_that_torch_brings() -> None:
    assert resolved(cuda_toolkit="13.0.3.0").cuda == "13.0"
    assert resolved(nvidia_cuda_runtime_cu12="12.9.79").cuda == "12.9"
    assert resolved().torch == "2.14.0"


def test_a_torch_without_cuda_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="for aarch64-linux brings no CUDA"):
        _ = resolved("aarch64-linux").cuda


def test_systems_with_two_stacks_are_refused_by_name() -> None:
    two = [resolved(cuda_toolkit="13.0.3"), resolved("aarch64-linux", cuda_toolkit="13.1.0")]
    with pytest.raises(UnsupportedError, match=r"13\.0 on x86_64-linux, 13\.1 on aarch64-linux"):
        resolution.same(two, "cuda")


def test_newer_toolkits_are_held_back_and_another_cuda_left_out() -> None:
    text = resolution.overrides(
        resolved(
            cuda_toolkit="13.0.3",
            nvidia_cuda_nvcc="13.5.37",
            nvidia_cuda_nvrtc="13.0.88",
            cuda_python="12.6.2",
            nvidia_cublas="13.1.1.3",
            nvidia_cutlass_dsl_libs_cu12="4.8.0",
            nvidia_cudnn_cu13="9.24.0",
        )
    )
    assert text.splitlines()[1:] == [
        "cuda-python>=13.0,<13.1",
        "nvidia-cuda-nvcc>=13.0,<13.1",
        'nvidia-cutlass-dsl-libs-cu12; sys_platform == "never"',
    ]


def test_nothing_is_overridden_where_all_is_of_one_cuda() -> None:
    assert resolution.overrides(resolved(cuda_toolkit="13.0.3", nvidia_cuda_nvrtc="13.0.88")) == ""


def test_a_driver_is_that_of_a_release_of_the_same_cuda_else_nvidias() -> None:
    rows = matrix.load()
    assert resolution.driver(rows, rows.default.stack.cuda) == rows.default.stack.driver
    assert resolution.driver(rows, "12.1") == "530"
    with pytest.raises(UnsupportedError, match=r"CUDA 99\.0 needs is not known"):
        resolution.driver(rows, "99.0")


def test_what_is_no_resolution_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pylock.toml"
    file.write_text('[[packages]]\nname = "vllm"\n')
    with pytest.raises(Error, match="cannot be read: 'version'"):
        resolution.read(file, X86)
    file.write_text('[[packages]]\nname = "vllm"\nversion = "1"\n')
    with pytest.raises(Error, match="asks for no torch on x86_64-linux"):
        resolution.read(file, X86)


@pytest.mark.parametrize("name", ["0.0.1", "0.12.0", "0.13.1rc1", "0.33.0.post1", "99.0.0"])
def test_the_table_of_a_release_is_read_back_as_it_and_the_others_stay(tmp_path: Path, name: str) -> None:
    rows = matrix.load()
    own = rows.newest_first[0].own_variants
    added = Release(name, None, Stack("3.12", "13.0", "580", "2.14.0"), ("wheels",), "2.34", own)
    path = tmp_path / "variants.toml"
    before = (data.root() / "variants.toml").read_text(encoding="utf-8")
    path.write_text(releases.with_table(before, rows, added), encoding="utf-8")
    now = matrix.read(path)
    assert now.releases[name] == added
    assert {**now.releases, name: None} == {**rows.releases, name: None}
    assert now.default == rows.default
    others = [release for release in now.releases if release != rows.default.name]
    assert others == [release.name for release in now.newest_first if release != rows.default]
