"""How a result that is not native shows itself where the driver's compiler is forbidden.

`CUDA_DISABLE_PTX_JIT=1` forbids it; a kernel of which a library holds only PTX fails then.
"""

from __future__ import annotations

# cudaErrorJitCompilationDisabled, in CUDA's own words.
_COMPILER_FORBIDDEN = "ptx jit compilation was disabled"
NOT_NATIVE = (
    "it needs code that the result has only as PTX: the driver would compile it at first use, which --native"
    " forbids (CUDA_DISABLE_PTX_JIT=1)"
)


def needs_compiler(message: str) -> bool:
    """Whether an error's text says that the driver was not allowed to compile PTX."""
    return _COMPILER_FORBIDDEN in message.lower()
