"""Timing, FLOPs and memory of torch calls, the same way on a CPU and on a GPU."""

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

Call = Callable[[], object]

# What a user waits for; or the work of this process alone, on a machine that others use meanwhile
# (with one thread only: threads that wait for each other count as work).
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median of ``runs``, the quartiles and the best, which is what a
    machine that does nothing else would give.
    """

    median: float
    low: float
    high: float
    best: float
    runs: int

    @classmethod
    def of(cls, times_ms: list[float]) -> Timing:
        if len(times_ms) == 1:
            return cls(*times_ms * 4, 1)
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
        return cls(median, low, high, min(times_ms), len(times_ms))

    def times(self, factor: float) -> Timing:
        low, high, best = (x * factor for x in (self.low, self.high, self.best))
        return Timing(self.median * factor, low, high, best, self.runs)


def synchronise(device: torch.device) -> None:
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
    """Time all ``calls`` in turns, so that what else the machine does falls on each alike.

    A call is done after ``runs`` runs or ``seconds``, whichever comes first, and after three at the
    least (one, where a single run takes longer than ``seconds``). clock: of CLOCKS.
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
    return {name: Timing.of(times) for name, times in spent.items()}


def _done(times_ms: list[float], runs: int, seconds: float) -> bool:
    over = sum(times_ms) > seconds * 1e3
    return (
        len(times_ms) >= runs or (over and len(times_ms) >= 3) or sum(times_ms[:1]) > seconds * 1e3
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
    """Floating-point operations of one call, two for each multiply-add.

    Counted: matrix products, convolutions (transposed ones too) and attention, both halves of it;
    torch's own counter leaves out the CPU's fused attention and oneDNN's convolutions. Not counted,
    as usual: sums, norms, activations, softmax and moving data. A compiled kernel of another
    package or an int8 product is invisible to it: count the same network in float32.
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
    """The weights, and the most that torch holds at one time during a call, in MB of 10^6 bytes.

    On a GPU that is what its allocator counts. On a CPU it is the same sum over torch's
    allocations; the buffers that oneDNN takes for itself do not go through it.
    """
    held = sum({x.data_ptr(): x.numel() * x.element_size() for x in weights}.values())
    if device.type == "cuda":
        call()  # what is kept between calls is not part of one
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronise(device)
        return (held + torch.cuda.max_memory_allocated(device) - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return (held + peak) / 1e6


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    ours, expected = ours.double(), expected.double()
    return float((ours - expected).norm() / expected.norm().clamp(min=1e-30))


def compare_masks(logits: Tensor, expected: Tensor) -> dict[str, float]:
    """Two low-resolution predictions [B, M, s, s, s]: Dice of the masks, share of equal voxels and
    the largest difference of a logit.
    """
    ours, theirs = (x.float() > 0 for x in (logits, expected))
    overlap, total = float((ours & theirs).sum()), float(ours.sum() + theirs.sum())
    return {
        "dice": 2 * overlap / total if total else 1.0,
        "equal_voxels": float((ours == theirs).float().mean()),
        "max_logit_difference": float((logits.float() - expected.float()).abs().max()),
    }


def describe_machine(device: torch.device) -> dict[str, object]:
    """What a number depends on besides the code."""
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


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = {
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            }
    except OSError:
        names = set()
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()


def _gemm_gflops(device: torch.device, side: int = 1024) -> float:
    """float32 matrix product: what this machine gives, now, to anyone."""
    a = torch.rand(side, side, device=device)
    best = min(_time(lambda: F.linear(a, a), device) for _ in range(10))
    return 2 * side**3 / best / 1e6
