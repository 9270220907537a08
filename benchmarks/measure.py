"""Timing, FLOPs and memory of torch calls on a CPU or a GPU."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from lib.imaging.mask import dice

from .machine import cpu_name

Call = Callable[[], object]

# CLOCKS: "wall" is what a user waits for. "cpu" is the CPU time of this process, for a machine
# under other load; it needs one thread, because waiting threads would count as work.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """The times of one call in milliseconds.

    median, low, high: median and quartiles of ``runs`` runs. best: the shortest run, which other
    load on the machine disturbs least.
    """

    median: float
    low: float
    high: float
    best: float
    runs: int

    @classmethod
    def from_times(cls, times_ms: list[float]) -> Timing:
        """Summarise the times of all runs."""
        if len(times_ms) == 1:
            (only,) = times_ms
            return cls(only, only, only, only, 1)
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
        return cls(median, low, high, min(times_ms), len(times_ms))

    def times(self, factor: float) -> Timing:
        """Return all times multiplied by a factor."""
        low, high, best = (x * factor for x in (self.low, self.high, self.best))
        return Timing(self.median * factor, low, high, best, self.runs)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(
    calls: Mapping[str, Call],
    device: torch.device,
    runs: int = 30,
    seconds: float = 20.0,
    warm_up: int = 3,
    clock: str = "wall",
) -> dict[str, Timing]:
    """Time all ``calls`` in turns, so that other load on the machine affects each equally.

    A call runs ``runs`` times or for ``seconds``, whichever ends first, but at least three times
    (once if a single run takes longer than ``seconds``). clock: a key of CLOCKS.
    """
    # the first run is also the warm-up
    spent = {name: [_time(call, device, clock)] for name, call in calls.items()}
    for name, call in calls.items():
        for _ in range(warm_up - 1 if spent[name][0] < seconds * 1e3 / 10 else 0):
            call()
        if spent[name][0] < seconds * 1e3:
            spent[name].clear()
    while waiting := [name for name in calls if not _done(spent[name], runs, seconds)]:
        for name in waiting:
            spent[name].append(_time(calls[name], device, clock))
    return {name: Timing.from_times(times) for name, times in spent.items()}


def _done(times_ms: list[float], runs: int, seconds: float) -> bool:
    """Return whether a call needs no more runs."""
    is_over = sum(times_ms) > seconds * 1e3
    return (
        len(times_ms) >= runs
        or (is_over and len(times_ms) >= 3)
        or sum(times_ms[:1]) > seconds * 1e3
    )


def _time(call: Call, device: torch.device, clock: str = "wall") -> float:
    synchronise(device)
    start = CLOCKS[clock]()
    call()
    synchronise(device)
    return (CLOCKS[clock]() - start) * 1e3


def _sdpa_flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _conv_flops(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def count_flops(call: Call) -> int:
    """Count the floating-point operations of one call, two for each multiply-add.

    Counted are matrix products, convolutions (also transposed) and both products of attention; two
    entries extend torch's own counter by the CPU's fused attention and oneDNN's convolutions. Sums,
    norms, activations, softmax and data movement are not counted, as is usual. The counter does not
    see compiled kernels of other packages and int8 products: count the same network in float32.
    """
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops,
        aten.mkldnn_convolution: _conv_flops,
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


def peak_memory_mb(call: Call, weights: Iterable[Tensor], device: torch.device) -> float:
    """Return the weights plus torch's peak memory during a call, in MB of 10^6 bytes.

    On a GPU the allocator counts the peak. On a CPU it is summed over torch's allocations; oneDNN's
    own buffers are not among them.
    """
    weights_bytes = sum({x.data_ptr(): x.numel() * x.element_size() for x in weights}.values())
    if device.type == "cuda":
        call()  # fills the caches, which are not part of a call
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronise(device)
        return (weights_bytes + torch.cuda.max_memory_allocated(device) - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return (weights_bytes + peak) / 1e6


def relative_difference(result: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of the expected tensor."""
    result, expected = result.double(), expected.double()
    return float((result - expected).norm() / expected.norm().clamp(min=1e-30))


def compare_masks(logits: Tensor, expected: Tensor) -> dict[str, float]:
    """Compare two low-resolution predictions [B, M, s, s, s].

    Return the Dice of the masks, the share of equal voxels and the largest difference of a logit.
    """
    mask, expected_mask = ((x > 0).cpu().numpy() for x in (logits, expected))
    return {
        "dice": dice(mask, expected_mask),
        "equal_voxels": float((mask == expected_mask).mean()),
        "max_logit_difference": float((logits.float() - expected.float()).abs().max()),
    }


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return what the numbers depend on besides the code."""
    described: dict[str, object] = {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gemm_gflops": round(_gemm_gflops(device)),
    }
    if device.type == "cuda":
        described |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return described


def _gemm_gflops(device: torch.device, side: int = 1024) -> float:
    """Measure a float32 matrix product: the speed of this machine under its current load."""
    a = torch.rand(side, side, device=device)
    best = min(_time(lambda: F.linear(a, a), device) for _ in range(10))
    return 2 * side**3 / best / 1e6
