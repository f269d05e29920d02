"""The one reader of TOML files: `toml` does the parsing, and what is wrong is a sentence with a line.

Scripts that run inside a result have the standard library alone, and use `tomllib`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import toml

from vllm_variants.errors import InputError, resource_error


def load(path: Path) -> dict[str, Any]:
    """The tables of the file `path`.

    Raises `InputError` where it is not UTF-8 or not TOML, `ResourceError` where it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise resource_error(error) from error
    return parse(decoded(data, path), path)


def decoded(data: bytes, path: Path) -> str:
    """The text of a file's bytes; `InputError` names the first line that is not UTF-8."""
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}", hint="save it as UTF-8") from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """The tables of a TOML document; `path` is the file that an `InputError` names, with the line."""
    try:
        return toml.loads(text)
    except toml.TomlDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid TOML: {error.msg}", hint=f"correct line {error.lineno}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from error
    except (IndexError, TypeError) as error:  # toml 0.10 lets these escape on some broken lines
        raise InputError(f"{path}: not valid TOML") from error


def dumps(tables: Mapping[str, Any]) -> str:
    """The text of a TOML document with these tables."""
    return toml.dumps(tables, encoder=_Encoder())


class _Encoder(toml.TomlEncoder):  # type: ignore[type-arg]  # generic in its stubs alone
    """toml 0.10 writes some backslashes, quotes and control characters so that other text is read back."""

    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = _quoted


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's, and the one control character more that has to be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
