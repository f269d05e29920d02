"""Which cards a check of a test run has to itself: a lock a card, held by the process that uses it.

The locks are of the operating system (flock) and of files named after the cards' ids, so they hold between
all processes of a person, whatever each calls a card, and one that dies gives its cards back.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_variants.errors import MissingError, resource_error
from vllm_variants.machine import gpus
from vllm_variants.machine.gpus import Gpu
from vllm_variants.system import flock


@contextlib.contextmanager
def reserved(cards: Sequence[Gpu], count: int, first: int = 0) -> Iterator[tuple[Gpu, ...]]:
    """Hold `count` of the cards alone, and yield them: any that are free, beginning with number `first`.

    Waits where there are not enough. Who holds some and waits for more has taken them in the order of their
    ids, as all do, so nobody waits for somebody who waits for him. Raises `ResourceError` where a lock
    cannot be made.
    """
    begin = first % len(cards)
    turned = (*cards[begin:], *cards[:begin])
    with contextlib.ExitStack() as stack:
        if count == 1:
            card = next((card for card in turned if _taken(stack, card, wait=False)), None)
            if card is None:
                _taken(stack, turned[0], wait=True)
            yield (card or turned[0],)
            return
        own = turned[:count]
        for card in sorted(own, key=lambda card: card.uuid):
            _taken(stack, card, wait=True)
        yield own


def _taken(stack: contextlib.ExitStack, card: Gpu, *, wait: bool) -> bool:
    """Take the card's lock until `stack` ends, or say that somebody has it."""
    path = Path(tempfile.gettempdir(), f"vllm-variants-{os.getuid()}-{_file_name(card.uuid)}.lock")
    try:
        file = stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise resource_error(error) from error
    return flock.locked(file.fileno(), wait=wait)


def _file_name(uuid: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in uuid)


def lost(cards: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of the cards that the driver does not list now; a MIG instance is lost with its GPU or alone."""
    there = gpus.machine().gpus
    ids = {gpu.uuid for gpu in there} | {instance for gpu in there for instance in gpu.mig}
    return tuple(card for card in cards if card.uuid not in ids)


def names(cards: Sequence[Gpu]) -> str:
    """The cards for people: `GPU 1 (NVIDIA H100, GPU-1a2b)`."""
    return " and ".join(f"GPU {card.index} ({card.name}, {card.uuid})" for card in cards)


def require(cards: Sequence[Gpu], when: str) -> None:
    """Raise `MissingError` where one of the cards is there no more; `when` ends the sentence."""
    gone = lost(cards)
    if gone:
        raise MissingError(
            f"{names(gone)} was lost {when}: the driver no longer lists it",
            hint="the kernel's log says why (dmesg, lines with NVRM and Xid); nvidia-smi lists what is left",
        )
