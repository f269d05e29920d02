"""What an image says of itself: how it is started, what the NVIDIA runtime must give it, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_variants.export.layout import LICENCES
from vllm_variants.export.portable import Portable
from vllm_variants.model.results import Manifest

HOME = "/srv/vllm"
USER = 1000
PREFIX = "opt/vllm/"
"""Where the tree lies in the image, relative to its root."""
MOMENT = "1980-01-01T00:00:00Z"
_PREFIX = "dev.vllm-variants."
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def labels_of(portable: Portable) -> dict[str, str]:
    """What an image is, for an index and for its labels: SM, release, driver floor, lock, licence."""
    manifest = portable.result.manifest
    stack: Mapping[str, Any] = manifest.facts["stack"]
    return {
        "org.opencontainers.image.title": manifest.variant,
        "org.opencontainers.image.version": manifest.release,
        LICENCES: portable.licence,
        f"{_PREFIX}sm": str(manifest.facts["sm"]),
        f"{_PREFIX}capability": str(manifest.capability),
        f"{_PREFIX}cuda": str(stack["cuda"]),
        f"{_PREFIX}driver": str(stack["driver"]),
        f"{_PREFIX}lock": str(manifest.facts["lock"]),
    }


def tag(portable: Portable) -> str:
    """The name of an image among others: `0.13.0-sm90`."""
    return f"{portable.result.manifest.release}-{portable.result.manifest.short}"


def platform(portable: Portable) -> dict[str, str]:
    """The platform of an image."""
    return platform_of(portable.result.manifest)


def platform_of(manifest: Manifest) -> dict[str, str]:
    """The platform of a result, in Go's words, as the image specification wants it."""
    machine = manifest.system.partition("-")[0]
    return {"os": "linux", "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[machine]}


def config(
    portable: Portable,
    base: Mapping[str, Any],
    labels: Mapping[str, str],
    diff_ids: list[str],
    history: list[str],
) -> dict[str, Any]:
    """An image's configuration, on top of that of its `base`; `history` names the layers that were added."""
    of_base: Mapping[str, Any] = base.get("config") or {}
    return {
        **platform(portable),
        "created": MOMENT,
        "config": {
            "User": f"{USER}:0",
            "Env": _environment(portable, of_base.get("Env") or []),
            "Entrypoint": ["vllm", "serve"],
            "WorkingDir": HOME,
            "ExposedPorts": {"8000/tcp": {}},
            "Labels": {**(of_base.get("Labels") or {}), **labels},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [
            *(base.get("history") or []),
            *({"created": MOMENT, "created_by": "vllm-variants export", "comment": name} for name in history),
        ],
    }


def _environment(portable: Portable, base: list[str]) -> list[str]:
    """The variables: those of the base, and what vLLM and NVIDIA's container runtime read.

    LOGNAME: torch asks for the user's name, which a user that only a cluster knows has not.
    """
    variables = dict(text.partition("=")[::2] for text in base)
    path = variables.get("PATH", _PATH)
    driver = portable.result.manifest.facts["stack"]["driver"]
    variables |= {
        "PATH": f"/{PREFIX}bin:{path}",
        "HOME": HOME,
        "LOGNAME": "vllm",
        "LANG": "C.UTF-8",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": f"driver>={driver}",
    }
    return [f"{name}={value}" for name, value in sorted(variables.items())]
