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
from vllm_variants.model import advisories, matrix

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
                self.send_response(500 if answer == b"broken" else 200)
                self.end_headers()
                self.wfile.write(text)

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
        ({None: b"broken"}, "was not asked: HTTP Error 500"),
        ({None: b"<html>"}, "was not asked"),
        ({None: [[]]}, "does not answer as OSV does"),
        ({"0.13.0": {"vulns": [{"summary": "no id"}]}}, "OSV's answer is not understood"),
        ({"0.13.0": {"vulns": [{"id": "a", "affected": 7}]}}, "OSV's answer is not understood"),
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
    with pytest.raises(ResourceError, match="was not asked"):
        refresh(osv)
    assert command.of("0.13.0").state == "not asked"


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


def test_the_document_is_what_its_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    app(["advisories", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == documents.ADVISORIES
    require_valid(document)
    assert {each["release"] for each in document["releases"]} == set(matrix.load().releases)
