"""Known advisories: their files, OSV asked on a toy service, and the three states that are never mixed up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from validating import require_valid

from vllm_variants import data, documents
from vllm_variants.cli import app
from vllm_variants.cli import known_advisories as command
from vllm_variants.errors import Error, InputError, ResourceError, UnsupportedError
from vllm_variants.model import advisories, matrix, renewal, toml_file
from vllm_variants.model.advisories import Advisories

OLD = """\
read = "2026-11-24"
[[advisory]]
id = "CVE-2026-1"
severity = "9.8"
condition = "videos of strangers"
[[advisory]]
id = "GHSA-only-here"
"""


def record(name: str, *aliases: str, fixed: str = "0.20.0", **more: Any) -> dict[str, Any]:
    """A record as OSV gives it."""
    events = [{"introduced": "0"}, {"fixed": fixed}]
    affected = {
        "package": {"name": "vllm", "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}],
    }  # fmt: skip
    return {"id": name, "aliases": list(aliases), "summary": f"about {name}", "affected": [affected], **more}


class Osv:
    """A service on this machine: `answers` by version (None: of any), `asked` what it was asked."""

    def __init__(self, answers: dict[str | None, Any]) -> None:
        self.answers, self.asked = answers, list[dict[str, Any]]()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append(body | {"path": self.path})
                answer = service.answers.get(body.get("version"), {})
                if isinstance(answer, list):  # pages
                    answer = answer[int(body.get("page_token", "0"))]
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response({b"broken": 500, b"busy": 429, b"elsewhere": 302}.get(text, 200))
                if text == b"elsewhere":
                    self.send_header("Location", "/portal")
                if text == b"cut off":
                    self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"40\r\n{" if text == b"cut off" else text)

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def osv() -> Iterator[Osv]:
    service = Osv({None: {"vulns": [record("CVE-2020-1")]}})
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed package finds its data, and writes what it renews: `cache`."""
    shipped = tmp_path / "shipped"
    (shipped / "advisories").mkdir(parents=True)
    (shipped / "variants.toml").symlink_to(data.root() / "variants.toml")
    (shipped / "schemas").symlink_to(data.root() / "schemas")
    monkeypatch.setattr(data, "root", lambda: shipped)
    monkeypatch.setattr(data, "checkout", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shipped / "advisories"


def refresh(osv: Osv, *more: str) -> None:
    app(["advisories", "0.13.0", "--refresh", "--service", osv.address, *more], standalone_mode=False)


def test_every_release_has_a_file_that_says_when_it_was_read() -> None:
    for name in matrix.load().releases:
        assert advisories.of(name).state in ("known", "none known"), name
    known = advisories.of("0.13.0")
    assert known.sentence.endswith("the worst CVE-2026-22778 (9.8)")
    assert len({advisory.id for advisory in known.known}) == len(known.known)


def test_the_three_states_are_never_mixed_up(folder: Path) -> None:
    assert command.of("0.13.0").sentence == "not asked"
    (folder / "0.13.0.toml").write_text('read = "2026-11-24"')
    assert command.of("0.13.0").sentence == "none in the records of 2026-11-24"
    (folder / "0.13.0.toml").write_text(OLD)
    assert command.of("0.13.0").sentence == "2 known on 2026-11-24, the worst CVE-2026-1 (9.8)"


def test_what_osv_says_is_joined_with_what_it_does_not_have(folder: Path, osv: Osv) -> None:
    (folder / "0.13.0.toml").write_text(OLD)
    osv.answers["0.13.0"] = [
        {"vulns": [record("GHSA-a", "CVE-2026-1"), record("PYSEC-1", "CVE-2026-1")], "next_page_token": "1"},
        {"vulns": [record("GHSA-new", database_specific={"severity": "HIGH"}),
                   record("GHSA-gone", withdrawn="2026-11-01T00:00:00Z")]},
    ]  # fmt: skip
    refresh(osv)
    known = command.of("0.13.0")
    assert [advisory.id for advisory in known.known] == ["CVE-2026-1", "GHSA-new", "GHSA-only-here"]
    first, new, _ = known.known
    assert (first.severity, first.condition, first.fixed) == ("9.8", "videos of strangers", "0.20.0")
    assert (new.severity, new.source) == ("HIGH", "osv.dev")
    assert known.read is not None and known.read > "2026-11-23"
    assert {asked["path"] for asked in osv.asked} == {"/v1/query"}
    assert osv.asked[1]["package"] == {"name": "vllm", "ecosystem": "PyPI"}
    assert (folder / "0.13.0.toml").read_text() == OLD, "what was shipped stays"


def test_osv_may_know_none(folder: Path, osv: Osv) -> None:
    refresh(osv)
    assert command.of("0.13.0").state == "none known"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({None: {}}, "has no advisory of any vLLM"),
        ({None: b"broken"}, "gave no answer: the server answers 500"),
        ({None: b"busy"}, "gave no answer: the server answers 429 Too Many Requests"),
        ({None: b"cut off"}, "gave no answer: IncompleteRead"),
        ({None: b"\x1f\x8b"}, "does not answer as OSV does"),
        ({None: b"<html>"}, "does not answer as OSV does"),
        ({None: b"[" * 100_000}, "does not answer as OSV does"),
        ({"0.13.0": b"elsewhere"}, "gave no answer: the server sends on to http://127.0.0.1:[0-9]+/portal"),
        ({None: {"vulns": [record("CVE-2020-1")], "next_page_token": "0"}}, "has no end of pages"),
        ({None: [[]]}, "does not answer as OSV does"),
        ({"0.13.0": {"vulns": [{"summary": "no id"}]}}, "OSV's answer is not understood"),
        ({"0.13.0": {"vulns": [{"id": "a", "affected": 7}]}}, "OSV's answer is not understood"),
        ({"0.13.0": {"vulns": [record("a [link=b]")]}}, "'a .link=b.' is no name of an advisory"),
    ],
)
def test_a_service_that_is_no_osv_changes_nothing(
    folder: Path, osv: Osv, answers: dict[str | None, Any], says: str
) -> None:
    osv.answers |= answers
    with pytest.raises(ResourceError, match=says):
        refresh(osv)
    assert command.of("0.13.0").state == "not asked"


