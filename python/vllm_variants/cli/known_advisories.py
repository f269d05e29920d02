"""What commands say about a release's known advisories, and what `build --no-vulnerable` refuses."""

from __future__ import annotations

from pathlib import Path

from vllm_variants import data
from vllm_variants.errors import UnsupportedError
from vllm_variants.model import advisories as files
from vllm_variants.model.advisories import Advisories
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.variants import Release
from vllm_variants.system import folders


def of(release: str) -> Advisories:
    """What is known about a release, of the newest day: shipped with this version, or renewed here."""
    return files.of(release, renewed=None if data.checkout() else cache())


def note(release: Release) -> str | None:
    """A sentence about a release with known advisories, or one about which nobody has asked; None else."""
    known = of(release.name)
    if known.state == "none known":
        return None
    more = f"; vllm-variants advisories {release.name} lists them" if known.known else ""
    return f"advisories for vLLM {release.name}: {known.sentence}{more}"


def require_none(release: Release) -> None:
    """Raise `UnsupportedError` where advisories are known, or nobody has asked."""
    known = of(release.name)
    if known.state == "not asked":
        raise UnsupportedError(
            f"whether vLLM {release.name} has known advisories was not asked", hint=files.REFRESH
        )
    if known.known:
        names = ", ".join(advisory.id for advisory in known.known)
        raise UnsupportedError(
            f"{len(known.known)} advisories are known for vLLM {release.name} on {known.read}: {names}",
            hint="choose another release: vllm-variants list; or leave out --no-vulnerable",
        )


def cache() -> Path:
    """The folder of what an installed vllm-variants has asked for."""
    return folders.cache() / "advisories"


def finding(release: Release) -> Finding:
    """The doctor's line about them."""
    known = of(release.name)
    state = State.OK if known.state == "none known" else State.NOTE
    hint = {"known": f"vllm-variants advisories {release.name}", "not asked": files.REFRESH}.get(known.state)
    return Finding("advisories", state, f"vLLM {release.name}: {known.sentence}", hint)
