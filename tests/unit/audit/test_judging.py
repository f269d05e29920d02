"""How features fare on a device: what runs, what waits, what nobody made, what a driver is too old for."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import Made, container, cubin, library, section

from vllm_variants.audit import summaries
from vllm_variants.audit.answer import Word
from vllm_variants.audit.audited_path import audited_paths
from vllm_variants.audit.drivers import cuda_obstacle, oldest_driver
from vllm_variants.audit.every_sm import SmMatrix
from vllm_variants.audit.features import known, of_library, package_of
from vllm_variants.audit.judging import JudgedFeature, State, judge_features
from vllm_variants.audit.library import judged
from vllm_variants.audit.report import About, AuditReport
from vllm_variants.audit.sms import every_device
from vllm_variants.audit.subject import report_on
from vllm_variants.audit.targets import identify
from vllm_variants.fatbin.codecs import ZSTD_DRIVER
from vllm_variants.model import matrix, toml_file
from vllm_variants.model.capability import Capability, Fit

ADA, HOPPER, BLACKWELL = Capability(8, 9), Capability(9, 0), Capability(10, 0)
CATALOGUE = toml_file.load(
    Path(__file__).parents[3] / "python" / "vllm_variants" / "checks" / "catalogue.toml"
)["check"]


def kernel(name: str, word: str = "compute_80", version: tuple[int, int] = (8, 8)) -> Made:
    """PTX with one kernel of this mangled name."""
    major, minor = version
    text = f".version {major}.{minor}\n.target {word.replace('compute', 'sm')}\n.address_size 64\n"
    return Made(word, f"{text}.visible .entry {name}()\n{{\n}}\n\0".encode(), header_size=80, version=version)


def made(root: Path, **code: bytes) -> Path:
    """A tree of libraries: `vllm__C` is `vllm/_C.so`."""
    for name, data in code.items():
        folder, _, file = name.rpartition("__")
        path = root / folder / f"_{file}.so" if folder else root / f"{file}.so"
        path.parent.mkdir(parents=True, exist_ok=True)
        library(path, data)
    return root


def features(root: Path, device: Capability, driver: str | None = None) -> dict[str, JudgedFeature]:
    return {f.use.feature.key: f for f in judge_features(summaries([root]), device, driver)}


def report(root: Path, device: Capability, driver: str | None = None) -> AuditReport:
    (subject,) = audited_paths([root], device, None)
    return report_on(subject, identify.read(root, fresh=True), driver, matrix.load())[0]


@pytest.mark.parametrize(
    ("release", "variant"), [("0.33.0", "sm103 --release 0.33.0"), ("0.13.0", "sm100 --release 0.13.0")]
)
def test_the_build_that_is_advised_is_one_of_the_release_that_was_found(
    tmp_path: Path, release: str, variant: str
) -> None:
    """A B300 is 10.3: 0.33.0 has a variant of its own for it, and 0.13.0 one that serves it."""
    tree = made(tmp_path, vllm__moe_C=section([kernel("_Z1kv")]))
    (subject,) = audited_paths([tree], Capability(10, 3), release)
    found, _ = report_on(subject, identify.read(tree, fresh=True), None, matrix.load())
    assert f"vllm-variants build {variant} --native" in [advice.command for advice in found.advice]


def test_every_device_of_the_matrix_is_looked_at() -> None:
    devices = {str(device) for device in every_device(matrix.load())}
    assert {"9.0", "10.3", "12.1"} <= devices


# ── which feature ──


def test_a_kernels_name_says_which_feature_a_container_is_of(tmp_path: Path) -> None:
    tree = made(
        tmp_path,
        vllm__C=section(
            [kernel("_ZN6marlin6MarlinI6__halfEEvv"), cubin("sm_90")],
            [kernel("_ZN4vllm25paged_attention_v1_kernelEv")],
            [kernel("_Z9somethingv"), cubin("sm_90")],
        ),
    )
    found = features(tree, HOPPER)
    assert {key: f.state for key, f in found.items()} == {
        "marlin": State.RUNS, "paged-attention": State.WAITS, "vllm-operators": State.RUNS,
    }  # fmt: skip
    assert [f.counts.total for f in found.values()] == [1, 1, 1]


def test_a_library_that_nothing_claims_is_a_feature_of_its_package(tmp_path: Path) -> None:
    tree = made(tmp_path, cupy__cub=section([cubin("sm_80")]))
    (found,) = judge_features(summaries([tree]), HOPPER)
    assert (found.name, found.use.feature.needed, found.state) == ("cupy", True, State.MISSING)
    assert found.reason == "nothing in it runs on sm90"
    for path, package in {
        "lib/python3.12/site-packages/torchvision.libs/libnvjpeg.so.12": "torchvision",
        "made-1.0-cp312-none-any.whl/made/x.so": "made",
        "lone.cpython-312-x86_64-linux-gnu.so": "lone",
    }.items():
        assert package_of(path) == package


def test_every_check_that_a_feature_names_is_in_the_catalogue() -> None:
    named = {check for feature in known() for check in feature.checks}
    assert named and named <= CATALOGUE.keys()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/site-packages/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "flash-attention-2"),
        ("nvidia/cublas/lib/libcublasLt.so.12", "cublas"),
        ("nvidia/cu13/lib/libcufft.so.12", "cufft"),
        ("torch/lib/libtorch_cuda.so", "torch"),
        ("elsewhere/libcublas_like.so", "package:elsewhere"),
    ],
)
def test_a_library_is_of_the_feature_that_its_name_says(path: str, key: str) -> None:
    assert of_library(path).key == key


# ── how it fares ──


def test_what_vllm_does_not_offer_on_a_card_is_not_made_for_it(tmp_path: Path) -> None:
    """Machete's PTX could be compiled for a later card, and vLLM offers it on Hopper alone."""
    tree = made(tmp_path, vllm__C=section([kernel("_ZN7macheteEv")], [cubin("sm_80")], [cubin("sm_100")]))
    assert features(tree, HOPPER)["machete"].state is State.WAITS
    later = features(tree, BLACKWELL)["machete"]
    assert (later.state, later.counts.fit) == (State.UNSUPPORTED, Fit.JIT)


