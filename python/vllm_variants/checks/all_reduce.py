"""vLLM's custom all-reduce between two cards, eager, against the sum."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import torch

from .checking import Run, Skipped, Wrong, check

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


def _rank(rank: int, world: int, folder: str, seed: int, failures: Queue[str]) -> None:
    """What the process of one card does; says on `failures` what went wrong."""
    try:
        torch.cuda.set_device(rank)
        import torch.distributed as distributed
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
        )
        reducer = CustomAllreduce(distributed.group.WORLD, torch.device(f"cuda:{rank}"))
        if reducer.disabled:
            failures.put("vLLM disables custom all-reduce between these cards")
            return
        for dtype in (torch.float16, torch.float32):
            for count in (512, 65536):
                parts = [
                    torch.randn(count, generator=torch.Generator().manual_seed(seed + other)).to(dtype)
                    for other in range(world)
                ]
                out = reducer.custom_all_reduce(parts[rank].to(f"cuda:{rank}"))
                expected = torch.stack([part.double() for part in parts]).sum(0)
                error = (out.cpu().double() - expected).norm() / expected.norm()
                if not error <= 1e-3:
                    failures.put(f"rank {rank}: {dtype} of {count} values has an error of {error:.2g}")
        distributed.barrier()
        reducer.close()
    except Exception as error:
        failures.put(f"rank {rank}: {type(error).__name__}: {error}")


@check("all_reduce.custom")
def custom(run: Run) -> None:
    """Sums of 512 and 65,536 values over two cards, one process each."""
    world = 0 if run.dry else torch.cuda.device_count()
    if world < 2:
        raise Skipped(f"it needs two cards, and this process sees {world}")
    import torch.multiprocessing as multiprocessing

    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, 2, folder, run.seed, failures)) for rank in range(2)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(90)
    statuses = [process.exitcode for process in ranks]
    if any(status != 0 for status in statuses):
        raise Wrong(f"its processes ended with {statuses}; my own is {os.getpid()}")
    if not failures.empty():
        raise Wrong(failures.get())
