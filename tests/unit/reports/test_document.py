"""Reports as documents: their figures are those of what they are about, and odd input is a sentence."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_result
from validating import require_closed, require_valid

sys.path.append(str(Path(__file__).parents[1] / "audit"))
import imaging

import vllm_variants
from vllm_variants.errors import InputError, MissingError, UsageError
from vllm_variants.model.capability import Capability
from vllm_variants.reports import advisories, inputs, packages, runs
from vllm_variants.reports.document import Extra, report

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_result.make(tmp_path_factory.mktemp("sample") / "result-sm90")


def read(*words: object, device: str | None = None, **extra: Any) -> dict[str, Any]:
    """The document of these, which is what its schema says."""
    capability = Capability.parse(device) if device else None
    named = [inputs.read(str(word), capability, lambda name: None) for word in words]
    document = report(named, Extra(**extra))
    require_valid(json.loads(json.dumps(document)))
    return document


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


# ── a result ──


def test_its_packages_add_up_to_what_was_installed_and_to_what_is_there(result: Path) -> None:
    (subject,) = read(result)["subjects"]
    there = sum(path.stat().st_size for path in result.rglob("*") if path.is_file() and not path.is_symlink())
    assert sum(package["after"] for package in subject["packages"]) == there
    brought = sum(
        (result / name).stat().st_size
        for name in ("share/vllm-variants/slim.json", "share/vllm-variants/manifest.json")
    )
    installed = sum(package["before"] for package in subject["packages"])
    assert installed == subject["sizes"]["installed"] - 3000 + brought


def test_what_a_rule_saved_is_said_of_each_file_and_of_all(result: Path) -> None:
    (subject,) = read(result)["subjects"]
    saved = {saving["rule"]: saving["bytes"] for saving in subject["savings"]}
    slim = json.loads((result / "share/vllm-variants/slim.json").read_text())
    parts = [part for package in subject["packages"] for part in package["parts"]]
    for rule in ("images", "compress"):
        assert saved[rule] == sum(part["saved"].get(rule, 0) for part in parts) == slim["saved"][rule] > 0
    assert saved["files"] == 4_000_000 and saved["bytecode"] == -3000
    for part in parts:
        assert part["before"] - part["after"] == sum(part["saved"].values())


def test_files_belong_to_the_package_whose_record_has_them(result: Path) -> None:
    (subject,) = read(result)["subjects"]
    owned = {p["name"]: {part["path"].rpartition("/")[2] for part in p["parts"]} for p in subject["packages"]}
    assert "libtorch_cuda.so" in owned["torch"] and "protoc" in owned["torch"]
    assert {package["name"]: package["version"] for package in subject["packages"]}[
        "vllm"
    ] == sample_result.RELEASE
    assert packages.NO_PACKAGE in owned


def test_it_says_that_it_waits_and_what_for(result: Path) -> None:
    document = read(result)
    (subject,) = document["subjects"]
    assert document["answer"] == "wait" and document["sentence"].startswith("Yes, but not at once")
    (waiting,) = subject["waiting"]
    assert waiting["path"].endswith("vllm/_C.abi3.so") and waiting["ptx_bytes"] >= 2_000_000
    column = subject["devices"].index("9.0")
    cells = {row["path"].rpartition("/")[2]: row["cells"][column] for row in subject["libraries"]}
    assert cells["libtorch_cuda.so"] == {"serves": "native", "runs": 2, "jit": 0}
    assert cells["_C.abi3.so"] == {"serves": "jit", "runs": 1, "jit": 1}


def test_a_check_that_failed_on_a_card_makes_the_answer_no(result: Path) -> None:
    run = sample_result.run_of_checks()
    assert read(result, given=[run])["answer"] == "wait"
    run["checks"][0]["verdict"] = "failed"
    document = read(result, given=[run])
    assert document["answer"] == "no" and "norm.rms_norm" in document["sentence"]
    other = read(result, given=[{**run, "variant": "vllm-python312-cuda12_9-sm80"}])
    assert other["answer"] == "wait", "that was another variant"


def test_a_later_run_stands_for_an_earlier_one(result: Path) -> None:
    early, late = sample_result.run_of_checks(), sample_result.run_of_checks(finished="2026-11-27T00:00:00Z")
    early["checks"][0]["verdict"] = "failed"
    (card,) = read(result, given=[late, early])["evidence"]
    assert len(card["runs"]) == 2 and len(card["checks"]) == 3
    assert {check["verdict"] for check in card["checks"]} == {"passed", "skipped"}


def test_kept_runs_are_shown_where_they_are_of_the_same_variant(result: Path, tmp_path: Path) -> None:
    kept = runs.read([ROOT / "docs" / "evidence"])
    assert read(result, kept=kept)["evidence"] == []
    shown = read(sample_result.make(tmp_path / "r", release="0.13.0"), kept=kept)["evidence"]
    assert shown and {card["release"] for card in shown} == {"0.13.0"}
    assert not any(card["native"] for card in shown), "the result is not native"


def test_the_driver_that_is_here_decides_too(result: Path) -> None:
    """The sample waits for PTX that driver 575 compiles."""
    for driver, answer in (("570.86", "no"), ("575.51", "wait")):
        asked: list[Capability | None] = []

        def driver_for(device: Capability | None, driver: str = driver) -> str:
            asked.append(device)  # noqa: B023 - called at once
            return driver

        document = report([inputs.read(str(result), None, lambda name: None, driver_for)], Extra())
        assert (document["answer"], asked) == (answer, [Capability(9, 0)])
        advice = [each["what"] for each in document["subjects"][0]["advice"]]
        assert any("install NVIDIA driver 575" in what for what in advice) == (answer == "no")


# ── audits, comparisons, batches ──


def test_an_image_is_reported_as_the_tree_in_it(result: Path, tmp_path: Path) -> None:
    tree = result / sample_result.SITE
    files = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*.so*") if path.is_file()}
    archive = imaging.docker_archive(tmp_path / "image.tar", [imaging.layer(files)])
    (image,), (lying,) = (read(path, device="9.0")["subjects"] for path in (archive, tree))
    assert image["libraries"] == lying["libraries"] and image["libraries"]
    assert image["answer"] == lying["answer"]


def test_an_audit_document_and_the_tree_itself_say_the_same(result: Path, tmp_path: Path) -> None:
    from vllm_variants import audit_path

    tree = result / sample_result.SITE
    audit = audit_path(tree, "sm90").as_dict()
    told = read(written(tmp_path / "audit.json", audit))["subjects"][0]
    found = read(tree, device="9.0")["subjects"][0]
    assert told["answer"] == found["answer"]
    assert [row["serves"] for row in told["libraries"]] == [row["serves"] for row in found["libraries"]]
    assert told["waiting"] == found["waiting"]
    assert (told["devices"], len(found["devices"]) > 5) == (["9.0"], True)


def test_a_tree_without_a_device_has_no_answer_but_every_sm(result: Path) -> None:
    document = read(result / sample_result.SITE)
    assert document["answer"] == "unknown"
    assert len(document["subjects"][0]["devices"]) > 5


def test_two_results_are_compared(result: Path, tmp_path: Path) -> None:
    native = sample_result.make(tmp_path / "native", native=True)
    document = read(result, native)
    require_closed(document)
    assert document["kind"] == "comparison"
    (row,) = [row for row in document["differences"] if row["name"] == "vllm"]
    sizes = [{p["name"]: p["after"] for p in subject["packages"]}["vllm"] for subject in document["subjects"]]
    assert row["bytes"] == sizes[1] - sizes[0]
    assert [subject["native"] for subject in document["subjects"]] == [False, True]


def test_a_batch_says_which_variants_are_missing(result: Path, tmp_path: Path) -> None:
    document = read(written(tmp_path / "build.json", sample_result.batch(result)))
    assert document["kind"] == "batch" and document["answer"] == "no"
    assert "1 of 2 variants" in document["sentence"] and "sm80" in document["sentence"]
    assert "the disk is full" in document["subjects"][1]["sentence"]


def test_what_cannot_be_read_is_never_fine(tmp_path: Path) -> None:
    document = read(sample_result.foreign_tree(tmp_path / "tree"), device="9.0")
    assert document["answer"] == "no"
    words = {row["path"]: row["serves"] for row in document["subjects"][0]["libraries"]}
    assert words["broken.so"] == "broken"


# ── bad input ──


@pytest.mark.parametrize(
    "damage", ["", "[", "[]", "{}", '{"schema": "vllm-variants/gc/1"}', "\x00", "[" * 100_000]
)
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(damage)
    if damage[:1] not in ("{", "["):
        assert read(path)["subjects"][0]["libraries"] == []  # a file without device code, as audit says
        return
    with pytest.raises(InputError, match=r"x\.json"):
        read(path)


def test_documents_that_lost_a_part_are_refused_in_a_sentence(result: Path, tmp_path: Path) -> None:
    audit = vllm_variants.audit_path(result, "sm90").as_dict()
    for document in (audit, sample_result.batch(result)):
        for key in ("libraries", "totals", "outcomes", "verdict", "findings"):
            if key in document:
                broken = copy.deepcopy(document)
                del broken[key]
                with pytest.raises(InputError, match=f"it has no '{key}'"):
                    read(written(tmp_path / "x.json", broken))
                with pytest.raises(InputError):
                    read(written(tmp_path / "x.json", {**document, key: 7}))


def test_what_is_not_there_or_too_much_is_refused(result: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        read(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="cannot be compared"):
        read(result, result, result)
    lone = written(tmp_path / "build.json", sample_result.batch(result))
    with pytest.raises(UsageError, match="stands alone"):
        read(lone, result)


@pytest.mark.parametrize(
    "content", ["7", '{"runs": 3}', '{"checks": []}', '{"runs": [{"checks": [{}]}]}', "{"]
)
def test_evidence_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs.json").write_text(content)
    with pytest.raises(InputError, match=r"runs\.json"):
        runs.read([tmp_path / "runs.json"])


def every_place(node: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The keys and indices that lead to each value of a document, of a list to its first two."""
    if place:
        yield place
    inner = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, value in inner:
        yield from every_place(value, (*place, key))


