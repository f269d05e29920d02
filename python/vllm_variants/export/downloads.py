"""Published wheels fetched again, each held to its hash: pip downloads them, from where uv found them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import ResourceError
from vllm_variants.export.published import PublishedWheel
from vllm_variants.system import process

_KEPT_VARIABLES = re.compile(
    r"PIP_(CERT|CLIENT_CERT|PROXY|TRUSTED_HOST|TIMEOUT|DEFAULT_TIMEOUT|RETRIES|KEYRING_PROVIDER|CONFIG_FILE)"
)
"""Of pip's variables those that say how addresses are reached."""


def fetch(wheels: Sequence[tuple[str, PublishedWheel]], python: str, folder: Path, aside: Path) -> None:
    """Put published wheels, each with its project's name, into `folder`; `aside` is a folder to work in.

    `python` is the version that they are for, `3.12`, whatever this one is. Raises `ResourceError` where they
    cannot be had or one is not what its hash says.
    """
    if not wheels:
        return
    requirements = aside / "published.txt"
    lines = [f"{name} @ {_url(wheel)} --hash=sha256:{wheel.sha256}\n" for name, wheel in wheels]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--quiet", "--progress-bar", "off", "--no-cache-dir", "--no-deps", "--require-hashes"]
    command += [*_target([wheel for _, wheel in wheels], python), "--dest", str(folder)]
    completed = process.capture([*command, "--requirement", requirements], env=_environment())
    missing = [wheel.file for _, wheel in wheels if not (folder / wheel.file).is_file()]
    if completed.status or missing:
        said = [line.strip() for line in completed.output.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR:")]
        raise ResourceError(
            "the published wheels could not be downloaded: "
            f"{(errors or said or [f'pip left no {missing[0]}'])[0]}",
            hint="check the network, then export again; without --all they are named by their hashes only",
        )


def _target(wheels: Sequence[PublishedWheel], python: str) -> list[str]:
    """What makes pip take these wheels, which need not be for its own Python and platform."""
    tags = {tag for wheel in wheels for tag in wheel.tags}
    arguments = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    arguments += [word for abi in sorted({tag.abi for tag in tags}) for word in ("--abi", abi)]
    platforms = sorted({tag.platform for tag in tags} - {"any"})
    return [*arguments, *(word for platform in platforms for word in ("--platform", platform))]


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PIP_") or _KEPT_VARIABLES.fullmatch(name)
    }


def _url(wheel: PublishedWheel) -> str:
    return wheel.address if "://" in wheel.address else Path(wheel.address).absolute().as_uri()
