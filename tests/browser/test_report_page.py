"""The HTML report in a real browser, without a network: it shows what its JSON says, to everybody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_result

from vllm_variants.model.capability import Capability
from vllm_variants.reports import inputs
from vllm_variants.reports.document import Extra, report
from vllm_variants.reports.page import page as html_of

AXE = Path(__file__).with_name("axe.min.js")
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
"""Of axe-core 4.14.1 (MPL-2.0), as npm has it: the rules of WCAG, for tests alone."""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A report of each kind: the file, and its document."""
    folder = tmp_path_factory.mktemp("reports")
    one = sample_result.make(folder / "one")
    two = sample_result.make(folder / "two", native=True)
    tree = sample_result.foreign_tree(folder / "tree")
    (folder / "build.json").write_text(json.dumps(sample_result.batch(one)))
    advisory = {"id": "CVE-1", "severity": "high", "sentence": "<img src=x onerror=window.pwned=9>"}
    kinds = {"single": [one], "comparison": [one, two], "batch": [folder / "build.json"], "hostile": [tree]}
    made = {}
    for kind, words in kinds.items():
        named = [inputs.read(str(word), Capability(9, 0), lambda name: None) for word in words]
        document = report(
            named, Extra([sample_result.run_of_checks()], (), [advisory], "vllm-variants report")
        )
        (folder / f"{kind}.html").write_text(html_of(document), encoding="utf-8")
        made[kind] = (folder / f"{kind}.html", document)
    return made


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, files: dict[str, tuple[Path, dict[str, Any]]]) -> Iterator[Open]:
    """Opens the report of a kind; what the console says and what is fetched fails the test."""
    trouble: list[str] = []
    contexts = []

    def show(kind: str, *, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, bypass_csp=False
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on(
            "request", lambda r: trouble.append(r.url) if not r.url.startswith(("file:", "data:")) else None
        )
        page.goto(files[kind][0].as_uri())
        page.wait_for_selector("h1")
        return page

    yield show
    for context in contexts:
        context.close()
    assert trouble == []


KINDS = ["single", "comparison", "batch", "hostile"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_without_a_network_and_without_a_complaint(opened: Open, kind: str) -> None:
    page = opened(kind)
    assert page.locator(".chart.drawn svg").count() > 0
    assert page.evaluate("window.pwned") is None


def test_names_of_foreign_files_are_shown_as_they_are(opened: Open) -> None:
    page = opened("hostile")
    page.click("#bytes summary")
    assert "<script>window.pwned=1" in page.inner_text("#bytes table")
    page.hover("#bytes .chart svg", position={"x": 100, "y": 100})
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, [onerror], [onload]").count() == 0


TILES = """subject => {
    const element = document.querySelector(`[data-chart=map][data-subject="${subject}"]`);
    const leaves = (nodes) => nodes.flatMap((node) => (node.children ? leaves(node.children) : [node]));
    const top = echarts.getInstanceByDom(element).getOption().series[0].data;
    const sum = (nodes) => leaves(nodes).reduce((all, leaf) => all + leaf.value, 0);
    return [sum(top), Object.fromEntries(top.map((node) => [node.name, sum([node])]))];
}"""


def test_the_treemap_holds_the_figures_of_the_json_before_and_after(opened: Open, files: Any) -> None:
    page, packages = opened("single"), files["single"][1]["subjects"][0]["packages"]
    for view, key in (("before", "before"), ("after", "after")):
        page.check(f"input[value={view}]", force=True)
        total, tiles = page.evaluate(TILES, 0)
        assert total == sum(package[key] for package in packages)
        torch = next(package for package in packages if package["name"] == "torch")
        assert tiles["torch"] == torch[key]


def test_the_matrix_holds_the_figures_of_the_json(opened: Open, files: Any) -> None:
    page, subject = opened("single"), files["single"][1]["subjects"][0]
    for row in subject["libraries"]:
        line = page.locator("#libraries tbody tr").filter(has_text=row["path"].rpartition("/")[2])
        shown = [(cell.get_attribute("class") or "").split()[1] for cell in line.locator("td.cell").all()]
        assert shown == [cell["serves"] for cell in row["cells"]]
        counts = [cell.inner_text().split("\n")[1:] for cell in line.locator("td.cell").all()]
        for cell, text in zip(row["cells"], counts, strict=True):
            assert (str(cell["runs"]) in " ".join(text)) == bool(cell["runs"])


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_a_phone_and_a_wide_screen(opened: Open, kind: str, width: int) -> None:
    page = opened(kind, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator(".chart svg").all():
        box = chart.bounding_box()
        assert box and box["width"] > width * 0.3 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_everybody_can_read_it(opened: Open, files: Any, kind: str, scheme: str, browser: Any) -> None:
    """axe-core finds nothing, contrast included, with every table opened."""
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256
    page = opened(kind, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: tags}).then(({violations, passes}) =>"
        " [violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))]), passes.map(p => p.id)])",
        RULES,
    )
    assert found[0] == []
    assert "color-contrast" in found[1], "contrast was measured"


def test_the_keyboard_reaches_everything(opened: Open) -> None:
    page = opened("single")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(e => e.id || e.dataset.chart || e.name || e.tagName)(document.activeElement)")
        )
    assert {"theme", "map", "view", "SUMMARY", "A", "DIV"} <= reached


def test_the_treemap_speaks_to_the_keyboard(opened: Open, files: Any) -> None:
    page = opened("single")
    largest = files["single"][1]["subjects"][0]["packages"][0]
    page.focus("[data-chart=map]")
    page.keyboard.press("ArrowRight")
    assert largest["name"] in page.inner_text(".status")
    page.keyboard.press("Enter")
    assert page.inner_text(".status").startswith(f"{largest['name']}:")
    page.keyboard.press("Escape")
    assert page.inner_text(".status") == ""


def test_the_theme_can_be_chosen_and_paper_is_white(opened: Open) -> None:
    page = opened("single", scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) != dark
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_timeout(100)
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000


def test_without_scripts_every_figure_is_still_there(browser: Any, files: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["single"][0].as_uri())
    assert "Scripts are off" in page.inner_text("main")
    assert "vllm/_C.abi3.so" in page.inner_text("#libraries")
    context.close()
