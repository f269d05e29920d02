"""What streams with a size and a position have in common: only how they read differs."""

from __future__ import annotations

import io
import os


class Positioned(io.RawIOBase):
    """A readable stream of `size` bytes that stands at `_position`; `readinto` is the subclass's."""

    size: int

    def __init__(self) -> None:
        super().__init__()
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read from."""
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, as files do; before the first byte is at it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + position)
        return self._position
