"""On which SMs vLLM offers what a check tries, as the catalogue of checks has it from vLLM's sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability

_CATALOGUE = Path(__file__).parents[1] / "checks" / "catalogue.toml"


def offered(checks: Sequence[str], device: Capability) -> bool | None:
    """Whether any of these checks must or may pass on a device, with any release that the catalogue has.

    Whether a release has the kernels, the audit sees. None where the catalogue does not know the device.
    """
    tables = [table for name in checks if (table := _catalogue().get(name)) is not None]
    if not tables or device.sm not in _judged_sms():
        return None
    return any(_may_pass(each, device) for table in tables for each in (table, *_of_releases(table)))


def _of_releases(table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return tuple(table.get("release", {}).values())


def _may_pass(table: Mapping[str, Any], device: Capability) -> bool:
    return "ok" not in table or device.sm in [*table["ok"], *table.get("open", ())]


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Any]:
    checks: dict[str, Any] = toml_file.load(_CATALOGUE)["check"]
    return checks


@lru_cache(maxsize=1)
def _judged_sms() -> frozenset[str]:
    """Every SM that some check names: of others the catalogue says nothing."""
    return frozenset(sm for table in _catalogue().values() for sm in table.get("ok", ()))