def test_a_service_that_is_not_there_is_not_none(folder: Path, osv: Osv) -> None:
    osv.server.shutdown()
    osv.server.server_close()
    with pytest.raises(ResourceError, match=r"gave no answer: .*refused"):
        refresh(osv)
    assert command.of("0.13.0").state == "not asked"


@pytest.mark.parametrize("address", ["http://[", "http://127.0.0.1:port", "http://a b", "http://"])
def test_an_address_that_is_none_is_one_sentence(folder: Path, address: str) -> None:
    with pytest.raises(ResourceError, match="gave no answer"):
        app(["advisories", "--refresh", "--service", address], standalone_mode=False)


def test_a_password_is_sent_and_not_shown(folder: Path, osv: Osv) -> None:
    osv.address = osv.address.replace("//", "//person:secret@")
    refresh(osv)
    assert command.of("0.13.0").state == "none known"
    osv.answers[None] = b"busy"
    with pytest.raises(ResourceError) as failure:
        refresh(osv)
    assert "secret" not in str(failure.value)


def renewed(*records: dict[str, Any], every: tuple[dict[str, Any], ...] = (), old: str = "") -> Advisories:
    """What is known of 0.13.0 after OSV gave these records; `old` is the file before."""
    tables = toml_file.parse(old, Path()).get("advisory", [])
    known = tuple(advisories._advisory(table, Path()) for table in tables)
    return renewal.renewed(Advisories("0.13.0", None, known), records, "2026-11-27", every)


def test_records_that_share_a_name_through_others_are_one_vulnerability() -> None:
    pysec, ghsa = record("PYSEC-1"), record("GHSA-1", database_specific={"severity": "HIGH"})
    cve = record("CVE-2026-1", "PYSEC-1", "GHSA-1")
    (one,) = renewed(pysec, ghsa, cve).known
    assert (one.id, one.aliases, one.severity) == ("PYSEC-1", ("CVE-2026-1", "GHSA-1"), "HIGH")
    old = OLD.removesuffix('[[advisory]]\nid = "GHSA-only-here"\n')
    (one,) = renewed(record("GHSA-1"), record("PYSEC-1", "CVE-2026-1", "GHSA-1"), old=old).known
    assert (one.id, one.severity, one.condition) == ("CVE-2026-1", "9.8", "videos of strangers")


