"""The makers of libraries stand with the tests of fat binaries; the benches beside the checkout's code."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "fatbin"))
