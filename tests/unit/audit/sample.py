"""A library of four containers, and what is expected of it."""

from __future__ import annotations

import toml
from making import capabilities, cubin, ptx, section

from vllm_variants.audit import contents as expected
from vllm_variants.audit.contents import Expectations

(HOPPER,) = capabilities("9.0")

(ADA,) = capabilities("8.9")

CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_90", 9000)],
    [cubin("sm_80", 90_000), ptx("compute_80", 5000)],
    [cubin("sm_90a", 80_000)],
    [cubin("sm_120a", 80_000)],
)

SAME_WHEEL = """\
[x86_64-linux."vllm/_C.abi3.so"]
containers = 4
sm89 = { same-major = 2 }
sm90 = { native = 2, jit = 1 }
sm120 = { native = 1, jit = 1 }
"""


def expectations(text: str) -> Expectations:
    read = expected.read(toml.loads(text), "0.0.0", "x86_64-linux")
    assert read
    return read
