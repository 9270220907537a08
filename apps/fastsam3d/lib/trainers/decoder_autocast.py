"""bfloat16 in the training of a mask decoder, where the hardware multiplies it faster."""

from __future__ import annotations

import torch

from lib.networks.torch_private import multiplies_bfloat16


def decoder_autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on CPUs and GPUs that multiply it, else no change.

    The weights stay in float32. With AMX an update of a mask decoder with its refiner takes half as
    long. With AVX512 alone a step of ``training/cells.py`` takes 0.6 times as long.
    """
    enabled = _has_bf16(device) or (device.type == "cpu" and multiplies_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def encoder_autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on GPUs that have it, else no change.

    A whole encoder gains nothing on a CPU: the convolution of its patches is slower in bfloat16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=_has_bf16(device))


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
