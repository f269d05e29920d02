"""The matrix: names, parsing of what people type, and refusals of broken files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.errors import InputError, UsageError
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability
from vllm_variants.model.variants import Matrix, Release, Stack, Variant

MATRIX = matrix.load()
SHORTS = ["sm70", "sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "sm90-arm64", "sm100-arm64"]


def test_the_ten_variants_in_order() -> None:
    assert list(MATRIX.variants) == SHORTS


def test_names_come_from_release_and_sm() -> None:
    assert [v.name(MATRIX.default) for v in MATRIX.variants.values()] == [
        f"vllm-python312-cuda12_9-{short}" for short in SHORTS
    ]
    later = Release("1.0.0", "0" * 40, Stack("3.13", "13.1", "580", "3.0.0", ("5.0.0",)))
    assert MATRIX.variants["sm90"].name(later) == "vllm-python313-cuda13_1-sm90"


def test_releases_say_which_nixpkgs_packages_them() -> None:
    assert MATRIX.default.name == "0.13.0"
    assert MATRIX.releases["0.13.0"].nixpkgs == "ed142ab1b3a092c4d149245d0c4126a5d7ea00b0"
    assert MATRIX.releases["0.11.2"].nixpkgs == "1306659b587dc277866c7b69eb97e5f07864d8c4"


def test_the_newest_release_is_first_whatever_its_name_ends_in() -> None:
    names = ["0.33.1+cu130", "0.33.1", "0.33.1rc1", "0.33.0.post1", "0.33.0", "0.9.0"]
    releases = {name: replace(MATRIX.default, name=name) for name in reversed(names)}
    rows = replace(MATRIX, releases=releases)
    assert [release.name for release in rows.newest_first] == names


@pytest.mark.parametrize(
    ("name", "right"), [("0.34.0rc1+cu13.1", True), ("0.34.0+", False), ("0.34.0+a..b", False)]
)
def test_a_release_is_named_by_a_version(name: str, right: bool) -> None:
    assert bool(matrix.RELEASE.fullmatch(name)) == right


@given(st.sampled_from(list(MATRIX.variants.values())), st.sampled_from(list(MATRIX.releases.values())))
def test_every_way_to_write_a_variant_leads_back_to_it(variant: Variant, release: Release) -> None:
    ways = [variant.short, variant.short.upper(), variant.name(release), f" {variant.name(release)} "]
    capability = variant.capability
    ways += [str(capability), f"{capability.major}{capability.minor}"]
    for way in ways:
        assert MATRIX.parse(way, system=variant.system).variant == variant


@given(st.sampled_from([(v, gpu) for v in MATRIX.variants.values() for gpu in v.all_gpus]))
def test_every_gpu_leads_to_its_variant(row: tuple[Variant, str]) -> None:
    variant, gpu = row
    for way in (gpu, gpu.lower(), f"NVIDIA {gpu}", f"NVIDIA GeForce {gpu}", gpu.replace(" ", "-")):
        match = MATRIX.parse(way)
        assert match.variant == variant
        assert gpu in match.interpretation


@pytest.mark.parametrize(
    ("word", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "sm90"),
        ("NVIDIA A100-SXM4-80GB", "sm80"),
        ("NVIDIA L40S", "sm89"),
        ("NVIDIA GeForce RTX 3090 Ti", "sm86"),
        ("NVIDIA RTX 6000 Ada Generation", "sm89"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm120"),
        ("Quadro RTX 6000", "sm75"),
        ("NVIDIA GH200 480GB", "sm90-arm64"),
        ("4090", "sm89"),
    ],
)
def test_names_as_the_driver_reports_them(word: str, short: str) -> None:
    assert MATRIX.parse(word).variant.short == short


def test_a_related_capability_is_served_and_says_so() -> None:
    match = MATRIX.parse("10.3", system="aarch64-linux")
    assert match.variant.short == "sm100-arm64"
    assert "10.3" in match.interpretation


def test_an_ambiguous_gpu_names_the_choices() -> None:
    with pytest.raises(UsageError, match=r"Quadro RTX 6000 \(sm75\), RTX 6000 Ada \(sm89\)"):
        MATRIX.parse("RTX 6000")


@pytest.mark.parametrize(
    ("word", "near"), [("sm91", "sm90"), ("sm9O", "sm90"), ("H1000", "H100"), ("RTX 490", "RTX 4090")]
)
def test_an_unknown_word_gets_the_nearest_names(word: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        MATRIX.parse(word)
    assert near in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_variant_or_a_sentence(text: str) -> None:
    try:
        assert MATRIX.parse(text).variant in MATRIX.variants.values()
    except UsageError as error:
        assert error.hint


def test_no_gpu_is_listed_twice() -> None:
    """A GPU has one capability; only its host's architecture could give it two variants."""
    listed = [gpu for variant in MATRIX.variants.values() for gpu in variant.all_gpus]
    assert len(listed) == len(set(listed))


