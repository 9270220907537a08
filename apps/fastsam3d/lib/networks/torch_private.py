"""The functions of PyTorch that its documentation does not list, each with a fallback.

A release of PyTorch may rename or drop them. The app then still works, only slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product [N, M] int32 of the int8 matrices ``a`` [N, K] and ``b`` [K, M]."""
    multiply: Callable[..., Tensor] | None = getattr(torch, "_int_mm", None)
    if multiply is None:
        return (a.double() @ b.double()).to(torch.int32)  # exact: sums stay below 2^53
    return multiply(a, b)


def has_amx() -> bool:
    """Return whether this CPU has AMX tiles, which multiply bfloat16 matrices."""
    return _cpu_has("_is_amx_tile_supported")


def has_vnni() -> bool:
    """Return whether this CPU has 8-bit dot products (AVX512-VNNI) and PyTorch uses them."""
    return hasattr(torch, "_int_mm") and _cpu_has("_is_vnni_supported")


def _cpu_has(probe: str) -> bool:
    """Return the answer of a function of ``torch.cpu``; False if there is no such function."""
    return bool(getattr(torch.cpu, probe, lambda: False)())


def onednn_convolution() -> Callable[..., Tensor] | None:
    """Return oneDNN's convolution, or None if PyTorch was built without it.

    Arguments: input, weight, bias, padding, stride, dilation, groups.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    convolve: Any = getattr(torch, "mkldnn_convolution", None)
    return convolve