def test_kernels_that_later_releases_gave_up_are_made_for_the_card_that_ran_them(tmp_path: Path) -> None:
    """The catalogue's own `ok` is the newest release's; those of 0.13.0 run on Hopper."""
    code = section([kernel("_ZN7cutlass24StructuredSparseCompressEv"), cubin("sm_90")])
    tree = made(tmp_path, vllm__C=code)
    assert CATALOGUE["scaled_mm.sparse_fp8"]["ok"] == []
    assert features(tree, HOPPER)["sparse-fp8"].state is State.RUNS
    assert features(tree, ADA)["sparse-fp8"].state is State.UNSUPPORTED


def test_libraries_that_stand_for_each_other_count_by_the_best(tmp_path: Path) -> None:
    for name, code in {"118": cubin("sm_70"), "128": cubin("sm_90"), "130": kernel("_Z1kv")}.items():
        path = tmp_path / "bitsandbytes" / f"libbitsandbytes_cuda{name}.so"
        path.parent.mkdir(exist_ok=True)
        library(path, section([code]))
    assert features(tmp_path, HOPPER)["bitsandbytes"].state is State.RUNS
    assert features(tmp_path, ADA)["bitsandbytes"].state is State.WAITS
    assert features(tmp_path, Capability(7, 5))["bitsandbytes"].state is State.RUNS


def test_a_stray_among_others_is_no_code_that_could_wait(tmp_path: Path) -> None:
    default = [cubin("sm_52"), kernel("_Z1kv", "compute_52")]
    tree = made(tmp_path, torch__x=section([cubin("sm_90")], default), lone__y=section(default))
    found = features(tree, HOPPER)
    assert [found[key].state for key in ("package:torch", "package:lone")] == [State.RUNS, State.WAITS]


def test_containers_among_other_data_count_where_a_library_has_no_others(tmp_path: Path) -> None:
    code = b"table..." + container(cubin("sm_100", 9000)) + b"table" + container(cubin("sm_90", 500))
    (tmp_path / "lib").mkdir()
    library(tmp_path / "lib" / "libcufft.so.12", section([cubin("sm_52")]), more={".ldata": code})
    found = features(tmp_path, HOPPER)["cufft"]
    assert (found.state, found.counts.containers) == (State.RUNS, {Fit.NATIVE: 1, Fit.NONE: 1})


def test_how_long_code_among_other_data_compiles_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    code = {".ldata": b"table..." + container(kernel("_Z1kv"))}
    library(tmp_path / "lib" / "libcufft.so.12", section([cubin("sm_52")]), more=code)
    found = features(tmp_path, HOPPER)["cufft"]
    assert (found.state, found.counts.timed) == (State.WAITS, False)
    given = report(tmp_path, HOPPER).answer
    assert given and "in all; not known for cuFFT)" in given.sentence


