"""Before and beside an operator's call: poisoned outputs, and its time by CUDA events."""

import statistics

import torch


def poison(tensor):
    """Fill with bytes that no operator would leave by accident: NaN in every floating type."""
    tensor.view(torch.uint8).fill_(0xFF) if tensor.is_contiguous() else tensor.fill_(
        _poison_value(tensor.dtype)
    )


def _poison_value(dtype):
    return float("nan") if dtype.is_floating_point else -1


def poison_free_memory():
    """Leave NaN in the allocator's free blocks, where an operator's own outputs will come from."""
    for count in (1 << 10, 1 << 18, 1 << 22):
        block = torch.empty(count, dtype=torch.float32, device="cuda")
        block.fill_(float("nan"))
        del block


def median_ms(call, repeats=11):
    """The median time of a call in milliseconds, by CUDA events, each call by itself."""
    times = []
    call()
    torch.cuda.synchronize()
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 4)
