"""vLLM's custom all-reduce between cards, against NCCL and float64: eager, and in CUDA graphs.

csrc/custom_all_reduce.cuh: values travel 16 bytes at a time, so a tensor's bytes must be a multiple of that;
two cards, and few bytes on more, take one step (`cross_device_reduce_1stage`), the others two. In a graph the
operator reads the peers' tensors where they lie, once `register_graph_buffers` has exchanged their handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from . import references
from .checking import Run, Skipped, Wrong, check
from .dtypes import ROUNDING
from .ranks import Rank, cards, in_step

WORLDS = (2, 4, 6, 8)  # CustomAllreduce._SUPPORTED_WORLD_SIZES, as far as one host goes
TYPES = (torch.float16, torch.bfloat16, torch.float32)
PACK = 16  # bytes
# Bytes around the borders between the kernels (of 8 cards, of 4), and odd multiples of a pack.
SIZES = (PACK, 3 * PACK, 4096 + PACK, (256 << 10) - PACK, 256 << 10, (512 << 10) - PACK, 512 << 10)
SECONDS = 400.0  # that one world may take: vLLM tests peer access first, in processes that load it anew
OPERATORS = (
    "init_custom_ar", "meta_size", "register_buffer", "all_reduce", "get_graph_buffer_ipc_meta",
    "register_graph_buffers", "allocate_shared_buffer_and_handle", "open_mem_handle", "free_shared_buffer",
    "dispose",
)  # fmt: skip


@check("all_reduce.custom")
def custom(run: Run) -> None:
    """Every type, sizes up to the buffer's, refusals, and graphs, over 2 cards and more where there are."""
    missing = [name for name in OPERATORS if not _has(name)]
    if missing:
        raise Wrong(f"vLLM has no operator _C_custom_ar.{missing[0]}")
    count = 0 if run.dry else cards()
    if count < 2:
        raise Skipped(f"it needs two cards, and this process sees {count}")
    worlds = [world for world in WORLDS if world <= count]
    off = []
    for world in worlds:
        try:
            in_step(run, world, reduce, SECONDS)
        except Skipped as reason:  # more than two cards need NVLink between all of them
            off.append(str(reason))
    run.fact(worlds=worlds, **({"off": off} if off else {}))
    if len(off) == len(worlds):
        raise Skipped(off[0])


def _has(name: str) -> bool:
    """Whether vLLM's library has this operator of the custom all-reduce."""
    from vllm import _custom_ops  # noqa: F401  # loads the library

    return hasattr(torch.ops._C_custom_ar, name)


# ── in the process of each rank ──


def reduce(rank: Rank) -> None:
    """All cases of one world, on this rank's card."""
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce
    from vllm.distributed.parallel_state import get_world_group

    reducer = CustomAllreduce(get_world_group().cpu_group, rank.device)
    if reducer.disabled:
        peers = [other for other in range(rank.world) if other != rank.number]
        reach = all(torch.cuda.can_device_access_peer(rank.number, other) for other in peers)
        raise Skipped(
            "vLLM turns its custom all-reduce off between these cards"
            f" ({'they reach each other, but do not pass its test' if reach else 'no peer access'})"
        )
    cases = Cases(rank, reducer)
    rank.run.fact(max_size=reducer.max_size, **{f"nvlink_{rank.world}": bool(reducer.fully_connected)})
    cases.eager()
    cases.shapes()
    cases.refusals()
    cases.graphs()
    cases.images()
    rank.run.fact(**{f"bits_of_nccl_{rank.world}": f"{cases.same} of {cases.compared}"})
    torch.distributed.barrier()
    torch.cuda.synchronize()
    reducer.close()


