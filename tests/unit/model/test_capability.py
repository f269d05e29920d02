"""Which image runs on which device: the whole table, then what must hold for any pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.model.capability import TEGRA, Capability, Choice, Fit, Kind, Target, choose, fit

SUFFIXES = ("", "a", "f")

# Device → the cubin targets it runs, written down by hand from NVIDIA's rule. Suffixed targets
# follow from it: `a` only where native, `f` wherever the plain one runs.
RUNS_CUBINS = {
    "5.0": {"5.0": "native"},
    "5.2": {"5.0": "same-major", "5.2": "native"},
    "5.3": {"5.3": "native"},
    "6.0": {"6.0": "native"},
    "6.1": {"6.0": "same-major", "6.1": "native"},
    "6.2": {"6.2": "native"},
    "7.0": {"7.0": "native"},
    "7.2": {"7.2": "native"},
    "7.5": {"7.0": "same-major", "7.5": "native"},
    "8.0": {"8.0": "native"},
    "8.6": {"8.0": "same-major", "8.6": "native"},
    "8.7": {"8.7": "native"},
    "8.9": {"8.0": "same-major", "8.6": "same-major", "8.9": "native"},
    "9.0": {"9.0": "native"},
    "10.0": {"10.0": "native"},
    "10.1": {"10.1": "native"},
    "10.3": {"10.0": "same-major", "10.3": "native"},
    "11.0": {"11.0": "native"},
    "12.0": {"12.0": "native"},
    "12.1": {"12.0": "same-major", "12.1": "native"},
}

CAPABILITIES = [Capability.parse(text) for text in RUNS_CUBINS]

capabilities = st.sampled_from(CAPABILITIES)
targets = st.builds(Target, capabilities, st.sampled_from(SUFFIXES))
images = st.tuples(st.sampled_from(Kind), targets)


@pytest.mark.parametrize("device", CAPABILITIES, ids=str)
@pytest.mark.parametrize("target", CAPABILITIES, ids=str)
def test_a_cubin_runs_on_its_own_and_later_minors(target: Capability, device: Capability) -> None:
    plain = RUNS_CUBINS[str(device)].get(str(target), "none")

    assert fit(Kind.CUBIN, Target(target), device) == plain
    assert fit(Kind.CUBIN, Target(target, "a"), device) == ("native" if plain == "native" else "none")
    assert fit(Kind.CUBIN, Target(target, "f"), device) == ("family" if plain == "same-major" else plain)


@pytest.mark.parametrize("device", CAPABILITIES, ids=str)
@pytest.mark.parametrize("target", CAPABILITIES, ids=str)
def test_ptx_is_compiled_for_its_own_and_later_capabilities(target: Capability, device: Capability) -> None:
    number = float(str(target)), float(str(device))
    family = RUNS_CUBINS[str(device)].get(str(target)) is not None

    assert fit(Kind.PTX, Target(target), device) == ("jit" if number[0] <= number[1] else "none")
    assert fit(Kind.PTX, Target(target, "a"), device) == ("jit" if target == device else "none")
    assert fit(Kind.PTX, Target(target, "f"), device) == ("jit" if family else "none")


@pytest.mark.parametrize(
    ("images", "device", "expected"),
    [
        ("sm_80 sm_86 sm_90", "8.9", "sm_86 same-major"),
        ("sm_80 sm_86 sm_89 sm_90", "8.9", "sm_89 native"),
        ("sm_80 compute_80", "8.6", "sm_80 same-major"),  # no JIT where machine code runs
        ("sm_80 compute_80", "9.0", "compute_80 jit"),
        ("sm_75 compute_70 compute_80 compute_90", "8.9", "compute_80 jit"),
        ("sm_90a", "9.0", "sm_90a native"),
        ("sm_90 sm_90a", "9.0", "sm_90a native"),
        ("sm_90a", "8.9", None),
        ("sm_90a", "10.0", None),
        ("sm_90a compute_90a", "10.0", None),
        ("sm_100f sm_100a", "10.3", "sm_100f family"),
        ("sm_100a", "10.3", None),  # GB300 on what was built for GB200
        ("sm_100 sm_100f compute_100", "12.0", "compute_100 jit"),
        ("sm_80 sm_87", "8.9", "sm_80 same-major"),  # Orin's code is for Orin
        ("sm_80 sm_86", "8.7", None),
        ("compute_52", "12.1", "compute_52 jit"),
        ("", "9.0", None),
    ],
)
def test_the_best_cubin_is_taken_else_the_highest_ptx(images: str, device: str, expected: str | None) -> None:
    chosen = choose(map(parse_image, images.split()), Capability.parse(device))

    assert chosen == (expected and parse_choice(expected))


def parse_image(word: str) -> tuple[Kind, Target]:
    return (Kind.PTX if word.startswith("compute") else Kind.CUBIN), Target.parse(word)


def parse_choice(text: str) -> Choice:
    word, fits = text.split()
    return Choice(*parse_image(word), Fit(fits))


@given(st.lists(images), capabilities)
def test_what_is_chosen_is_there_and_fits_and_nothing_beats_it(
    available: list[tuple[Kind, Target]], device: Capability
) -> None:
    chosen = choose(available, device)

    fits = {fit(kind, target, device) for kind, target in available} - {Fit.NONE}
    assert (chosen is None) == (not fits)
    if chosen:
        assert (chosen.kind, chosen.target) in available
        assert chosen.fit == fit(chosen.kind, chosen.target, device)
        assert (chosen.fit is Fit.JIT) == (fits == {Fit.JIT})
        assert (chosen.fit is Fit.NATIVE) == (Fit.NATIVE in fits)


@given(st.lists(images, min_size=1), capabilities, st.randoms())
def test_the_order_of_images_does_not_matter(
    available: list[tuple[Kind, Target]], device: Capability, random: object
) -> None:
    shuffled = list(available)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert choose(shuffled, device) == choose(available, device)


@given(targets)
def test_a_target_reads_back_from_every_way_it_is_written(target: Target) -> None:
    plain = target.sm.replace("sm_", "")

    for text in (str(target), target.sm, plain, f"sm{plain}", f"compute_{plain}", f" {plain.upper()} "):
        assert Target.parse(text) == target


@pytest.mark.parametrize("text", ["", "a", "9", "sm_", "9.0b", "9.0aa", "9.0.0", "90 a", "L40S"])
def test_anything_else_is_no_target(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        Target.parse(text)


def test_tegra_devices_are_known_by_their_capability() -> None:
    assert [str(each) for each in CAPABILITIES if each.tegra] == ["5.3", "6.2", "7.2", "8.7", "10.1", "11.0"]
    assert set(CAPABILITIES) >= TEGRA
