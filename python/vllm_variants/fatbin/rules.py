"""What slimming does to a library beside dropping images: rules that can be switched off one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm_variants.fatbin.codecs import LZ4, RAW, ZSTD, Codec, Encoding

_ENCODINGS = {Codec.NONE: (RAW,), Codec.LZ4: (RAW, LZ4), Codec.ZSTD: (RAW, ZSTD)}


@dataclass(frozen=True)
class Rules:
    """How libraries are slimmed.

    `keep_ptx`: one PTX a container stays, for later devices. `resources`: containers between other
    data that no device can run become stubs. `compress`: how the images that stay are stored, where
    that is smaller than what they are. `keep_symbols`: what no segment maps stays in the file.
    """

    keep_ptx: bool = False
    resources: bool = True
    compress: Codec = Codec.NONE
    keep_symbols: bool = True

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """In which images may be stored."""
        return _ENCODINGS[self.compress]

    def as_dict(self) -> dict[str, Any]:
        """For a worker's request and a report; `compress` is the codec's name."""
        return {
            "keep_ptx": self.keep_ptx,
            "resources": self.resources,
            "compress": str(self.compress),
            "keep_symbols": self.keep_symbols,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a slimmed file's bytes: codecs are named with their versions and levels."""
        return {**self.as_dict(), "compress": self.encodings[-1].identity}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """The rules that `as_dict` described."""
        return cls(facts["keep_ptx"], facts["resources"], Codec(facts["compress"]), facts["keep_symbols"])
