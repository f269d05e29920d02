"""Run uv with nothing of the folder that the person stands in, and with their way to the packages.

uv takes settings from `pyproject.toml` and `uv.toml` in the current folder and above it, from the
person's and the machine's `uv.toml`, and from `UV_…` variables. Some of them say where packages come
from and how: index, proxy, certificates, credentials, cache. Those are kept. The rest say what to
install and where (`target`, `constraint`, `override`, `link-mode`, …), for other work than ours: a
result is made of its lock alone. So uv reads no settings by itself; the kept ones of `uv.toml` are
handed to it in a file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError, MissingError
from vllm_variants.model import toml_file
from vllm_variants.system import process
from vllm_variants.system.process import CompletedCommand

# docs: uv's reference of environment variables. UV_INDEX_… are credentials, by the index's name.
_KEPT_VARIABLES = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_.+|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|KEYRING_PROVIDER|CREDENTIALS_DIR|"
    r"INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS|OFFLINE|CACHE_DIR|NO_CACHE|NO_PROGRESS|NO_NETRC|"
    r"(HTTP|CONCURRENT|AZURE|GCS|S3|HF|REQUEST|LOCK)_.+)"
)
# uv's reference of settings: the same, as uv.toml calls them; those of [pip] that are about packages' places.
_KEPT_OF_PIP = frozenset(
    {"index-url", "extra-index-url", "find-links", "no-index", "index-strategy", "keyring-provider"}
)
_KEPT_SETTINGS = _KEPT_OF_PIP | frozenset(
    {"index", "allow-insecure-host", "native-tls", "system-certs", "offline", "cache-dir", "no-cache"}
    | {"http-proxy", "https-proxy", "no-proxy", "concurrent-downloads", "concurrent-installs"}
)
_PLACES = frozenset({"index-url", "extra-index-url", "find-links", "url"})


def program() -> str:
    """The uv program: the one that `VLLM_VARIANTS_UV` names, else the one installed with this package.

    Raises `MissingError` where neither is there.
    """
    named = os.environ.get("VLLM_VARIANTS_UV")
    if named:
        return named
    from uv import find_uv_bin

    try:
        return find_uv_bin()
    except FileNotFoundError as error:
        raise MissingError(
            "uv is not installed beside this program", hint="install it, and name it in VLLM_VARIANTS_UV"
        ) from error


def run(arguments: Sequence[str | Path], hide: str | None = None) -> CompletedCommand:
    """Run uv with `arguments` and show its output, without the lines that match `hide`; how it ended.

    Raises `MissingError` when uv cannot be started, `InputError` for a `uv.toml` that is not TOML.
    """
    with _command(arguments) as command:
        return process.show(command, env=environment(), hide=hide)


def capture(arguments: Sequence[str | Path], text: str = "") -> CompletedCommand:
    """Run uv with `arguments` and without showing anything, `text` as its stdin; raises as `run` does."""
    with _command(arguments) as command:
        return process.capture(command, env=environment(), text=text)


@contextmanager
def _command(arguments: Sequence[str | Path]) -> Iterator[list[str | Path]]:
    """The command line, while the file with uv's settings is there; its `OSError` becomes `MissingError`."""
    executable = program()
    with _settings() as options:
        try:
            yield [executable, *arguments, *options]
        except OSError as error:
            if error.filename != executable:
                raise
            raise MissingError(
                f"uv cannot be started: {error.strerror} ({executable})", hint=hint()
            ) from error


def hint() -> str:
    """What a person does about a uv that cannot be used."""
    if os.environ.get("VLLM_VARIANTS_UV"):
        return "name a uv program in VLLM_VARIANTS_UV, or unset it"
    return "install vllm-variants again; in a checkout: rm -r .venv"


def environment() -> dict[str, str]:
    """The variables that uv may see: all but another environment's, and uv's own that are not kept."""
    foreign = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and (not name.startswith("UV_") or _KEPT_VARIABLES.fullmatch(name))
    }


@contextmanager
def _settings() -> Iterator[list[str | Path]]:
    """The arguments that say where uv's settings are: nowhere, or in a file with the kept ones."""
    kept: dict[str, Any] = {}
    for path in _files():
        kept = _merged(kept, _kept(path))
    if not kept:
        yield ["--no-config"]
        return
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(toml_file.dumps(kept))
        file.flush()
        yield ["--config-file", Path(file.name)]


def _files() -> list[Path]:
    """The person's and the machine's uv.toml, or the one that UV_CONFIG_FILE names, as uv finds them."""
    if os.environ.get("UV_NO_CONFIG", "").lower() not in ("", "0", "false"):
        return []
    if named := os.environ.get("UV_CONFIG_FILE"):
        return [Path(named).absolute()]
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 (never fails)
    folders = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    of_machine = [path for path in (*(Path(f, "uv", "uv.toml") for f in folders), _MACHINE) if path.is_file()]
    return [path for path in (Path(home, "uv", "uv.toml"), *of_machine[:1]) if path.is_file()]


_MACHINE = Path("/etc/uv/uv.toml")


def _kept(path: Path) -> dict[str, Any]:
    """What is kept of one uv.toml; places that are relative to it become absolute."""
    try:
        facts = toml_file.load(path)
    except InputError as error:
        raise InputError(
            f"uv's settings cannot be used: {error.message}", hint="correct the file, or set UV_NO_CONFIG=1"
        ) from error
    kept = {key: value for key, value in facts.items() if key in _KEPT_SETTINGS}
    of_pip = facts.get("pip")
    if isinstance(of_pip, dict):
        kept["pip"] = {key: value for key, value in of_pip.items() if key in _KEPT_OF_PIP}
    settings: dict[str, Any] = _with_absolute_paths(kept, path.parent)
    return {key: value for key, value in settings.items() if value != {}}


def _with_absolute_paths(value: Any, folder: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_absolute_paths(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_absolute_paths(inner, folder, key) for inner in value]
    if isinstance(value, str) and key in _PLACES and "://" not in value:
        return str(folder / value)
    return value


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two files' settings as uv joins them: the first decides, lists are put behind each other."""
    joined = {**second, **first}
    for key in first.keys() & second.keys():
        if isinstance(first[key], list) and isinstance(second[key], list):
            joined[key] = [*first[key], *second[key]]
        elif isinstance(first[key], dict) and isinstance(second[key], dict):
            joined[key] = _merged(first[key], second[key])
    return joined
