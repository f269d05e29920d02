"""What a report says that somebody should do: commands that can be typed, and nothing without a reason."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from making import capabilities, cubin, library, ptx, section

from vllm_variants.audit import summaries
from vllm_variants.audit.advice import Advice, Circumstances, advise
from vllm_variants.audit.judging import judge_features
from vllm_variants.cli import application

(HOPPER,) = capabilities("9.0")


def advice(root: Path, **about: object) -> list[Advice]:
    """What is advised on what lies in a folder, in these circumstances."""
    facts: dict[str, object] = {
        "variant": "sm90", "release": None, "result": False, "foreign": 0, "driver": None,
        "driver_needed": None,
    }  # fmt: skip
    driver = about.get("driver")
    features = judge_features(summaries([root]), HOPPER, str(driver) if driver else None)
    return advise(features, Circumstances(device=HOPPER, **{**facts, **about}))  # type: ignore[arg-type]


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """A tree with PTX of vLLM's alone, which needs driver 575."""
    (tmp_path / "vllm").mkdir()
    library(tmp_path / "vllm" / "_moe_C.so", section([ptx("compute_80", 900)]))
    return tmp_path


def test_where_everything_runs_nothing_is_advised(tmp_path: Path) -> None:
    library(tmp_path / "made.so", section([cubin("sm_90")]))
    assert advice(tmp_path) == []


def test_vllms_ptx_is_compiled_ahead_or_kept(waiting: Path) -> None:
    ahead, keep = advice(waiting, release="0.13.0")
    assert ahead.command == "vllm-variants build sm90 --release 0.13.0 --native"
    assert keep.what.startswith("or keep the driver's cache") and ahead.features == ("moe",)


def test_ptx_of_others_is_only_kept(tmp_path: Path) -> None:
    """`--native` builds vLLM: it is no advice for somebody else's library."""
    library(tmp_path / "made.so", section([ptx("compute_80", 900)]))
    (keep,) = advice(tmp_path)
    assert keep.what.startswith("keep the driver's cache")


def test_a_card_that_no_variant_is_for_has_no_build(waiting: Path) -> None:
    assert [each.command and each.command.split()[0] for each in advice(waiting, variant=None)] == ["export"]


def test_an_old_driver_is_replaced_or_done_without(waiting: Path) -> None:
    newer, ahead = advice(waiting, driver="560.35", driver_needed=575, release="0.13.0")
    assert newer.what == "install NVIDIA driver 575 or newer (here is 560.35)" and newer.command is None
    assert ahead.command == "vllm-variants build sm90 --release 0.13.0 --native"


@pytest.mark.parametrize("result", [True, False])
def test_what_is_missing_is_built_or_installed(tmp_path: Path, result: bool) -> None:
    library(tmp_path / "made.so", section([cubin("sm_100")]))
    (found,) = advice(tmp_path, result=result)
    assert found.command == ("vllm-variants build sm90" if result else "vllm-variants list")


@pytest.mark.parametrize(
    ("about", "command"),
    [
        ({"path": "my env"}, "vllm-variants slim 'my env' --sm sm90 -o COPY"),
        ({"path": "x", "release": "0.13.0"}, "vllm-variants build sm90 --release 0.13.0"),
        ({"path": "x", "release": "0.13.0", "variant": None}, "vllm-variants slim x --sm sm90 -o COPY"),
        ({}, None),  # an image: there is nothing that slim could take
    ],
)
def test_bytes_that_never_run_are_slimmed_away(
    tmp_path: Path, about: dict[str, object], command: str | None
) -> None:
    library(tmp_path / "made.so", section([cubin("sm_90")]))
    (found,) = advice(tmp_path, foreign=3_150_000_000, **about)
    assert found.what == "3.15 GB can never run on sm90: slimming drops them"
    assert found.command == command
    assert advice(tmp_path, foreign=3_150_000_000, result=True, **about) == []


def test_commands_that_are_advised_are_understood(waiting: Path) -> None:
    """Each of ours is parsed by the command line itself."""
    import typer

    (waiting / "foreign.so").write_bytes(b"")
    library(waiting / "foreign.so", section([cubin("sm_100")]))
    group = typer.main.get_command(application())
    commands = [
        each.command
        for about in ({}, {"release": "0.13.0"}, {"driver": "560.35", "driver_needed": 575, "path": "a b"})
        for each in advice(waiting, foreign=10**9, **about)
        if each.command and each.command.startswith("vllm-variants")
    ]
    assert len(commands) > 5
    for line in commands:
        _, name, *words = shlex.split(line)
        command = group.commands[name]  # type: ignore[attr-defined]
        assert command.make_context(name, words).params
