"""`vllm-variants detect`: this machine's GPUs and the variants they need."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants.cli.options import Json, ReleaseName
from vllm_variants.cli.output import out, print_json, say, size, table
from vllm_variants.machine import detection, gpus
from vllm_variants.machine.detection import Detection, GpuDetection
from vllm_variants.model import matrix


def detect(
    as_json: Json = False,
    release: ReleaseName = None,
    explain: Annotated[
        bool, typer.Option("--explain", "-e", help="Give the reason for every variant.")
    ] = False,
) -> None:
    """Ask the driver for this machine's GPUs and say which variants they need, and why."""

    rows = matrix.load()
    detected = detection.detect(gpus.machine(), rows, rows.release(release))
    if as_json:
        print_json(detected.as_dict())
        detected.require()
        return

    host = detected.machine
    say(f"{host.system}, NVIDIA driver {host.driver or 'absent'}, release {detected.release.name}")

    for gpu in detected.gpus:
        _show(gpu, detected, explain)
    if reservation := detected.reservation():
        say(f"note: {reservation}")
    _advise(detected)
    detected.require()


def _show(gpu: GpuDetection, detected: Detection, explain: bool) -> None:
    card = gpu.gpu
    memory = size(card.memory) if card.memory else "memory shared with the host"
    chosen = gpu.chosen
    answer = f"{chosen.variant.name(detected.release)}: {chosen.reason}" if chosen else detected.why_none(gpu)
    out.print(f"GPU {card.index}  {card.name}  {card.capability}  {memory}")
    out.print(f"  → {answer}")
    for fit in gpu.releases:
        name = f"release {fit.release.name}"
        text = f"{fit.variant.name(fit.release)}: {fit.reason}" if fit.variant else f"no: {fit.reason}"
        out.print(f"  {name}  {text}")
    if explain or not chosen:
        reasons = table("variant", "", "reason")
        for verdict in gpu.candidates:
            reasons.add_row(verdict.variant.short, "yes" if verdict.accepted else "no", verdict.reason)
        out.print(reasons)


def _advise(detected: Detection) -> None:
    shorts = [variant.short for variant in detected.variants]
    if len(shorts) > 1:
        say(f"mixed GPUs, each needs its own: `vllm-variants build auto` builds {' and '.join(shorts)}")
    elif shorts:
        say(f"build it: vllm-variants build {shorts[0]}")
