"""The functions of PyTorch that its documentation does not list, each with a fallback.

A release of PyTorch may rename or drop them. The app then still works, only slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product [N, M] int32 of the int8 matrices ``a`` [N, K] and ``b`` [K, M].

    It is exact if no entry of ``b`` is larger than :func:`int8_levels`.
    """
    multiply: Callable[..., Tensor] | None = getattr(torch, "_int_mm", None)
    if multiply is None:
        return (a.double() @ b.double()).to(torch.int32)  # exact: sums stay below 2^53
    return multiply(a, b)


def has_amx() -> bool:
    """Return whether this CPU has AMX tiles, which multiply bfloat16 matrices."""
    return _cpu_has("_is_amx_tile_supported")


def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16, with AMX or with AVX512."""
    return has_amx() or _cpu_has("_is_avx512_bf16_supported")


def int8_levels() -> int:
    """Return the largest magnitude in ``b`` with which `int8_matmul` is exact and fast; 0: none.

    8-bit dot products (VNNI) take all 127. With AVX2 alone, oneDNN multiplies unsigned by signed
    bytes and adds two products in 16 bits, which overflow above 64 (2 * 255 * 64 < 2^15).
    """
    if not hasattr(torch, "_int_mm"):
        return 0
    if _cpu_has("_is_vnni_supported"):
        return 127
    return 64 if _cpu_has("_is_avx2_supported") else 0


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
