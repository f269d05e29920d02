"""Audits are tested on libraries that `fatbin/making.py` writes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fatbin"))
