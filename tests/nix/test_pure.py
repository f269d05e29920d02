"""The library's pure tests (pure.nix), the words of its refusals, and that nothing goes untested."""

from __future__ import annotations

import json

import pytest
from paths import ROOT
from real_nix import Nix, NixFailed

from vllm_variants.model.capability import Capability, Kind, Target, fit

LIBRARY = f"import {ROOT}/nix"
TESTS = f"import {ROOT}/tests/nix/pure.nix {{ library = {LIBRARY}; }}"


def test_every_value_is_as_expected(nix: Nix) -> None:
    failures = nix.value(f"import {ROOT}/tests/nix/run.nix {{ }}")
    assert failures == []


def test_a_wrong_expectation_is_found(nix: Nix) -> None:
    case = (
        '{ subject = { wrong = { expr = 1; expected = 2; }; quiet = { expr = 1; expectedError = "x"; }; }; }'
    )
    failures = nix.value(f"import {ROOT}/tests/nix/run.nix {{ tests = {case}; }}")
    assert [failure["test"] for failure in failures] == ["subject.quiet", "subject.wrong"]


def refusal(nix: Nix, subject: str, case: str) -> str:
    with pytest.raises(NixFailed) as refused:
        nix.value(f"builtins.deepSeq (({TESTS}).{json.dumps(subject)}.{case}.expr) null")
    return str(refused.value)


def test_every_refusal_says_what_is_expected(nix: Nix) -> None:
    expected: dict[str, dict[str, str]] = nix.value(
        f"""
        let
          errors = cases: removeAttrs cases
            (builtins.filter (name: !(cases.${{name}} ? expectedError)) (builtins.attrNames cases));
          words = cases: builtins.mapAttrs (_: case: case.expectedError) (errors cases);
        in builtins.mapAttrs (_: words) ({TESTS})
        """
    )
    assert sum(map(len, expected.values())) >= 15
    said = {
        subject: {case: refusal(nix, subject, case) for case in cases} for subject, cases in expected.items()
    }
    assert said == expected


def test_every_public_function_has_a_test(nix: Nix) -> None:
    public = nix.value(
        f"""
        let
          data = [ "matrix.default" "matrix.releases" "matrix.variants" "mends" "systems" ];
          functions = path: value:
            if builtins.isFunction value || builtins.elem path data then [ path ]
            else builtins.concatMap (name: functions "${{path}}.${{name}}" value.${{name}})
              (builtins.attrNames value);
          within = name: functions name ({LIBRARY}).${{name}};
        in builtins.concatMap within (builtins.attrNames ({LIBRARY}))
        """
    )
    tested = nix.value(f"builtins.attrNames ({TESTS})")
    assert sorted(public) == sorted(tested)


def test_the_library_needs_no_nixpkgs(nix: Nix) -> None:
    """With a nixpkgs that throws, everything but a variant's own attributes evaluates."""
    names = nix.value(
        f"""
        let
          library = {LIBRARY};
          outputs = import {ROOT}/nix/outputs.nix {{
            nixpkgs = throw "a nixpkgs was looked at";
            nixpkgs-0_11_2 = throw "a nixpkgs was looked at";
          }};
        in builtins.mapAttrs (_: builtins.attrNames) outputs.packages
        """
    )
    assert len(names["x86_64-linux"]) == 2 * 8 + 2
    assert len(names["aarch64-linux"]) == 2 * 2 + 2


def test_both_sides_agree_on_what_runs_where(nix: Nix) -> None:
    """The library's rule and the Python side's, over every pair of capabilities that CUDA 12.9 knows."""
    known: list[str] = nix.value(f'({LIBRARY}).capability.ofCuda "12.9"')
    runs = nix.value(
        f"""
        let inherit (({LIBRARY}).capability) ofCuda runs; known = ofCuda "12.9"; in
        map (device: map (runs device) known) known
        """
    )
    expected = [
        [bool(fit(Kind.CUBIN, Target.parse(image), Capability.parse(device))) for image in known]
        for device in known
    ]
    assert runs == expected


@pytest.mark.parametrize("text", ["9.0", "90", "sm90", "sm_100", "compute_120", "12.1", "sm_10.3"])
def test_both_sides_read_the_same_capabilities(nix: Nix, text: str) -> None:
    assert nix.value(f'({LIBRARY}).capability.parse "{text}"') == str(Capability.parse(text))
