"""Which images stay: one container a line, written as a person would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Made, capabilities, container
from test_container import Memory

from vllm_variants.fatbin.container import Container, container_at
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.model.capability import Capability, Kind, fit


def held(text: str) -> Container:
    data = container(*(Made(word, b"payload") for word in text.split()))
    return container_at(Memory(data), 0, len(data))


def kept(text: str, *devices: str, keep_ptx: bool = False) -> str:
    images = kept_images(held(text), capabilities(*devices), keep_ptx)
    return " ".join(
        i.target.sm if i.kind is Kind.CUBIN else i.target.sm.replace("sm", "compute") for i in images
    )


@pytest.mark.parametrize(
    ("images", "device", "stays"),
    [
        ("sm_70 sm_80 sm_86 sm_90", "8.9", "sm_86"),
        ("sm_80 sm_90 compute_90", "9.0", "sm_90"),
        ("sm_80 compute_70 compute_80", "9.0", "compute_80"),
        ("sm_90 sm_90a sm_100", "9.0", "sm_90 sm_90a"),  # nobody says which the driver takes
        ("sm_100 sm_100a sm_100f sm_103", "10.0", "sm_100 sm_100a sm_100f"),
        ("sm_100a sm_100f", "10.3", "sm_100f"),
        ("sm_90a", "8.9", ""),
        ("sm_80 sm_87", "8.9", "sm_80 sm_87"),  # the Tegra rule is no driver's word: both
        ("sm_87 sm_89", "8.9", "sm_89"),
        ("sm_87 sm_90", "9.0", "sm_90"),
        ("sm_72", "7.5", "sm_72"),
        ("", "9.0", ""),
    ],
)
def test_what_the_driver_could_choose_stays(images: str, device: str, stays: str) -> None:
    assert kept(images, device) == stays


def test_several_devices_keep_what_each_needs() -> None:
    assert kept("sm_70 sm_80 sm_90 sm_120 compute_120", "8.6", "9.0", "12.1") == "sm_80 sm_90 sm_120"


@pytest.mark.parametrize(
    ("images", "stays"),
    [
        ("sm_80 sm_90 compute_80 compute_90 compute_120", "sm_90 compute_90"),
        ("sm_90 compute_120", "sm_90 compute_120"),
        ("sm_90 compute_90a compute_80", "sm_90 compute_80"),
        ("sm_90", "sm_90"),
    ],
)
def test_one_ptx_stays_for_later_gpus_on_request(images: str, stays: str) -> None:
    assert kept(images, "9.0", keep_ptx=True) == stays


def test_what_is_unknown_stays() -> None:
    data = container(
        Made("sm_50", b"lto", code=8), Made("sm_70", b"?", flags=1 << 30), Made("sm_90"), Made("sm_80")
    )

    stays = kept_images(container_at(Memory(data), 0, len(data)), capabilities("9.0"))

    assert [i.architecture for i in stays] == [50, 70, 90]


WORDS = (
    "sm_70 sm_72 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_90a sm_100 sm_100a sm_100f sm_103 sm_120 "
    "compute_70 compute_80 compute_90 compute_90a compute_100f compute_120"
)
words = st.sampled_from(WORDS.split())
devices = st.sampled_from(capabilities("7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0"))


@given(st.lists(words, max_size=6), st.lists(devices, min_size=1, max_size=3, unique=True))
def test_whatever_ran_before_runs_as_well_after(images: list[str], wanted: list[Capability]) -> None:
    whole = held(" ".join(images))
    stays = kept_images(whole, wanted)

    order = ["native", "same-major", "family", "jit", "none"]
    for device in wanted:
        before, after = (
            min((order.index(fit(i.kind, i.target, device)) for i in some if i.kind), default=4)
            for some in (whole.images, stays)
        )
        assert before == after


@given(st.lists(words, max_size=6), st.lists(devices, min_size=1, max_size=3, unique=True))
def test_planning_again_keeps_the_same(images: list[str], wanted: list[Capability]) -> None:
    stays = kept_images(held(" ".join(images)), wanted)
    again = Container(0, 16, 16, tuple(stays))

    assert kept_images(again, wanted) == stays
