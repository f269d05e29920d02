"""What the documents name: commands exist with the options that they are given, files and links too."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vllm_variants import data
from vllm_variants.cli import app

ROOT = data.checkout() or pytest.skip("the documents are in a checkout only", allow_module_level=True)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = re.compile(r"(?:^|(?<=[\s`(]))(?:\./)?vllm-variants +([a-z][^`#|\n]*)")
SCRIPT = re.compile(r"(?:^|(?<=[\s`(]))(?:\S*python3? +)?(bench/\w+\.py[^`#|\n]*)")
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009 (typer has no type)


def named(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Document and command line, wherever code is: in fenced blocks and between backticks."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for code in dict.fromkeys([*fenced, *inline]):
            for match in pattern.finditer(code.replace("\\\n", " ")):
                yield document.relative_to(ROOT).as_posix(), match[1].strip()


def words(line: str) -> list[str]:
    """The words of a command, up to what a shell takes for itself."""
    try:
        split = shlex.split(re.split(r"\s(?:[|>;&]|2>)", line)[0].rstrip(".,;:)"))
    except ValueError:
        split = line.split()
    return split


def options(line: str) -> set[str]:
    given = (word.partition("=")[0] for word in words(line)[1:])
    return {word.rstrip(".,;:)") for word in given if re.match(r"--?[a-z]", word)}


@pytest.mark.parametrize(("document", "line"), dict.fromkeys(named(OURS)))
def test_a_documented_command_has_its_options(document: str, line: str) -> None:
    command = words(line)[0]
    assert command in COMMANDS, f"{document}: there is no command {command}"
    if command == "test":
        return  # the rest is pytest's
    known = {
        name
        for parameter in COMMANDS[command].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert options(line) <= known | {"-h", "--help"}, document


@functools.cache
def help_of(script: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, script, "--help"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("document", "line"), dict.fromkeys(named(SCRIPT)))
def test_a_documented_script_starts_from_the_root(document: str, line: str) -> None:
    shown = help_of(words(line)[0])
    assert shown.returncode == 0, f"{document}: {shown.stderr}"
    assert all(option in shown.stdout for option in options(line)), document


def test_documents_name_commands_and_scripts() -> None:
    """The patterns above find what there is: every command, and most scripts."""
    assert {words(line)[0] for _, line in named(OURS)} >= set(COMMANDS)
    assert len({words(line)[0] for _, line in named(SCRIPT)}) > 5


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Markdown's readers make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_documents_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@functools.cache
def tracked() -> frozenset[str]:
    """Every file of the checkout, by its path and by every end of it."""
    folders = [path for path in ROOT.iterdir() if path.name[0] != "." and not path.is_symlink()]
    files = [path.relative_to(ROOT).parts for folder in folders for path in (folder, *folder.rglob("*"))]
    return frozenset("/".join(parts[n:]) for parts in files for n in range(len(parts)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_that_a_document_names_exist(document: Path) -> None:
    """Modules, and data with a folder before it; what is named in capitals stands for something else."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py|(?:[\w-]+/)+[\w.-]+\.(?:toml|txt|nix|sh|json))`", text)
    absent = {name for name in named if name == name.lower() and name not in tracked()}
    assert absent <= OF_A_RESULT


OF_A_RESULT = {"share/vllm-variants/manifest.json", "result/share/vllm-variants/manifest.json"}
"""Files that documents name and no checkout has."""
