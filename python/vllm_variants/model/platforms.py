"""The systems that variants are for, as Nix spells them."""

from __future__ import annotations

import platform

SYSTEMS = ("x86_64-linux", "aarch64-linux")


def host_system() -> str:
    """This machine's system as Nix spells it: `x86_64-linux`, `aarch64-linux`."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    return f"{machine}-{platform.system().lower()}"
