"""Damaged entries: told, kept while they are linked, and replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from stocking import FACTS, FIRST, fill, make, names, removed

from vllm_variants.errors import InputError
from vllm_variants.model import results
from vllm_variants.model.results import MANIFEST, DamagedError
from vllm_variants.store import Store


def written(text: str | bytes) -> Callable[[Path], None]:
    def damage(result: Path) -> None:
        (result / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def facts(**changed: object) -> Callable[[Path], None]:
    return written(json.dumps({**FACTS, **changed}))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no manifest": lambda result: (result / MANIFEST).unlink(),
    "a folder as manifest": lambda result: ((result / MANIFEST).unlink(), (result / MANIFEST).mkdir())[0],
    "a pipe as manifest": lambda result: ((result / MANIFEST).unlink(), os.mkfifo(result / MANIFEST))[0],
    "an empty manifest": written(""),
    "no JSON": written("{"),
    "no text": written(b"\xff\xfe"),
    "null": written("null"),
    "a list": written("[]"),
    "an empty table": written("{}"),
    "depth": written("[" * 100_000),
    "capability a number": facts(capability=9),
    "capability nonsense": facts(capability="nine"),
    "bytes null": facts(bytes=None),
    "bytes of text": facts(bytes={"installed": "9", "result": "5"}),
    "half of the bytes": facts(bytes={"result": 5}),
    "steps a number": facts(steps=5),
    "steps of numbers": facts(steps=[5]),
    "totals a number": facts(steps=[{"name": "audit", "totals": 5}]),
    "short null": facts(short=None),
    "created a number": facts(created=5),
    "schema a text": facts(schema="1"),
    "schema nought": facts(schema=0),
    "no bin/python": lambda result: (result / "bin" / "python").unlink(),
    "a bin/python that cannot be executed": lambda result: (result / "bin" / "python").chmod(0o644),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_told_kept_while_linked_and_replaced(
    damage: Callable[[Path], None], here: Store, tmp_path: Path
) -> None:
    link = tmp_path / "result"
    result = make(here, FIRST, link)
    damage(result.path)
    with pytest.raises(DamagedError):
        here.find(FIRST)
    (entry,) = here.entries()
    assert (entry.result, entry.links, entry.bytes) == (None, (link,), 0)
    assert entry.as_dict()["hint"] == "build it anew: vllm-variants build sm90 --release 0.13.0"
    collected = here.gc()
    assert collected.removed == ()
    assert [(kept.path, kept.hint) for kept in collected.kept] == [
        (result.path, "build it anew: vllm-variants build sm90 --release 0.13.0")
    ]
    make(here)  # what a build does
    assert here.find(FIRST) == result
    assert results.read(link).path == result.path
    assert names(here.root / "building") == []


def test_a_damaged_entry_without_a_link_is_removed(here: Store) -> None:
    result = make(here)
    (result.path / MANIFEST).write_text("")
    assert removed(here) == [FIRST]


def test_a_result_of_a_later_version_is_no_damage(here: Store) -> None:
    facts(schema=2)(make(here).path)
    with pytest.raises(InputError, match="this program reads 1") as caught:
        here.find(FIRST)
    assert not isinstance(caught.value, DamagedError)
    assert "use the vllm-variants that built it" in str(here.entries()[0].problem)


def test_a_build_that_is_damaged_is_never_published(here: Store) -> None:
    with here.lock(FIRST, lambda: None), here.building(FIRST) as folder:
        fill(folder)
        (folder / "bin" / "python").chmod(0o644)
        with pytest.raises(DamagedError):
            here.publish(folder, FIRST)
    assert here.find(FIRST) is None
