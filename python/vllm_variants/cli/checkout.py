"""The one rule for what works on a checkout: an installed package refuses it and says where it works."""

from __future__ import annotations

from pathlib import Path

from vllm_variants import data
from vllm_variants.errors import UsageError


def require(command: str) -> Path:
    """The root of the checkout that this code runs from, for `command`: `lock`, `doctor --nixpkgs`.

    Raises `UsageError` where vllm-variants was installed as a package.
    """
    root = data.checkout()
    if root is None:
        raise UsageError(
            f"`{command}` works on a checkout, and this vllm-variants was installed as a package",
            hint=f"clone the project and run ./vllm-variants {command} in it",
        )
    return root
