"""The number type that a network computes in, chosen for the machine and checked on the network.

float32 is what all results are held to. A lower type is used where the hardware has instructions
for it, the network is large enough to gain by them, and its masks keep: Dice above 0.99 against
float32 over a series of clicks on a synthetic ROI, checked once when a network is loaded.

* CUDA: bfloat16, from Ampere on;
* CPU: bfloat16 with AMX; else, with AVX512-VNNI, 8-bit integers in the linear layers of the
  encoder's blocks, with a scale for each token and each output.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lib.networks import FastSAM3D, mask_threshold
from lib.networks.torch_private import has_amx, has_vnni, int8_matmul

logger = logging.getLogger(__name__)

NumberType = Literal["float32", "bfloat16", "int8"]

DICE = 0.99
"""A lower type is used where all its masks reach this against float32."""

INT8_WIDTH = 512
"""Narrower encoders stay in float32 on a CPU: 8-bit layers take half the time at width 768 and no
less at 192, where converting the inputs costs what the product saves.
"""


@dataclass(frozen=True)
class Precision:
    """What was chosen, and why. dice: of the lower type that was tried, if one was."""

    number_type: NumberType
    reason: str
    dice: float | None = None


FLOAT32 = Precision("float32", "nothing else was tried")


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale for each output, and 8-bit inputs, one scale for
    each token.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer(
            "weight", (weight / scale[:, None]).round().to(torch.int8).T.contiguous()
        )
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        scale = tokens.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
        product = int8_matmul((tokens / scale).round_().to(torch.int8), self.weight)
        out = torch.addcmul(self.bias, product.float().mul_(scale), self.scale)
        return out.unflatten(0, x.shape[:-1])


def candidate(device: torch.device) -> NumberType:
    """The lower type that the hardware has instructions for; float32 where there is none."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type == "cpu" and has_amx():
        return "bfloat16"
    if device.type == "cpu" and has_vnni():
        return "int8"
    return "float32"


def lowered(network: FastSAM3D, number_type: NumberType) -> FastSAM3D:
    """A copy of the network that computes in ``number_type``; it cannot be trained.

    Prompts and positions stay in float32: they are little work, and bfloat16 would move a click.
    """
    if number_type == "float32":
        return network
    network = copy.deepcopy(network).requires_grad_(False)
    if number_type == "bfloat16":
        network.image_encoder.bfloat16()
        network.mask_decoder.bfloat16()
        return network
    for parent in list(network.image_encoder.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return network


def choose(network: FastSAM3D, device: torch.device) -> tuple[FastSAM3D, Precision]:
    """The network as it is to be served on ``device``, and what was decided.

    The same machine decides the same each time: no clock has a say in it. Takes as long as two
    encodings and six clicks. A network without a decoder has no masks to check, and stays in
    float32.
    """
    number_type = candidate(device)
    network = network.to(device)
    if number_type == "float32":
        return network, _log(Precision("float32", f"no faster type on this {device.type}"))
    if number_type == "int8" and network.config.width < INT8_WIDTH:
        return network, _log(Precision("float32", "the network is too small to gain by int8"))
    if not network.has_decoder:
        return network, _log(Precision("float32", "without a decoder no mask can be checked"))
    low = lowered(network, number_type)
    dice = lowest_dice(low, network, device)
    if dice < DICE:
        reason = f"{number_type} changes the masks: Dice {dice:.4f} is below {DICE}"
        return network, _log(Precision("float32", reason, dice))
    reason = f"masks as in float32: Dice {dice:.4f} at the least"
    return low, _log(Precision(number_type, reason, dice))


def _log(precision: Precision) -> Precision:
    logger.info("Computing in %s: %s", precision.number_type, precision.reason)
    return precision


@torch.inference_mode()
def lowest_dice(ours: FastSAM3D, expected: FastSAM3D, device: torch.device) -> float:
    """The worst Dice of our masks over three clicks on a synthetic ROI, each after the mask of the
    one before; 1 where both masks are empty.
    """
    volume, points, labels = (x.to(device) for x in synthetic_clicks(expected.config.roi_size))
    size = expected.config.low_res_size
    masks = [torch.zeros(1, 1, size, size, size, device=device) for _ in range(2)]
    embeddings = [network.prepare(network.encode(volume)) for network in (ours, expected)]
    worst = 1.0
    for click in range(points.shape[1]):
        for n, network in enumerate((ours, expected)):
            shown = slice(click, click + 1)
            masks[n] = network.decode(embeddings[n], points[:, shown], labels[:, shown], masks[n])[
                0
            ].float()
        a, b = (mask > mask_threshold(mask, expected.policy.mask_threshold) for mask in masks)
        total = float(a.sum() + b.sum())
        worst = min(worst, 2 * float((a & b).sum()) / total if total else 1.0)
    return worst


def synthetic_clicks(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A z-scored ROI [1, 1, S, S, S] with bright and dark balls in noise, and clicks: [1, 3, 3],
    [1, 3]."""
    generator = torch.Generator().manual_seed(0)
    volume = 0.3 * torch.randn(size, size, size, generator=generator)
    line = torch.arange(size) / size
    centres = ((0.5, 0.55, 0.45), (0.25, 0.3, 0.7), (0.75, 0.25, 0.3))
    for (i, j, k), radius, value in zip(centres, (0.22, 0.12, 0.15), (1.5, 2.5, -1), strict=True):
        squares = (line - i)[:, None, None] ** 2 + (line - j)[:, None] ** 2 + (line - k) ** 2
        volume[squares < radius**2] += value
    volume = (volume - volume.mean()) / volume.std()
    points = (torch.tensor(centres) * size).floor()[None]
    return volume[None, None], points, torch.tensor([[1, 1, 0]])
