"""bfloat16 in a training, where the hardware multiplies it faster."""

from __future__ import annotations

import torch

from lib.networks.torch_private import has_amx


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on CPUs with AMX and on GPUs that have it, else no change.

    The weights stay in float32. It pays where convolutions take most of the time, as in a mask
    decoder with its refiner: with AMX a step takes half as long.
    """
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        enabled = device.type == "cpu" and has_amx()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
