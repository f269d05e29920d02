"""Published wheels fetched again, each held to its hash: pip downloads them, from where uv found them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import Error, ResourceError
from vllm_variants.export.published import PublishedWheel
from vllm_variants.system import process


def fetch(wheels: Sequence[tuple[str, PublishedWheel]], folder: Path, aside: Path) -> None:
    """Put published wheels, each with its project's name, into `folder`; `aside` is a folder to work in.

    Raises `ResourceError` where they cannot be had or one is not what its hash says.
    """
    if not wheels:
        return
    requirements = aside / "published.txt"
    lines = [f"{name} @ {_url(wheel)} --hash=sha256:{wheel.sha256}\n" for name, wheel in wheels]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--quiet", "--no-deps", "--require-hashes", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--dest", str(folder), "--requirement", str(requirements)]
    completed = process.capture(command)
    missing = [wheel.file for _, wheel in wheels if not (folder / wheel.file).is_file()]
    if completed.status or missing:
        lines = [line.strip() for line in completed.output.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
        reason = (errors or lines or [f"{', '.join(missing)} is not there"])[0]
        raise _not_downloaded(reason)


def _not_downloaded(reason: str) -> Error:
    return ResourceError(
        f"the published wheels could not be downloaded: {reason}",
        hint="check the network, then export again; without --all they are named by their hashes only",
    )


def _url(wheel: PublishedWheel) -> str:
    return wheel.address if "://" in wheel.address else Path(wheel.address).absolute().as_uri()