def test_the_l40s_is_ada() -> None:
    assert MATRIX.parse("L40S").variant.capability == Capability(8, 9)


WHOLE = """\
default-release = "1.0"

[release."1.0"]
nixpkgs = "0123456789012345678901234567890123456789"
python = "3.12"
cuda = "12.9"
driver = "560"
torch = "2.9.1"
cutlass = ["4.2.1"]

[variant.sm90]
capability = "9.0"
architecture = "Hopper"
system = "x86_64-linux"
gpus = ["H100"]
"""


def read(tmp_path: Path, text: str) -> Matrix:
    path = tmp_path / "variants.toml"
    path.write_text(text, encoding="utf-8")
    return matrix.read(path)


def test_the_small_matrix_is_whole(tmp_path: Path) -> None:
    assert list(read(tmp_path, WHOLE).variants) == ["sm90"]


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('capability = "9.0"', "capability = 9.0", 12, 'quote it: "…"'),
        ('capability = "9.0"', 'capability = "9"', 12, 'such as "9.0"'),
        ('capability = "9.0"', 'capability = "8.9"', 12, "call the table [variant.sm89]"),
        ('system = "x86_64-linux"', 'system = "x86_64-darwin"', 14, "aarch64-linux"),
        ('gpus = ["H100"]', "gpus = []", 15, "list of names"),
        ('gpus = ["H100"]', 'gpus = "H100"', 15, "list"),
        ('gpus = ["H100"]', "", 11, "add gpus = […]"),
        ('architecture = "Hopper"\n', "", 11, "add architecture"),
        ("[variant.sm90]", "[variant.hopper]", 11, "[variant.sm90]"),
        ('nixpkgs = "0123456789012345678901234567890123456789"', 'nixpkgs = "master"', 4, "40 hex digits"),
        ('cuda = "12.9"', 'cuda = "latest"', 6, "a version"),
        ('default-release = "1.0"', 'default-release = "2.0"', 1, '[release."2.0"]'),
        ('torch = "2.9.1"', 'torch = "2.9.1', 8, "not valid TOML"),
        ('gpus = ["H100"]', 'gpus = ["H100"]\nrelated = ["B300"]', 16, "related"),
        ("[release", "[releases.x]\n[release", 3, "write release"),
        ('python = "3.12"', 'python = "3.12"\npyton = "3.12"', 6, "write python"),
        ('capability = "9.0"', 'capability = "9.0"\ndriver = "560"', 13, "known are: capability"),
        ('cuda = "12.9"', 'cuda = "12.9"\nglibc = "musl"', 7, 'such as "2.34"'),
        ('cuda = "12.9"', 'cuda = "12.9"\nbuilders = ["pip"]', 7, "known are: wheels, nix, flox"),
        ('cuda = "12.9"', 'cuda = "12.9"\nown-variants = ["sm999"]', 7, "add [variant.sm999]"),
        ('cuda = "12.9"', 'cuda = "12.9"\nown-variants = "sm90"', 7, "a list"),
        ("[variant.sm90]", "[variant.sm910]", 12, "call the table [variant.sm90]"),
        ("[variant.sm90]", "[variant.sm9]", 11, "[variant.sm90]"),
        ('nixpkgs = "0123456789012345678901234567890123456789"', 'builders = ["nix"]', 4, "needs a nixpkgs"),
        ('[release."1.0"]', '[release."../x"]', 3, "is not a version"),
        ('[release."1.0"]', '[release.".."]', 3, "is not a version"),
        ('[release."1.0"]', '[release."1.0/2"]', 3, "is not a version"),
    ],
)
def test_a_broken_matrix_is_named_by_line_and_hint(
    tmp_path: Path, old: str, new: str, line: int, says: str
) -> None:
    assert old in WHOLE
    with pytest.raises(InputError) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert f"variants.toml:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_a_matrix_without_variants_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \[variant\.…\] table"):
        read(tmp_path, WHOLE.partition("[variant")[0])