# ── drivers ──


def test_a_driver_that_is_older_than_the_ptx_cannot_compile_it(tmp_path: Path) -> None:
    tree = made(tmp_path, vllm__moe_C=section([kernel("_Z1kv", version=(8, 8))]))
    assert features(tree, HOPPER, "575.51")["moe"].state is State.WAITS
    old = features(tree, HOPPER, "570.86")["moe"]
    assert old.state is State.DRIVER
    assert old.reason == "driver 575 or newer is needed to compile its PTX; here is 570.86"
    assert report(tree, HOPPER, "570.86").answer.word is Word.NO  # type: ignore[union-attr]


def test_code_that_a_driver_cannot_unpack_needs_a_newer_one(tmp_path: Path) -> None:
    stored = Made("sm_90", cubin("sm_90").payload, flags=0x8000)
    tree = made(tmp_path, vllm__moe_C=section([stored]))
    assert features(tree, HOPPER, f"{ZSTD_DRIVER}.1")["moe"].state is State.RUNS
    old = features(tree, HOPPER, "535.10")["moe"]
    assert old.state is State.DRIVER and "to read how its code is stored" in old.reason


def test_a_driver_older_than_a_librarys_cuda_runs_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    library(tmp_path / "lib" / "libcublas.so.13", section([cubin("sm_90")]))
    audits = [judged(summary, HOPPER) for summary in summaries([tmp_path])]
    assert oldest_driver(audits, []) == 580
    assert cuda_obstacle(audits, "580.82") == "" == cuda_obstacle(audits, None)
    assert cuda_obstacle(audits, "575.51") == "CUDA 13 needs driver 580 or newer, and here is 575.51"
    found = report(tmp_path, HOPPER, "575.51")
    assert found.answer and found.answer.sentence.startswith("no: CUDA 13 needs driver 580")
    assert {str(finding.verdict) for finding in found.findings} == {"driver"}
    shown = SmMatrix(("x",), (HOPPER,), summaries([tmp_path]), "", About(driver="575.51"))
    assert shown.answers()["sm90"] == found.answer


def test_a_driver_of_no_number_is_not_known_to_be_old(tmp_path: Path) -> None:
    tree = made(tmp_path, vllm__moe_C=section([kernel("_Z1kv")]))
    assert features(tree, HOPPER, "beta")["moe"].state is State.WAITS


# ── the answer, and every SM ──


@pytest.mark.parametrize(
    ("code", "word", "says"),
    [
        ([cubin("sm_90")], Word.YES, "yes: everything in it that is made for sm90 runs"),
        ([kernel("_Z1kv")], Word.WAITS, "yes, but not at once: on sm90 the driver first compiles"),
        ([cubin("sm_100")], Word.NO, "no: nothing of mixtures of experts runs on sm90"),
    ],
)
def test_the_answer_says_yes_or_no_first(tmp_path: Path, code: list[Made], word: Word, says: str) -> None:
    given = report(made(tmp_path, vllm__moe_C=section(code)), HOPPER).answer
    assert given and given.word is word
    assert given.sentence.startswith(says)


def test_a_file_that_cannot_be_read_is_never_a_yes(tmp_path: Path) -> None:
    made(tmp_path, vllm__moe_C=section([cubin("sm_90")]))
    (tmp_path / "cut.so").write_bytes((tmp_path / "vllm" / "_moe_C.so").read_bytes()[:300])
    given = report(tmp_path, HOPPER).answer
    assert given and given.word is Word.NO and "cut.so" in given.sentence
    for_all = SmMatrix(("x",), (HOPPER,), summaries([tmp_path])).answers()["sm90"]
    assert (for_all.word, for_all.sentence) == (Word.NO, "no: 1 file could not be read")


def test_the_matrix_says_of_every_sm_what_a_report_says_of_one(tmp_path: Path) -> None:
    tree = made(
        tmp_path, vllm__moe_C=section([cubin("sm_80"), kernel("_Z1kv")]), cupy__x=section([cubin("sm_90")])
    )
    devices = (Capability(7, 5), ADA, HOPPER, BLACKWELL)
    shown = SmMatrix((str(tree),), devices, summaries([tree]))
    answers = shown.answers()
    for device in devices:
        alone = report(tree, device)
        assert answers[device.sm] == alone.answer
        fates = {key: row[device.sm].state for key, row in shown.features().items()}
        assert fates == {f.use.feature.key: f.state for f in alone.features}
    assert [str(answers[d.sm].word) for d in devices] == ["no", "no", "waits", "no"]
