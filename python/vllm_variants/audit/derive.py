"""Derive a release's expectations from its published wheels.

vllm-variants audit --derive vllm-0.13.0-*.whl > expectations/0.13.0.toml
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vllm_variants.audit.find import sources
from vllm_variants.errors import UsageError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container, containers
from vllm_variants.fatbin.rewrite import device_sections
from vllm_variants.model.capability import Capability, Fit, choose

_HEAD = """\
# What the published wheels of vLLM {release} hold for each SM. Made by
#
#   vllm-variants audit --derive {wheels} > expectations/{release}.toml
#
# Per system and library: its containers; per SM how many of them run there, by how the best image fits:
# native (machine code of that SM), same-major, family, or jit (PTX, which the driver compiles). The rest
# has nothing for that SM.
"""


def derive(wheels: Sequence[Path], devices: Iterable[Capability]) -> str:
    """The text of an expectations file, from a release's wheels (one a system), for these devices.

    Raises `UsageError` unless all are vLLM wheels of one release, `InputError` for a broken one.
    """
    devices = sorted(set(devices))
    releases = {wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("vllm-")}
    if len(releases) != 1:
        raise UsageError("expectations are derived from the vLLM wheels of one release")
    tables: dict[tuple[str, str], list[Container]] = {}
    for wheel in wheels:
        for name, source in sources(wheel):
            if name.startswith("vllm/") and elfs.is_elf64(source):
                elf = elfs.parse(source)
                system = f"{elf.architecture}-linux"
                held = [c for s in device_sections(elf) for c in containers(source, s.offset, s.end)]
                if held:
                    tables[system, name] = held
    head = _HEAD.format(release=releases.pop(), wheels=" ".join(wheel.name for wheel in wheels))
    return head + "".join(_table(*key, held, devices) for key, held in sorted(tables.items()))


def _table(system: str, name: str, held: Sequence[Container], devices: Sequence[Capability]) -> str:
    lines = ["", f'[{system}."{name}"]', f"containers = {len(held)}"]
    for device in devices:
        fits = Counter(_fit(container, device) for container in held)
        counts = ", ".join(f"{fit.value} = {fits[fit]}" for fit in Fit if fit and fits[fit])
        lines.append(f"{device.sm} = {{ {counts} }}" if counts else f"{device.sm} = {{}}")
    return "\n".join(lines) + "\n"


def _fit(container: Container, device: Capability) -> Fit:
    best = choose([(kind, image.target) for image in container.images if (kind := image.kind)], device)
    return best.fit if best else Fit.NONE
