"""Table 4 at growing ROI sizes: sparse attention and fused kernels, each on and off.

The network is the student without a position bias, which fused kernels do not support. Sparse:
tokens whose indices are equal modulo an interval form a group; the interval grows with the grid, so
that a group has at most 64 tokens at every size. Flash: torch's fused attention, which on CUDA in
half precision is the flash kernel. Plain: softmax(q k^T) v.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import count_flops, peak_memory_mb, relative_difference, time_calls
from lib.networks import CONFIGS, FastSAM3D, FastSAM3DConfig, build_untrained
from lib.networks.attention import Backend, attention, sparse_attention
from lib.networks.image_encoder import Attention3D
from lib.networks.sparsity import lattice_groups

SIZES = [128, 160, 192, 256]
GROUP_SIDE = 4
"""GROUP_SIDE: tokens along each side of a group, so 4³ = 64 in a group."""

VARIANTS: dict[str, tuple[bool, Backend]] = {
    "dense, plain": (False, "reference"),
    "dense, flash": (False, "sdpa"),
    "sparse, plain": (True, "reference"),
    "sparse, flash": (True, "sdpa"),
}


def measure(
    device: torch.device, sizes: list[int], runs: int, seconds: float, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Return a row for each size and variant: the attention of one block, and the whole encoder."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        config = config_for(size)
        network = build_untrained(config, seed=0).to(device)
        if device.type == "cuda":
            network.image_encoder.bfloat16()
        attend = attention_calls(network, config, device)
        encode = {name: encode_call(network, config, name, device) for name in VARIANTS}
        variant_rows = {
            name: describe(name, size, attend, encode, network, device) for name in attend
        }
        for part, calls in (("attention", attend), ("encoder", encode)):
            for name, timing in time_calls(calls, device, runs, seconds, clock=clock).items():
                variant_rows[name][f"{part}_ms"] = timing.median
                variant_rows[name][f"{part}_quartiles_ms"] = [timing.low, timing.high]
        rows += variant_rows.values()
    return rows


def config_for(size: int) -> FastSAM3DConfig:
    """Return the student's configuration for an ROI of size³ voxels."""
    return with_size(CONFIGS["fastsam3d_sparse"], size)


def with_size(config: FastSAM3DConfig, size: int) -> FastSAM3DConfig:
    """Return a configuration for another ROI size, in whose groups at most 64 tokens attend."""
    grid = size // config.patch_size
    return replace(config, roi_size=size, interval=math.ceil(grid / GROUP_SIDE))


def describe(
    name: str, size: int, attend: dict, encode: dict, network: FastSAM3D, device: torch.device
) -> dict[str, Any]:
    """Return a row without times.

    equality: relative difference from plain attention with the same pattern.
    """
    sparse, _ = VARIANTS[name]
    reference = attend["sparse, plain" if sparse else "dense, plain"]
    return {
        "size": size,
        "tokens": (size // network.config.patch_size) ** 3,
        "variant": name,
        "sparse": sparse,
        "flash": VARIANTS[name][1] != "reference",
        "equality": relative_difference(attend[name](), reference()),
        "attention_gflops": count_flops(attend[name]) / 1e9,
        "attention_memory_mb": peak_memory_mb(attend[name], [], device),
        **encoder_facts(encode[name], network, device),
    }


def encoder_facts(encode: Any, network: FastSAM3D, device: torch.device) -> dict[str, float]:
    """Return FLOPs and memory of a call that encodes a ROI."""
    weights = network.image_encoder.parameters()
    return {
        "encoder_gflops": count_flops(encode) / 1e9,
        "encoder_memory_mb": peak_memory_mb(encode, weights, device),
    }


def attention_calls(
    network: FastSAM3D, config: FastSAM3DConfig, device: torch.device
) -> dict[str, Any]:
    """Return the attention of one block for each variant, from q, k, v to its output."""
    tokens, channels = config.grid_size**3, config.width // config.num_heads
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, config.num_heads, tokens, channels)
    number_type = network.image_encoder.pos_embed.dtype
    q, k, v = torch.randn(shape, generator=generator).to(device, number_type)
    groups = lattice_groups((config.grid_size,) * 3, config.interval)

    def call(sparse: bool, backend: Backend) -> Tensor:
        if sparse:
            return sparse_attention(q, k, v, groups, backend=backend)
        return attention(q, k, v, backend=backend)

    return {
        name: lambda sparse=sparse, backend=backend: call(sparse, backend)
        for name, (sparse, backend) in VARIANTS.items()
    }


def encode_call(
    network: FastSAM3D, config: FastSAM3DConfig, name: str, device: torch.device
) -> Any:
    """Return the whole encoder with the attention of a variant."""
    sparse, backend = VARIANTS[name]
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, *(config.roi_size,) * 3, generator=generator).to(device)

    def encode() -> Tensor:
        for module in network.image_encoder.modules():
            if isinstance(module, Attention3D):
                module.sparsity, module.backend = ("lattice" if sparse else "dense"), backend
        return network.encode(volume)

    return encode


def exponent(rows: list[dict[str, Any]], variant: str, value: str) -> float:
    """Return the exponent of a value's growth with the tokens; 1 is linear, 2 is quadratic.

    It is the least-squares slope of the logarithms.
    """
    points = [
        (math.log(row["tokens"]), math.log(row[value])) for row in rows if row["variant"] == variant
    ]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return rise / sum((x - mean_x) ** 2 for x, _ in points)
