"""What a failed build died of, from its last lines and Nix's error."""

from __future__ import annotations

import pytest

from vllm_variants.errors import Error, ExitCode, ResourceError, UnsupportedError
from vllm_variants.nix.failures import failure, out_of_memory, transfer_failure
from vllm_variants.nix.progress import Build

DRV = "/nix/store/" + "a" * 32 + "-python3.12-torch-2.9.1.drv"


def build(*lines: str) -> Build:
    made = Build(DRV, phase="buildPhase", objects=(57, 406))
    made.tail.extend(lines)
    return made


@pytest.mark.parametrize(
    "line",
    [
        "c++: fatal error: Killed signal terminated program cc1plus",
        "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
        "cc1plus: out of memory allocating 65536 bytes",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ],
)
def test_memory_that_ran_out_wants_fewer_compile_jobs(line: str) -> None:
    error = failure("sm90", build("[57/406] x", line), [], True, 8)
    assert out_of_memory(error)
    assert error.exit_code is ExitCode.RESOURCES
    assert error.message.startswith("sm90 failed in buildPhase at object 57 of 406: memory ran out")
    assert error.hint is not None and "--cores 4" in error.hint


def test_a_killed_builder_that_said_nothing_is_told_by_nix_alone() -> None:
    words = f"error: builder for '{DRV}' failed due to signal 9 (Killed)"
    assert out_of_memory(failure("sm90", build(), [words], True, 2))


@pytest.mark.parametrize(
    ("line", "kind", "meaning"),
    [
        (
            "error writing to /build/x.s: No space left on device",
            ResourceError,
            "the disk is full",
        ),
        ("error: hash mismatch in fixed-output derivation '/nix/store/x.drv':", Error, "wrong hash"),
        ("curl: (6) Could not resolve host: github.com", ResourceError, "could not be reached"),
        (
            "a 'x86_64-linux' with features {big-parallel} is required to build 'x', but I am a",
            UnsupportedError,
            "no machine here offers",
        ),
        ("Required system: 'x' with features {big-parallel}", UnsupportedError, "no machine here offers"),
        ("required (system, features): (x, [big-parallel])", UnsupportedError, "no machine here offers"),
        ("Reason: required system or feature not available", UnsupportedError, "no machine here offers"),
        (
            "error: unable to start any build; either increase '--max-jobs' or enable remote builds.",
            UnsupportedError,
            "no remote machine takes it",
        ),
    ],
)
def test_known_deaths_have_a_meaning_and_a_hint(line: str, kind: type[Error], meaning: str) -> None:
    error = failure("sm90", build(line), [], True, 8)
    assert type(error) is kind
    assert meaning in error.message
    assert error.hint


@pytest.mark.parametrize(
    "line",
    [
        "CMake Error: CMake 3.26 or higher is required to build vLLM",
        "error: a C++17 compiler with features {concepts} is required",
        "error: Required features are missing",
    ],
)
def test_what_a_build_itself_requires_is_no_missing_machine(line: str) -> None:
    error = failure("sm90", build(line), [], True, 8)
    assert type(error) is Error
    assert line in error.message


def test_otherwise_the_line_that_tells_most_is_quoted() -> None:
    lines = ["[1/2] fine", "FAILED: x.cu.o", "x.cu(3): error: no such thing", "ninja: build stopped: error"]
    assert failure("sm90", build(*lines), [], True, 8).message.endswith(": x.cu(3): error: no such thing")


def test_a_dependency_is_named_and_who_needs_it() -> None:
    error = failure("sm90", build("Error: no"), [], False, 8)
    assert error.message.startswith("torch-2.9.1, which sm90 needs, failed in buildPhase")


def test_nixs_words_tell_where_the_build_said_nothing() -> None:
    words = f"error: builder for '{DRV}' failed to produce output path for output 'dist'"
    assert (
        "failed to produce output path" in failure("sm90", build(), ["error: other", words], True, 8).message
    )


def test_a_failure_without_any_words_is_still_a_sentence() -> None:
    assert failure("sm90", None, [], True, 8).message == "sm90 was not built, and printed nothing"


def test_transfers_have_their_own_words() -> None:
    error = transfer_failure(
        "sm90 is linked", "cannot add path 'x' because it lacks a signature by a trusted key"
    )
    assert "wants a signature" in error.message
    assert transfer_failure("sm90 is linked", "odd").message == "sm90 is linked: odd"