def affected(*ranges: str, kind: str = "ECOSYSTEM", package: str = "vllm") -> dict[str, Any]:
    """An entry of a record: each range as `introduced 0.5, fixed 0.9.1`."""
    listed = [
        {"type": kind, "events": [dict([event.split(" ")]) for event in versions.split(", ")]}
        for versions in ranges
    ]
    return {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": listed}


SEVERAL = (
    "introduced 0.14.0, fixed 0.14.1",
    "introduced 0.10.0, fixed 0.13.1",
    "introduced 0.5, fixed 0.9.1",
)


@pytest.mark.parametrize(
    ("entries", "introduced", "fixed"),
    [
        ([affected(*SEVERAL)], "0.10.0", "0.13.1"),
        ([affected("fixed 0.20.0, introduced 0.10.2, fixed 0.9.2, introduced 0.9.0")], "0.10.2", "0.20.0"),
        ([affected("introduced 0.13.0rc1, fixed 0.13.0.post1")], "0.13.0rc1", "0.13.0.post1"),
        ([affected("introduced 0.8, last_affected 0.13.0")], "0.8", ""),
        ([affected("introduced 0.8, last_affected 0.12.0")], "", ""),
        ([affected("introduced 0, fixed what")], "0", ""),
        ([affected("introduced 0, fixed a1b2", kind="GIT")], "", ""),
        ([affected("introduced 0, fixed 1.0", package="torch"), affected("introduced 0.1, fixed 0.14")],
         "0.1", "0.14"),
        ([{"package": None, "ranges": None}], "", ""),
        (None, "", ""),
    ],
)  # fmt: skip
def test_the_versions_are_those_of_the_range_that_holds_the_release(
    entries: list[Any] | None, introduced: str, fixed: str
) -> None:
    odd = {"id": "CVE-1", "aliases": None, "database_specific": None, "affected": entries}
    (one,) = renewed(odd).known
    assert (one.introduced, one.fixed, one.severity, one.condition) == (introduced, fixed, "", "")


def test_what_osv_withdrew_or_says_of_other_versions_now_goes() -> None:
    old = """[[advisory]]
id = "CVE-2026-1"
source = "a person"
[[advisory]]
id = "CVE-2026-2"
source = "osv.dev"
"""
    gone = record("GHSA-1", "CVE-2026-1", withdrawn="2026-11-01T00:00:00Z")
    other = record("GHSA-2", "CVE-2026-2")
    names = [
        [advisory.id for advisory in renewed(every=every, old=old).known]
        for every in ((), (gone,), (other,), (gone, other), (gone, record("PYSEC-1", "CVE-2026-1")))
    ]
    both = ["CVE-2026-1", "CVE-2026-2"]
    assert names == [both, ["CVE-2026-2"], ["CVE-2026-1"], [], both]
    assert [advisory.id for advisory in renewed(other, every=(other,), old=old).known] == [both[1], both[0]]


def test_without_any_severity_none_is_called_the_worst() -> None:
    assert renewed(record("CVE-1")).sentence == "1 known on 2026-11-27"


SUMMARY = 'DoS in [/v1/completions], a\\x64, "quoted" \x1b[31m\x00\x7f\ud800 [bold]list[int]'


def test_a_summary_is_read_back_and_shown_as_it_is(
    folder: Path, osv: Osv, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.answers["0.13.0"] = {"vulns": [{**record("CVE-1"), "summary": SUMMARY}]}
    refresh(osv)
    (one,) = command.of("0.13.0").known
    assert one.condition == 'DoS in [/v1/completions], a\\x64, "quoted" [31m [bold]list[int]'
    shown = " ".join(capsys.readouterr().out.split())
    assert "[/v1/completions]" in shown
    assert "[bold]list[int]" in shown


def test_what_was_asked_today_counts_before_what_was_shipped_today(folder: Path, osv: Osv) -> None:
    osv.answers["0.13.0"] = {"vulns": [record("CVE-2026-9")]}
    refresh(osv)
    (folder / "0.13.0.toml").write_text(f'read = "{command.of("0.13.0").read}"')
    assert [advisory.id for advisory in command.of("0.13.0").known] == ["CVE-2026-9"]


def test_a_broken_file_is_not_blamed_on_the_service(folder: Path, osv: Osv) -> None:
    (folder / "0.13.0.toml").write_text('read = "today"')
    with pytest.raises(InputError, match=r"0\.13\.0\.toml: read is 'today'") as failure:
        refresh(osv)
    assert osv.asked == []
    assert failure.value.hint == "correct it, or remove it and ask anew: vllm-variants advisories --refresh"


def test_all_files_are_renewed_or_none(folder: Path, osv: Osv) -> None:
    cache = command.cache()
    (cache / "0.11.2.toml").mkdir(parents=True)  # which no file can replace
    releases = ["0.33.0", "0.13.0", "0.11.2"]
    with pytest.raises(ResourceError):
        app(["advisories", *releases, "--refresh", "--service", osv.address], standalone_mode=False)
    assert [path.name for path in cache.iterdir()] == ["0.11.2.toml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "read is None, not a day"),
        ('read = "today"', "read is 'today', not a day"),
        ('read = "2026-11-24"\nadvisory = 3', "advisory is no list of tables"),
        ('read = "2026-11-24"\n[[advisory]]\nseverity = "9.8"', "an advisory has no id"),
        ('read = "2026-11-24"\n[[advisory]]\nid = 7', "an advisory is broken"),
    ],
)
def test_a_broken_file_is_one_sentence(folder: Path, text: str, says: str) -> None:
    (folder / "0.13.0.toml").write_text(text)
    with pytest.raises(InputError, match=says):
        command.of("0.13.0")


def test_build_refuses_what_is_vulnerable_or_was_not_asked(folder: Path) -> None:
    release = matrix.load().release("0.13.0")
    with pytest.raises(UnsupportedError, match="was not asked"):
        command.require_none(release)
    (folder / "0.13.0.toml").write_text(OLD)
    with pytest.raises(
        Error, match=r"2 advisories are known for vLLM 0\.13\.0 on 2026-11-24: CVE-2026-1, GHSA"
    ):
        app(["build", "sm90", "--no-vulnerable"], standalone_mode=False)
    (folder / "0.13.0.toml").write_text('read = "2026-11-24"')
    command.require_none(release)
    assert command.note(release) is None


def test_no_name_of_an_advisory_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    app(["advisories", "0.13.0"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "…" not in shown
    for advisory in advisories.of("0.13.0").known:
        assert all(name in shown for name in advisory.names)


def test_the_document_is_what_its_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    app(["advisories", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == documents.ADVISORIES
    require_valid(document)
    assert {each["release"] for each in document["releases"]} == set(matrix.load().releases)
