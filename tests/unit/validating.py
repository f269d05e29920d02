"""Hold a JSON document to the JSON Schema that it names."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from vllm_variants import documents


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(documents.schema(name))


def require_valid(document: Any, name: str | None = None) -> None:
    """Fail with every place in which a document is not what its schema, or that of `name`, says."""
    errors = _validator(name or document["schema"]).iter_errors(document)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


Place = tuple[str | int, ...]
"""The keys and indices that lead to a value in a document."""

OPEN = ("facts",)
"""Objects of which anybody may put in what they like."""


def require_closed(document: Any) -> None:
    """Fail where a key could come that the schema does not know: a place that it leaves open."""
    still_valid = []
    for place in places(document):
        changed = copy.deepcopy(document)
        at(changed, place)["unknown"] = 1
        if _validator(document["schema"]).is_valid(changed) and place[-1:] != OPEN:
            still_valid.append(place)
    assert still_valid == []


def places(document: Any) -> list[Place]:
    """Where the objects of a document are, one for each kind of place: the elements of a list are one."""
    kinds = {tuple("" if isinstance(k, int) else k for k in place): place for place in _all(document, ())}
    return list(kinds.values())


def at(document: Any, place: Place) -> Any:
    """What is at a place of a document."""
    for key in place:
        document = document[key]
    return document


def _all(node: Any, place: Place) -> Iterator[Place]:
    if isinstance(node, dict):
        yield place
        for key, inner in node.items():
            yield from _all(inner, (*place, key))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _all(inner, (*place, index))
