"""The number type that a network computes in: chosen for the machine, checked on the network.

float32 is the reference. A lower type is used if the hardware has instructions for it, the network
is large enough to gain from them, and the masks stay the same: Dice of at least 0.99 against
float32 over a series of clicks on a synthetic ROI, checked once when a network is loaded.

* CUDA: bfloat16, from Ampere on.
* CPU with AMX: bfloat16.
* Other CPUs, wide networks: 8-bit integers in the linear layers of the encoder's blocks, with one
  scale for each token and one for each output; it needs AVX2. Without 8-bit dot products (VNNI) the
  weights have 7 bits.
* Other CPUs, narrow networks: bfloat16 with AVX512-BF16.

A network with a mask refiner, whose likeness of cells needs float32, has bfloat16 only in its
encoder and in the convolutions of the refiner, of the cell keys and of the image detail.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib.imaging.mask import dice
from lib.networks import FastSAM3D, mask_threshold
from lib.networks.torch_private import (
    has_amx,
    int8_levels,
    int8_matmul,
    multiplies_bfloat16,
)

logger = logging.getLogger(__name__)

NumberType = Literal["float32", "bfloat16", "int8"]

DICE = 0.99
"""DICE: a lower type is used if all its masks reach this Dice against float32."""

INT8_WIDTH = 512
"""INT8_WIDTH: narrower encoders have no 8-bit layers.

8-bit layers take half the time at width 768 and no less at 192, where converting the inputs costs
as much as the product saves.
"""


@dataclass(frozen=True)
class Precision:
    """The chosen number type and why. dice: the Dice of the lower type, if one was checked."""

    number_type: NumberType
    reason: str
    dice: float | None = None


FLOAT32 = Precision("float32", "no other type was checked")


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, scaled per output, and 8-bit inputs, scaled per token."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / (int8_levels() or 127)
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


class Bfloat16Convolution(nn.Module):
    """A convolution in bfloat16 between maps in float32."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = convolution.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.bfloat16()).float()


def candidate(device: torch.device, width: int) -> NumberType:
    """Return the lower type that makes an encoder of this width faster; float32 if none does."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu":
        return "float32"
    if width >= INT8_WIDTH and int8_levels() and not has_amx():
        return "int8"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def lowered(network: FastSAM3D, number_type: NumberType) -> FastSAM3D:
    """Return a copy of the network that computes in `number_type` and cannot be trained.

    The network itself is returned for float32. Prompts and positions stay in float32: they are
    little work, and bfloat16 would move a click.
    """
    if number_type == "float32":
        return network
    network = copy.deepcopy(network).requires_grad_(False)
    if number_type == "bfloat16":
        network.image_encoder.bfloat16()
        if not network.config.detail_channels:
            network.mask_decoder.bfloat16()
            return network
        refiner = network.mask_decoder.refiner
        for part in (network.detail_stem.mix, refiner.cell_keys, refiner.coarser, refiner.mix):
            if part is not None:
                _replace(part, nn.Conv3d, Bfloat16Convolution)
        return network
    _replace(network.image_encoder.blocks, nn.Linear, Int8Linear)
    return network


def _replace(part: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replace all modules of one type below a module."""
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, old):
                setattr(parent, name, new(child))


def choose(
    networks: Sequence[FastSAM3D], device: torch.device
) -> tuple[list[FastSAM3D], Precision]:
    """Return the networks to serve on a device, and the number type that was chosen for all.

    networks: of one width; the decoders of an adapted network share an encoder, so they need the
    same type.

    The choice uses no timing, so a machine always makes the same one. It takes as long as two
    encodings and six clicks of each network. A network without a decoder stays in float32, because
    it has no masks to check.
    """
    networks = [network.to(device) for network in networks]
    width = networks[0].config.width
    number_type = candidate(device, width)
    if number_type == "float32":
        reason = f"this {device.type} has no faster type for a width of {width}"
        return networks, _log(Precision("float32", reason))
    if not all(network.has_decoder for network in networks):
        reason = "the network has no decoder to check masks with"
        return networks, _log(Precision("float32", reason))
    low = [lowered(network, number_type) for network in networks]
    lowest = min(lowest_dice(*pair, device) for pair in zip(low, networks, strict=True))
    if lowest < DICE:
        reason = f"{number_type} changes the masks: Dice {lowest:.4f} is below {DICE}"
        return networks, _log(Precision("float32", reason, lowest))
    reason = f"masks as in float32: lowest Dice {lowest:.4f}"
    return low, _log(Precision(number_type, reason, lowest))


def _log(precision: Precision) -> Precision:
    logger.info("Computing in %s: %s", precision.number_type, precision.reason)
    return precision


@torch.inference_mode()
def lowest_dice(tested: FastSAM3D, expected: FastSAM3D, device: torch.device) -> float:
    """Return the lowest Dice of two networks' masks over three clicks on a synthetic ROI.

    Each click is decoded with the network's own mask of the click before. Dice is 1 if both masks
    are empty. tested: the network to check. expected: the reference. Both must be on `device`.
    """
    volume, points, labels = (x.to(device) for x in synthetic_clicks(expected.config.roi_size))
    size = expected.config.low_res_size
    masks = [torch.zeros(1, 1, size, size, size, device=device) for _ in range(2)]
    embeddings = [network.prepare(network.encode(volume)) for network in (tested, expected)]
    worst = 1.0
    for click in range(points.shape[1]):
        for n, network in enumerate((tested, expected)):
            shown = slice(click, click + 1)
            masks[n] = network.decode(embeddings[n], points[:, shown], labels[:, shown], masks[n])[
                0
            ].float()
        kind = expected.policy.mask_threshold
        cut = [(logits > mask_threshold(logits, kind)).cpu().numpy() for logits in masks]
        worst = min(worst, dice(*cut))
    return worst


def synthetic_clicks(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a z-scored ROI [1, 1, S, S, S] of balls in noise, points [1, 3, 3], labels [1, 3]."""
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