@dataclass
class Cases:
    """The cases of one world; how many outputs were compared with NCCL's, and how many have its bits."""

    rank: Rank
    reducer: Any
    compared: int = 0
    same: int = 0

    def eager(self) -> None:
        """Every type and size, up to the last that `should_custom_ar` takes."""
        for dtype in TYPES:
            for size in (*SIZES, self.reducer.max_size - PACK):
                self._case(f"{size} B", self._shape(size, dtype), dtype)
            # The buffer's size itself is refused by `should_custom_ar`, and the operator takes it.
            whole = self._shape(self.reducer.max_size, dtype)
            self._case(f"{self.reducer.max_size} B, all of the buffer", whole, dtype, direct=True)

    def shapes(self) -> None:
        """Tensors whose memory is in one piece, though not from its beginning, or not in its order."""
        for dtype in TYPES:
            self._case("256×64, transposed", (256, 64), dtype, view="transposed")
            self._case("4096 from an odd address", (512, 8), dtype, view="odd")

    def refusals(self) -> None:
        """What vLLM must leave to NCCL, and what the operator itself must refuse."""
        device, limit = self.rank.device, self.reducer.max_size
        half = partial(torch.zeros, dtype=torch.float16, device=device)
        for what, x in {
            "7 values of 2 bytes": half(7),
            "a slice of rows": half(64, 64)[:, :32],
            "as many bytes as the buffer has": half(limit // 2),
            "more bytes than the buffer has": half(limit // 2 + PACK),
        }.items():
            if self.reducer.custom_all_reduce(x) is not None:
                raise Wrong(f"custom all-reduce takes {what}, which it cannot sum")
        for what, call in {
            "7 values of 2 bytes": partial(self.reducer.all_reduce, half(7)),
            "float64": partial(
                self.reducer.custom_all_reduce, torch.zeros(64, dtype=torch.float64, device=device)
            ),
        }.items():
            if not _refused(call):
                raise Wrong(f"custom all-reduce of {what} is not refused")

    def graphs(self) -> None:
        """Two graphs of all types and four sizes each, registered after their capture, with three replays."""
        for number in (1, 2):
            shapes = [(self._shape(size, dtype), dtype) for dtype in TYPES for size in SIZES[:7:2]]
            inputs = [torch.zeros(shape, dtype=dtype, device=self.rank.device) for shape, dtype in shapes]
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with self.reducer.capture(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = [self.reducer.custom_all_reduce(x) for x in inputs]
            for replay in (1, 2, 3):
                parts = [self.rank.parts(*shape, dtype=dtype) for shape, dtype in shapes]
                for x, of_ranks in zip(inputs, parts, strict=True):
                    x.copy_(of_ranks[self.rank.number])
                self._compare(
                    f"graph {number} of {len(inputs)} sums, replay {replay}",
                    graph.replay, parts, outputs=outputs,
                )  # fmt: skip

    def images(self) -> None:
        """One sum of every type more, to see which images serve it.

        Last: a capture outside `reducer.capture` leaves an address behind that nobody must register.
        """
        for dtype in TYPES:
            self._case("4096 B, its image", self._shape(4096, dtype), dtype, image=True)

    def _shape(self, size: int, dtype: torch.dtype) -> tuple[int, int]:
        """Rows of one pack: a single wrong pack is a wrong row."""
        return size // PACK, PACK // dtype.itemsize

    def _case(
        self,
        what: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        view: str = "",
        direct: bool = False,
        image: bool = False,
    ) -> None:
        """Sum tensors of this shape over all ranks, without a graph."""
        parts = self.rank.parts(*shape, dtype=dtype)
        if view == "transposed":
            parts = [part.t() for part in parts]
        x = _laid_out(parts[self.rank.number], self.rank.device, view)
        call = self.reducer.all_reduce if direct else self.reducer.custom_all_reduce
        self._compare(f"{dtype}, {what}", partial(_taken, call, x), [parts], image=image)

    def _compare(
        self,
        what: str,
        call: Any,
        parts: Sequence[Sequence[torch.Tensor]],
        *,
        outputs: Sequence[torch.Tensor] | None = None,
        image: bool = False,
    ) -> None:
        """Hold each sum against float64 and, where they differ by more than roundings, against NCCL's."""
        exact = [torch.stack([references.exact(part) for part in of_ranks]).sum(0) for of_ranks in parts]
        rounding = [ROUNDING[of_ranks[0].dtype] for of_ranks in parts]
        case = self.rank.run.case(
            f"{self.rank.world} cards, {what}", call, exact, rounding, outputs=outputs, image=image
        )
        returned = call()
        sums = returned if outputs is None else outputs
        for own, of_ranks, tolerance in zip(sums, parts, rounding, strict=True):
            theirs = of_ranks[self.rank.number].contiguous().to(self.rank.device, copy=True)
            torch.distributed.all_reduce(theirs)
            self.compared += 1
            self.same += int(torch.equal(own, theirs))
            distance = float((own.double() - theirs.double()).norm() / theirs.double().norm())
            if not distance <= 2 * tolerance:
                raise Wrong(f"{case['case']}: it differs from NCCL's sum by {distance:.2g}")


def _taken(call: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The sum, in a list; raises `Wrong` where vLLM leaves the tensor to NCCL."""
    out = call(x)
    if out is None:
        raise Wrong(f"custom all-reduce does not take {x.dtype} of {x.numel() * x.element_size()} bytes")
    return [out]


def _laid_out(part: torch.Tensor, device: torch.device, view: str) -> torch.Tensor:
    """The tensor on the card: as it is, its memory transposed, or beginning one value after an address."""
    if view == "transposed":
        return part.t().contiguous().to(device).t()
    if view == "odd":
        memory = torch.empty(part.numel() + 1, dtype=part.dtype, device=device)
        memory[1:].copy_(part.reshape(-1))
        return memory[1:].view(part.shape)
    return part.to(device)


def _refused(call: Any) -> bool:
    """Whether vLLM leaves the tensor to NCCL, or its operator says that it cannot."""
    try:
        return call() is None
    except RuntimeError as error:
        return "custom allreduce" in str(error)
