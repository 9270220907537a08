"""bfloat16 in the training of a mask decoder, where the hardware multiplies it faster."""

from __future__ import annotations

import torch

from lib.networks.torch_private import has_amx


def decoder_autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on CPUs with AMX and on GPUs that have it, else no change.

    The weights stay in float32. With AMX an update of a mask decoder with its refiner takes half as
    long. An encoder gains nothing on a CPU: the convolution of its patches is slower in bfloat16.
    """
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        enabled = device.type == "cpu" and has_amx()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
