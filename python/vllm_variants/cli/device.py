"""A device as a person names it: sm89, 8.9, or a GPU's name from the matrix."""

from __future__ import annotations

from vllm_variants.model.capability import Capability


def device(text: str) -> Capability:
    """The compute capability that `text` means; raise `UsageError` when nobody knows it."""
    try:
        return Capability.parse(text)
    except ValueError:
        from vllm_variants.model import matrix

        return matrix.load().parse(text).variant.capability
