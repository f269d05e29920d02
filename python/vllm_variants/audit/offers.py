"""On which SMs vLLM offers what a check tries, as the catalogue of checks has it from vLLM's sources."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability

_CATALOGUE = Path(__file__).parents[1] / "checks" / "catalogue.toml"


def offered(checks: Sequence[str], device: Capability) -> bool | None:
    """Whether any of these checks must or may pass on a device; None where the catalogue does not know it."""
    tables = [table for name in checks if (table := _catalogue().get(name)) is not None]
    if not tables or device.sm not in _judged_sms():
        return None
    return any("ok" not in table or device.sm in [*table["ok"], *table.get("open", ())] for table in tables)


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Any]:
    checks: dict[str, Any] = toml_file.load(_CATALOGUE)["check"]
    return checks


@lru_cache(maxsize=1)
def _judged_sms() -> frozenset[str]:
    """Every SM that some check names: of others the catalogue says nothing."""
    return frozenset(sm for table in _catalogue().values() for sm in table.get("ok", ()))
