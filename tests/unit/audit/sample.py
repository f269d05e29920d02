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

SAME_WHEEL = (
    '[x86_64-linux."vllm/_C.abi3.so"]\ncontainers = 4\nsm89 = [2, 0]\nsm90 = [2, 1]\nsm120 = [1, 1]\n'
)


def expectations(text: str) -> Expectations:
    read = expected.read(toml.loads(text), "0.0.0", "x86_64-linux")
    assert read
    return read
