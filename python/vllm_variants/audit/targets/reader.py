"""A process that reads libraries for `processes`, some files at a time."""

from __future__ import annotations

from typing import Any

from vllm_variants.audit.targets.files import read_file
from vllm_variants.fatbin.serving import path_of_text, serve


def main() -> None:
    """Read what is asked for until nothing more is."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """The libraries of each file, as the cache keeps them; a file is its path and its name in the tree."""
    above = request["above"]
    return {
        "files": [
            [
                [library.path, library.as_json()]
                for library in read_file(path_of_text(path), name, above, lambda where: None)
            ]
            for path, name in request["files"]
        ]
    }