@pytest.mark.parametrize("kind", ["audit", "batch", "evidence"])
def test_whatever_stands_in_a_place_of_a_document_it_is_shown_or_refused_by_name(
    kind: str, result: Path, tmp_path: Path
) -> None:
    documents = {
        "audit": vllm_variants.audit_path(result, "sm90").as_dict(),
        "batch": sample_result.batch(result),
        "evidence": sample_result.run_of_checks(),
    }
    document, path = json.loads(json.dumps(documents[kind])), tmp_path / "x.json"
    plain = written(tmp_path / "plain.json", documents["audit"])
    refused = 0
    for place, value in zip(every_place(document), itertools.cycle([None, [], {}, "x", 7, float("nan")])):
        changed = copy.deepcopy(document)
        sample = changed
        for key in place[:-1]:
            sample = sample[key]
        sample[place[-1]] = value
        written(path, changed)
        given = {"evidence": [path], "what": plain} if kind == "evidence" else {"what": path}
        try:
            vllm_variants.report(to=tmp_path / "x.html", **given)
        except InputError as error:
            assert path.name in error.message, place
            refused += 1
        except UsageError as error:  # nothing is left to report
            assert value in ([], {}), (place, error)
    assert refused


# ── advisories ──


def test_advisories_come_as_json_and_as_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[advisories]]\nid = "CVE-1"\nsummary = "bad"\nurl = "https://x.test/1"\n'
    )
    assert advisories.read(tmp_path / "a.toml") == [
        {"id": "CVE-1", "sentence": "bad", "url": "https://x.test/1"}
    ]
    listed = written(tmp_path / "a.json", [{"id": "CVE-2", "url": "javascript:alert(1)", "severity": "high"}])
    assert advisories.read(listed) == [{"id": "CVE-2", "sentence": "", "severity": "high"}]


@pytest.mark.parametrize("content", ["{}", "7", '[{"no": "id"}]', "[3]"])
def test_a_list_of_advisories_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        advisories.read(tmp_path / "a.json")
