"""Files that nothing opens: only what was examined goes, and RECORD says what is there afterwards."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from vllm_variants.builders.wheels import records, unread
from vllm_variants.builders.wheels.unread import Entry, Examined, Left, Listed
from vllm_variants.errors import InputError, UsageError

FILES = {
    "tool/__init__.py": b"",
    "tool/lib/libtool.so.1.2": b"a library" * 99,
    "tool/lib/libtool.so.1": b"a library" * 99,
    "tool/lib/libtool.so": b"a library" * 99,
    "tool/lib/archive.a": b"for a linker" * 99,
    "tool/large.bin": b"few read it" * 99,
    "tool/dsl/one.py": b"1",
    "tool/dsl/two, with a comma.py": b"2",
    "tool_dsl.pth": b"import tool.dsl",
}


def hashed(data: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with one distribution, whose RECORD is another name of a cache's file."""
    folder = tmp_path / "site-packages"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    info = folder / "tool-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tool\nVersion: 1\n")
    rows = [[path, hashed(data), str(len(data))] for path, data in FILES.items()]
    metadata = (info / "METADATA").read_bytes()
    rows += [["tool-1.dist-info/METADATA", hashed(metadata), str(len(metadata))]]
    rows += [["tool-1.dist-info/RECORD", "", ""]]
    with (info / "RECORD").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.link(info / "RECORD", tmp_path / "RECORD in the cache")
    return folder


def listed(path: str, link: str = "", data: bytes | None = None) -> Listed:
    content = FILES[path] if data is None else data
    return Listed(path, (Examined(len(content), hashed(content)),), link)


def entry(*files: Listed, without: str = "") -> Entry:
    return Entry("entry", ("tool 1",), "nobody", "by looking", files, without, "something" if without else "")


def dsl(name: str = "tool/dsl") -> Listed:
    rows = [f"{path},{hashed(data)}" for path, data in sorted(FILES.items()) if path.startswith(name)]
    return Listed(name, (Examined(2, hashed("\n".join(rows).encode())),), is_folder=True)


ARCHIVE = entry(listed("tool/lib/archive.a"))
LARGE = entry(listed("tool/large.bin"), without="large")
LINKS = entry(
    listed("tool/lib/libtool.so", "libtool.so.1.2"), listed("tool/lib/libtool.so.1", "libtool.so.1.2")
)
DSL = entry(listed("tool_dsl.pth"), dsl(), without="dsl")


def done(site: Path, *entries: Entry, without: tuple[str, ...] = ()) -> unread.Plan:
    plan = unread.plan(site, entries, without)
    unread.apply(site, plan)
    records.refresh(site, (), plan.dropped)
    return plan


def truth(site: Path) -> list[str]:
    """What importlib.metadata says of the distribution that the disk does not: nothing, if all is well."""
    (found,) = importlib.metadata.distributions(path=[str(site)])
    wrong = []
    for file in found.files or ():
        data = Path(str(file.locate())).read_bytes()
        if file.hash and (f"sha256={file.hash.value}", file.size) != (hashed(data), len(data)):
            wrong.append(str(file))
    names = {str(file) for file in found.files or ()}
    on_disk = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    return wrong + sorted(names ^ on_disk)


def test_a_file_that_was_examined_goes_and_its_row_too(site: Path) -> None:
    plan = done(site, ARCHIVE)
    assert plan.saved == len(FILES["tool/lib/archive.a"]) and not (site / "tool/lib/archive.a").exists()
    assert "archive" not in (site / "tool-1.dist-info/RECORD").read_text()
    assert truth(site) == []


@pytest.mark.parametrize("data", [b"another file" + b"!" * 1176, b"short"])
def test_another_file_of_that_name_is_left_and_reported(site: Path, data: bytes) -> None:
    (site / "tool/lib/archive.a").write_bytes(data)
    plan = unread.plan(site, [ARCHIVE])
    assert plan.actions == ()
    assert plan.left == (Left("entry", "tool/lib/archive.a", "is not the file that was examined"),)


