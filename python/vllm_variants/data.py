"""Where the project's data files are: beside the code in a checkout, inside the package when installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def root() -> Path:
    """The folder that holds `variants.toml` and `locks/`."""
    packaged = _PACKAGE / "data"
    return packaged if (packaged / "variants.toml").is_file() else _CHECKOUT


def checkout() -> Path | None:
    """The checkout this code runs from, or None when it was installed as a package."""
    return _CHECKOUT if root() == _CHECKOUT and (_CHECKOUT / "pyproject.toml").is_file() else None
