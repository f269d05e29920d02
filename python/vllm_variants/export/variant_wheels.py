"""Variant wheels: several SMs of one package side by side, of which an installer picks by the GPU.

PEP 825 (draft, metadata 0.1.1 as uv 0.13 reads it): a label in the file name, `variant.json` in dist-info,
and for each version a file `NAME-VERSION-variants.json` beside the wheels. The properties are those of
NVIDIA's provider, https://github.com/wheelnext/nvidia-variant-provider, which uv has built in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_variants.model.results import Manifest

FILE = "variant.json"
"""The file in a variant wheel's dist-info."""
_SCHEMA = "https://variants-schema.wheelnext.dev/v0.0.3.json"
_PROVIDER = {
    "requires": ["nvidia-variant-provider>=0.0.1,<1"],
    "plugin-api": "nvidia_variant_provider.plugin:NvidiaVariantPlugin",
    "enable-if": "platform_system == 'Linux'",
}


def label(manifest: Manifest) -> str:
    """The variant label: `sm90`. What else differs (platform, Python) is in the wheel's tags."""
    return manifest.capability.sm


def document(manifests: Iterable[Manifest]) -> dict[str, Any]:
    """What variant.json says of a wheel of one result, and variants.json of those of several."""
    return {
        "$schema": _SCHEMA,
        "default-priorities": {
            "namespace": ["nvidia"],
            "feature": {"nvidia": ["sm_arch", "cuda_version_lower_bound"]},
        },
        "providers": {"nvidia": _PROVIDER},
        "variants": {label(manifest): _properties(manifest) for manifest in sorted(manifests, key=label)},
    }


def index_file(stem: str) -> str:
    """The name of the file that lists the variants of a version; `stem` is `torch-2.9.1`."""
    return f"{stem}-variants.json"


def _properties(manifest: Manifest) -> dict[str, dict[str, list[str]]]:
    """What a machine needs: a device that runs the SM's machine code, a driver for the release's CUDA.

    `90_real` holds for the devices that run code compiled for 9.0: the same major, from its minor on.
    """
    capability = manifest.capability
    return {
        "nvidia": {
            "sm_arch": [f"{capability.major}{capability.minor}_real"],
            "cuda_version_lower_bound": [str(manifest.facts["stack"]["cuda"])],
        }
    }