def test_a_file_that_is_not_there_is_reported(site: Path) -> None:
    (site / "tool/lib/archive.a").unlink()
    assert unread.plan(site, [ARCHIVE]).left == (Left("entry", "tool/lib/archive.a", "is not there"),)


def test_a_plan_touches_nothing(site: Path) -> None:
    before = {path: path.stat() for path in site.rglob("*")}
    assert unread.plan(site, [ARCHIVE, LINKS, LARGE, DSL], ["large", "dsl"]).saved > 0
    assert {path: path.stat() for path in site.rglob("*")} == before


def test_equal_files_become_relative_links_and_their_rows_hold(site: Path) -> None:
    plan = done(site, LINKS)
    for name in ("libtool.so", "libtool.so.1"):
        assert str((site / "tool/lib" / name).readlink()) == "libtool.so.1.2"
    assert plan.saved == 2 * (len(FILES["tool/lib/libtool.so"]) - len("libtool.so.1.2"))
    assert truth(site) == []
    again = unread.plan(site, [LINKS])
    assert again.actions == () and {left.why for left in again.left} == {"is a link already"}


def test_no_link_to_a_file_that_is_another_one(site: Path) -> None:
    (site / "tool/lib/libtool.so.1.2").write_bytes(b"a newer library")
    assert unread.plan(site, [LINKS]).actions == ()


def test_what_costs_something_goes_only_by_its_name(site: Path) -> None:
    assert unread.plan(site, [LARGE]).actions == ()
    done(site, LARGE, without=("large",))
    assert not (site / "tool/large.bin").exists() and truth(site) == []


def test_a_name_that_no_entry_has_is_refused_with_those_that_there_are(site: Path) -> None:
    with pytest.raises(UsageError, match="no 'larger'") as failure:
        unread.plan(site, [LARGE, DSL], ["larger"])
    assert "dsl, large" in str(failure.value)


def test_links_go_with_what_they_point_to(site: Path) -> None:
    names = ("tool/lib/libtool.so.1.2", "tool/lib/libtool.so.1", "tool/lib/libtool.so")
    everything = entry(*(listed(name) for name in names), without="all")
    done(site, LINKS)
    done(site, LINKS, everything, without=("all",))
    assert not [name for name in names if os.path.lexists(site / name)] and truth(site) == []


def test_what_goes_is_not_made_a_link_before(site: Path) -> None:
    names = ("tool/lib/libtool.so.1.2", "tool/lib/libtool.so.1", "tool/lib/libtool.so")
    everything = entry(*(listed(name) for name in names), without="all")
    for entries in ([LINKS, everything], [everything, LINKS]):
        assert not [action for action in unread.plan(site, entries, ["all"]).actions if action.link]


def test_a_folder_goes_with_all_that_records_list_in_it(site: Path) -> None:
    (site / "tool/dsl/own.txt").write_text("a person's file")
    done(site, DSL, without=("dsl",))
    assert sorted(path.name for path in (site / "tool/dsl").iterdir()) == ["own.txt"]
    assert not (site / "tool_dsl.pth").exists()


def test_a_folder_with_one_other_file_stays_whole_and_so_does_what_makes_it_importable(site: Path) -> None:
    (site / "tool/dsl/one.py").write_bytes(b"3")
    plan = unread.plan(site, [DSL], ["dsl"])
    assert plan.actions == () and "one.py is another file" in plan.left[0].why


def test_a_changed_library_gets_its_hash_and_size(site: Path) -> None:
    (site / "tool/large.bin").write_bytes(b"slimmed")
    assert truth(site) == ["tool/large.bin"]
    report = records.refresh(site)
    assert (report.rows, report.removed, report.missing) == (1, 0, ()) and truth(site) == []


