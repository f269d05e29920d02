"""PTX written by hand, small and real, and a ptxas that misbehaves as the text tells it to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from making import Made

from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.queue import Job
from vllm_variants.model.capability import Target

_KERNEL = """
.visible .entry {name}(.param .u64 at, .param .f32 by)
{{
  .reg .b64 %rd<4>;
  .reg .f32 %f<4>;
  .reg .b32 %r<2>;
  ld.param.u64 %rd1, [at];
  ld.param.f32 %f1, [by];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.f32 %f2, [%rd3];
  fma.rn.f32 %f3, %f1, %f2, 0f3F800000;
  st.global.f32 [%rd3], %f3;
  ret;
}}
"""


def ptx_text(*kernels: str, target: str = "sm_80", version: str = "8.8", comment: str = "") -> bytes:
    """A PTX module with these kernels (default: `scale`), each of three instructions that do something."""
    head = f"// {comment}\n.version {version}\n.target {target}\n.address_size 64\n"
    return (head + "".join(_KERNEL.format(name=name) for name in kernels or ("scale",))).encode()


def ptx_image(text: bytes, *, options: str = "", word: str = "compute_80") -> Made:
    """A PTX image as nvcc stores it, raw: the text ends in a zero, the header holds the options."""
    return _WithOptions(word, text + b"\0", header_size=80, options=options)


class _WithOptions(Made):
    def __init__(self, word: str, payload: bytes, header_size: int, options: str) -> None:
        stored = 0x48 + len(options) + 1
        super().__init__(word, payload, max(header_size, -(-stored // 8) * 8))
        object.__setattr__(self, "_options", options)

    @property
    def data(self) -> bytes:
        made = bytearray(super().data)
        options: str = self._options  # type: ignore[attr-defined]
        made[0x44:0x48] = len(options).to_bytes(4, "little")
        made[0x48 : self.header_size] = options.encode().ljust(self.header_size - 0x48, b"\0")
        return bytes(made)


def job(text: bytes, *, target: str = "9.0", name: str = "a.so at 0x40", options: Sequence[str] = ()) -> Job:
    return Job(name, len(text), Target.parse(target), tuple(options), lambda: text)


def misbehaving(compiler: Compiler, folder: Path, behaviour: str) -> Compiler:
    """A ptxas that runs the shell lines `behaviour` first: `$text` is its PTX, `$real` the real one."""
    script = folder / "ptxas"
    script.write_text(
        "#!/bin/sh\n"
        f"real='{compiler.ptxas}'\n"
        'for word; do case "$word" in *.ptx) text=$word ;; esac; done\n'
        f"{textwrap.dedent(behaviour)}\n"
        'exec "$real" "$@"\n'
    )
    script.chmod(0o755)
    return replace(compiler, ptxas=script)
