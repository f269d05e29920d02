"""Where an export may go, and what is looked at before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import vllm_variants
from unit.export.conftest import write_result
from vllm_variants.errors import ExitCode, InputError, MissingError, ResourceError, UsageError
from vllm_variants.export import destinations
from vllm_variants.export.destinations import Destination, Form
from vllm_variants.system import folders


@pytest.mark.parametrize("form", Form)
def test_a_destination_reads_as_it_is_written(form: Form) -> None:
    destination = Destination(form, Path("a/b.c"))
    assert destinations.parse(str(destination)) == destination


@pytest.mark.parametrize("text", ["docker:x", "folder", "oci:", "", ":x", "tar:x"])
def test_what_names_no_form_or_no_path_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        destinations.parse(text)
    assert ":" in (refused.value.hint or "")


def test_what_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        destinations.require_new(Destination(Form.FOLDER, tmp_path / "there"))


def test_a_folder_that_is_absent_or_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(MissingError):
        destinations.require_new(Destination(Form.OCI, Path("/nowhere/at/all")))
    with pytest.raises(InputError, match="cannot be written to") as refused:
        destinations.require_new(Destination(Form.OCI, Path("/proc/image")))
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("way", ["result", "link"])
def test_a_place_in_the_result_itself_is_refused(form: Form, way: str, tmp_path: Path) -> None:
    write_result(tmp_path / "result")
    (tmp_path / "link").symlink_to("result")
    before = sorted((tmp_path / "result").rglob("*"))
    with pytest.raises(UsageError, match="is in the result that is to be exported"):
        vllm_variants.export_results(tmp_path / "result", f"{form}:{tmp_path / way / 'share' / 'made'}")
    assert sorted((tmp_path / "result").rglob("*")) == before


def test_too_little_room_is_said_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 1_000_000_000)
    destinations.require_room(Destination(Form.TAR, tmp_path / "a"), 1_000_000_000)
    with pytest.raises(ResourceError, match=r"needs 2\.00 GB.* has 1\.00 GB free"):
        destinations.require_room(Destination(Form.TAR, tmp_path / "a"), 2_000_000_000)


def test_what_killed_exports_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / ".image.0123456789ab.vllm-variants-new"
    (left / "blobs").mkdir(parents=True)
    (left / ".vllm-variants-writer").touch()
    other = tmp_path / ".other.0123456789ab.vllm-variants-new"
    other.mkdir()
    destinations.require_new(Destination(Form.OCI, tmp_path / "image"))
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