def test_a_change_that_keeps_the_size_is_seen_when_it_is_named(site: Path) -> None:
    (site / "tool/large.bin").write_bytes(FILES["tool/large.bin"][::-1])
    assert records.refresh(site).written == () and truth(site) == ["tool/large.bin"]
    assert records.refresh(site, ["tool/large.bin"]).rows == 1 and truth(site) == []


def test_a_record_that_is_right_is_not_written(site: Path) -> None:
    record = site / "tool-1.dist-info/RECORD"
    before = record.stat()
    assert records.refresh(site, ["tool/large.bin"]).written == ()
    assert record.stat() == before


def test_the_cache_keeps_its_record(site: Path) -> None:
    cached = site.parent / "RECORD in the cache"
    before = cached.read_bytes()
    (site / "tool/large.bin").write_bytes(b"slimmed")
    records.refresh(site)
    assert cached.read_bytes() == before != (site / "tool-1.dist-info/RECORD").read_bytes()


def test_rows_that_do_not_change_keep_their_bytes_and_order(site: Path) -> None:
    record = site / "tool-1.dist-info/RECORD"
    before = record.read_text().splitlines()
    (site / "tool/large.bin").write_bytes(b"slimmed")
    records.refresh(site)
    after = record.read_text().splitlines()
    assert [a.split(",")[0] for a in after] == [b.split(",")[0] for b in before]
    assert [a for a, b in zip(after, before, strict=True) if a != b] == [
        f"tool/large.bin,{hashed(b'slimmed')},7"
    ]


def test_a_file_that_somebody_else_removed_keeps_its_row_and_is_reported(site: Path) -> None:
    (site / "tool/large.bin").unlink()
    report = records.refresh(site)
    assert report.missing == ("tool/large.bin",) and report.written == ()


def test_a_record_that_is_none_is_refused(site: Path) -> None:
    (site / "tool-1.dist-info/RECORD").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="RECORD"):
        records.refresh(site)


def test_pip_agrees(site: Path) -> None:
    done(site, ARCHIVE, LINKS, LARGE, without=("large",))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    told = subprocess.run(
        [*pip, "show", "--files", "tool"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    if "No module named pip" in told.stderr:
        pytest.skip("this interpreter has no pip")
    assert told.returncode == 0 and "libtool.so.1.2" in told.stdout and "archive.a" not in told.stdout


def test_the_list_that_ships_is_whole() -> None:
    entries = unread.load()
    assert len({entry.name for entry in entries}) == len(entries)
    for item in entries:
        assert item.readers and item.established and item.packages and item.listed
        assert bool(item.without) == bool(item.loss)
        for file in item.listed:
            assert all(known.bytes > 0 and len(known.hash) == len(hashed(b"")) for known in file.examined)
            assert not any(sign in file.path for sign in "*?[")
    losses = unread.losses(entries)
    assert {"ray-java", "profiler", "nvshmem-bitcode", "cutlass-dsl"} <= losses.keys()


def test_nothing_of_numpys_tests_is_listed() -> None:
    """numpy.testing imports numpy's own tests, and cupy and scipy import numpy.testing."""
    assert not [file.path for item in unread.load() for file in item.listed if "/tests" in file.path]


@pytest.mark.parametrize(
    "text",
    [
        "[[entry]]\nname = 'x'\n",
        "[[entry]]\nname='x'\npackages=[]\nreaders='a'\nestablished='b'\n[[entry.file]]\npath='../x'\nx86_64-linux={bytes=1,hash='h'}\n",
        "[[entry]]\nname='x'\npackages=[]\nreaders='a'\nestablished='b'\n[[entry.file]]\npath='x'\n",
        "no toml",
    ],
)
def test_a_list_that_could_reach_out_of_the_tree_or_has_no_evidence_is_refused(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "unread.toml").write_text(text)
    with pytest.raises(InputError):
        unread.load(tmp_path / "unread.toml")