def test_an_absent_matrix_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        matrix.read(tmp_path / "none.toml")


SECOND = """
[variant.sm80]
capability = "8.0"
architecture = "Ampere"
system = "x86_64-linux"
gpus = ["A100", "h100"]
"""


def test_a_gpu_in_two_variants_is_refused(tmp_path: Path) -> None:
    """Which variant a name means would be the order of the file."""
    with pytest.raises(
        InputError, match=r"variants.toml:21: \[variant.sm80\] gpus has h100, and \[variant.sm90\]"
    ):
        read(tmp_path, WHOLE + SECOND)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WHOLE.replace("Hopper", "H\xf6pper").encode("latin-1"), "variants.toml:13: not UTF-8"),
        (WHOLE.encode("utf-16"), "variants.toml:1: not UTF-8"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "not valid TOML: nested too deeply"),
    ],
)
def test_a_matrix_that_is_no_text_of_ours_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "variants.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        matrix.read(path)


def test_an_unknown_release_gets_the_nearest_name() -> None:
    three = {name: MATRIX.releases[name] for name in ("0.33.0", "0.13.0", "0.11.2")}
    rows = replace(MATRIX, releases=three)
    with pytest.raises(
        UsageError, match=r"did you mean 0\.33\.0\? choose one of: 0\.33\.0, 0\.13\.0, 0\.11\.2"
    ):
        rows.release("0.31.0")
    with pytest.raises(UsageError, match="hint: choose one of"):
        rows.release("nightly")


def test_a_release_has_variants_of_its_own_and_the_others_do_not() -> None:
    newest = MATRIX.releases["0.33.0"]
    assert list(MATRIX.of(MATRIX.default)) == SHORTS
    assert list(MATRIX.of(newest)) == [*SHORTS, "sm103", "sm103-arm64", "sm121-arm64"]
    assert newest.nixpkgs is None
    assert newest.builders == ("wheels",)
    assert list(MATRIX.packaged) == ["0.13.0", "0.11.2"]


@pytest.mark.parametrize(
    ("word", "release", "short"),
    [
        ("B300", "0.13.0", "sm100"),
        ("B300", "0.33.0", "sm103"),
        ("GB300", "0.33.0", "sm103-arm64"),
        ("NVIDIA GB10", "0.33.0", "sm121-arm64"),
        ("vllm-python312-cuda13_0-sm90", "0.33.0", "sm90"),
    ],
)
def test_a_name_means_the_variant_that_the_release_has_for_it(word: str, release: str, short: str) -> None:
    assert MATRIX.parse(word, release=MATRIX.releases[release]).variant.short == short


def test_a_related_gpu_is_a_device_of_its_own_capability() -> None:
    assert MATRIX.parse("B300").device == Capability(10, 3)


def test_the_newest_release_that_is_built_for_a_device() -> None:
    found = MATRIX.built_for(Capability(10, 3), "x86_64-linux")
    assert found and (found[0].name, found[1].short) == ("0.33.0", "sm103")
    assert MATRIX.built_for(Capability(12, 1), "x86_64-linux") is None


@pytest.mark.parametrize(
    "word", ["GB10", "sm121-arm64", "12.1", "sm103", "SM103-arm64", "vllm-python312-cuda13_0-sm90"]
)
def test_what_only_another_release_has_names_that_release(word: str) -> None:
    with pytest.raises(UsageError, match=r"release 0\.33\.0 has it"):
        MATRIX.parse(word, release=MATRIX.default)


def test_the_default_release_is_one_that_nixpkgs_packages(tmp_path: Path) -> None:
    """The flake's packages are those of the default release."""
    text = WHOLE.replace('nixpkgs = "0123456789012345678901234567890123456789"\n', "")
    with pytest.raises(InputError, match="no nixpkgs packages"):
        read(tmp_path, text)
