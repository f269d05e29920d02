"""The HTML file: whole in itself, small enough, and nothing that a name says becomes markup."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sample_result

from vllm_variants import api
from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability
from vllm_variants.reports import inputs
from vllm_variants.reports import page as pages
from vllm_variants.reports.document import Extra, report
from vllm_variants.reports.page import embedded, page

VENDOR = Path(pages.__file__).parent / "vendor"
LARGEST = 1_500_000


class Elements(HTMLParser):
    """What a browser would see: every element with its attributes, and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def of_tree(root: Path, **extra: Any) -> tuple[dict[str, Any], str]:
    tree = sample_result.foreign_tree(root / sample_result.HOSTILE_FOLDER)
    document = report([inputs.read(str(tree), Capability(9, 0), lambda name: None)], Extra(**extra))
    return document, page(document)


def test_the_drawing_library_is_the_one_that_its_note_says() -> None:
    note = toml_file.load(VENDOR / "echarts.toml")
    assert hashlib.sha256((VENDOR / "echarts.min.js").read_bytes()).hexdigest() == note["sha256"]
    assert note["version"] in (VENDOR / "echarts.min.js").read_text()[:200]
    assert f"echarts@{note['version']}" in (VENDOR / "build.sh").read_text()
    assert "Apache License" in (VENDOR / "LICENSE-echarts").read_text()


def test_names_that_are_markup_stay_names(tmp_path: Path) -> None:
    advisory = {"id": "<b>CVE</b>", "sentence": "<script>window.pwned=4</script>"}
    document, html = of_tree(tmp_path, advisories=[advisory], command="report '<i>x</i>'")
    found = Elements(html)
    assert [tag for tag, _ in found.elements].count("script") == 3
    assert not {"img", "svg", "b onclick", "i"} & {tag for tag, _ in found.elements}
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert json.loads(found.scripts[0]) == json.loads(json.dumps(document))


def test_it_points_nowhere(tmp_path: Path) -> None:
    _, html = of_tree(tmp_path)
    elements = Elements(html).elements
    links = [a.get(name) for _, a in elements for name in ("src", "href", "action", "srcset") if a.get(name)]
    assert all(link.startswith(("#", "data:,")) for link in links if link)
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and policy.count("'sha256-") == 2


def test_it_is_text_that_any_file_can_hold(tmp_path: Path) -> None:
    _, html = of_tree(tmp_path)
    assert html.encode("utf-8")
    assert "\\udcff" in html, "a name that is no UTF-8 is written with its bytes"


def test_embedded_json_has_no_sign_of_markup() -> None:
    document = {"name": "</script><!--\u2028 & ]]>"}
    text = embedded(document)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == document


def test_every_kind_of_report_is_small_enough_and_says_its_answer(tmp_path: Path) -> None:
    one = sample_result.make(tmp_path / "one")
    two = sample_result.make(tmp_path / "two", native=True)
    (tmp_path / "build.json").write_text(json.dumps(sample_result.batch(one)))
    (tmp_path / "m.json").write_text(json.dumps(api.audit_path(one).as_dict()))
    for words in ([one], [one, two], [tmp_path / "build.json"], [tmp_path / "m.json"]):
        document = report(
            [inputs.read(str(word), None, lambda name: None) for word in words],
            Extra(given=[sample_result.run_of_checks()]),
        )
        html = page(document)
        assert len(html.encode()) < LARGEST
        assert document["sentence"].split(":")[0] in html


@pytest.mark.parametrize("milliseconds", [0.0, 1e-9, 0.5, 239_000.0, 1e12])
def test_a_bar_is_never_longer_than_its_room(milliseconds: float) -> None:
    assert 0 < pages._log_share(milliseconds) <= 100
