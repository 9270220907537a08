"""Initial weights that know a little: what a patch looks like, and that near is near.

From the usual random weights a network of this kind spends its first hour on learning that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lib.networks import FastSAM3D
from lib.networks.mask_refiner import PROMPT_MAPS
from lib.trainers.losses import mask_loss

SHARPNESS = 4.0
"""Factor on queries and keys of the decoder's cross-attention."""

CONTENT = 0.3
"""Scale of what image and click tokens hold beside their position, whose own is 0.7."""

MARKING_RATE = 3e-4
"""Of learning to mark clicks: at 1e-3 the refiner's convolutions make it diverge."""

KEY_SPREAD = 0.7
"""Standard deviation of each key: two cells at random are then about e^-8 alike."""

GROUND_LOGIT = -3.0
"""Of every voxel at the start, for a target fills a few per cent of the ROI."""


@torch.no_grad()
def initialise(network: FastSAM3D, images: Tensor) -> None:
    """Set the patch embedding and the decoder's cross-attention; images: (B, 1, S, S, S).

    A patch becomes its lowest spatial frequencies, scaled to about equal variance in `images`.
    Queries and keys of the cross-attention start equal, so that their score is highest where
    their position encodings agree: tokens look at the image where the click is. All logits begin
    near GROUND_LOGIT.
    """
    projection = network.image_encoder.patch_embed.proj
    projection.weight.copy_(
        lowest_frequencies(projection.kernel_size[0], projection.out_channels)[:, None]
    )
    projection.bias.zero_()
    spread = network.image_encoder.patch_embed(images).flatten(0, 3).std(dim=0)
    projection.weight.div_((spread + 0.02 * spread.max())[:, None, None, None, None])
    transformer = network.mask_decoder.transformer
    crossings = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        layer.cross_attn_image_to_token.out_proj.weight.mul_(3)
    for attention in crossings:
        attention.q_proj.weight.mul_(SHARPNESS)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    _spread_embedding(network, images)
    for embedding in network.prompt_encoder.point_embeddings:
        embedding.weight.mul_(CONTENT)
    _expect_ground(network)
    if network.config.detail_channels:
        _show_prompt(network)
        spread_keys(network, images)


def _spread_embedding(network: FastSAM3D, images: Tensor) -> None:
    """Let the embedding vary by CONTENT from token to token, where it is nearly constant."""
    norm = network.image_encoder.neck[-1]
    embedding = network.image_encoder(images)
    mean = embedding.mean(dim=(0, 2, 3, 4))
    factor = CONTENT / (embedding - mean[:, None, None, None]).std()
    norm.weight.mul_(factor)
    norm.bias.mul_(factor).add_(mean * (1 - factor))


def _expect_ground(network: FastSAM3D) -> None:
    """Hold one channel of the upscaled image up, and let the masks weigh it negatively."""
    network.mask_decoder.output_upscaling[-2].bias[0] = -GROUND_LOGIT
    for head in network.mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].bias.normal_(0, 0.7, generator=torch.Generator().manual_seed(0))
        head.layers[-1].bias[0] = -1


def _show_prompt(network: FastSAM3D) -> None:
    """Let the refiner begin with the drawn prompt: clicks and the previous mask become the mask."""
    merge = network.mask_decoder.refiner.merge
    merge.weight.mul_(0.1)
    merge.bias.zero_()
    first = merge.in_channels - PROMPT_MAPS
    mask, foreground, background = range(first, first + 3)
    heads = [head.layers[-1].bias for head in network.mask_decoder.output_hypernetworks_mlps]
    for channel, (source, gain, weight) in enumerate(
        ((foreground, 4, 1.5), (background, 4, -1.5), (mask, 3, 1)), start=1
    ):
        merge.weight[channel, source] = gain
        for bias in heads:
            bias[channel] = weight


@torch.no_grad()
def spread_keys(network: FastSAM3D, images: Tensor) -> None:
    """Scale what the refiner compares cells by, so that most cells of `images` are unlike."""
    key: Any = network.mask_decoder.refiner.key
    key.bias.zero_()
    seen = key(network.detail_stem(images))
    key.weight.mul_(KEY_SPREAD / seen.std(dim=(0, 2, 3, 4))[:, None, None, None, None])


@torch.no_grad()
def take_weights(network: FastSAM3D, earlier: Mapping[str, Tensor]) -> list[str]:
    """Take over the weights of an earlier network; -> names of those that it did not have.

    A tensor that has become longer along its second axis, that of the inputs, keeps nothing of the
    new ones. Raises ValueError where shapes differ otherwise.
    """
    missing = []
    for name, ours in network.state_dict().items():
        if name not in earlier:
            missing.append(name)
            continue
        theirs = earlier[name].to(ours.dtype)
        if theirs.shape != ours.shape:
            is_longer = theirs.ndim > 1 and theirs.shape[1] < ours.shape[1]
            if not is_longer or theirs[:, :1].shape != ours[:, :1].shape:
                raise ValueError(f"{name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}")
            ours[:, theirs.shape[1] :] = 0
            ours = ours[:, : theirs.shape[1]]
        ours.copy_(theirs)
    return missing


def learn_to_mark_clicks(network: FastSAM3D, images: Tensor, steps: int, seed: int) -> float:
    """Train the decoder to mark a ball, one patch in radius, at positive clicks only.

    Nothing else can be learnt before this, and it takes most of an hour of whole training steps,
    but a minute without the encoder. images: (B, 1, S, S, S). -> the last loss.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embeddings = network.encode(images)
    parameters = [*network.mask_decoder.parameters(), *network.prompt_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=MARKING_RATE, betas=(0.9, 0.98))
    loss = torch.tensor(0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = MARKING_RATE * min(1.0, (step + 1) / 20)
        points_roi, labels, targets = click_balls(network, generator)
        of_prompt = torch.randint(len(embeddings), (len(targets),), generator=generator)
        blank = torch.zeros_like(targets)[:, None]
        logits, _ = network.decode(embeddings[of_prompt], points_roi, labels, blank)
        loss = mask_loss(logits[:, 0], targets).mean()
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        clip_each(parameters, 0.5)
        optimizer.step()
    return float(loss.detach())


def clip_each(parameters: Iterable[Tensor], norm: float) -> float:
    """Clip the gradient of each parameter by itself; -> the largest norm there was.

    The gradients of 1×1×1 convolutions over whole volumes are hundreds of times those of the
    transformer: clipped together, they would take all of its gradient away.
    """
    norms = [torch.nn.utils.clip_grad_norm_(x, norm) for x in parameters if x.grad is not None]
    return float(torch.stack(norms).max())


def click_balls(
    network: FastSAM3D, generator: torch.Generator, prompts: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Random clicks (B, N, 3), labels (B, N), the first positive, and masks (B, s, s, s)."""
    size, low_res = network.config.roi_size, network.config.low_res_size
    count = int(torch.randint(1, 4, (), generator=generator))
    points_roi = torch.randint(size // 8, 7 * size // 8, (prompts, count, 3), generator=generator)
    labels = torch.randint(0, 2, (prompts, count), generator=generator)
    labels[:, 0] = 1
    centre = (torch.arange(low_res) + 0.5) * size / low_res - 0.5
    places = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1)
    masks = torch.zeros(prompts, *(low_res,) * 3)
    for click in range(count):
        offset = places - points_roi[:, None, None, None, click]
        value = labels[:, click, None, None, None].float()
        masks = torch.where(offset.norm(dim=-1) < network.config.patch_size, value, masks)
    return points_roi.float(), labels, masks


def lowest_frequencies(side: int, count: int) -> Tensor:
    """The `count` lowest 3D cosine functions on side³ voxels: (count, side, side, side).

    They are orthonormal (DCT-II). Raises ValueError where there are fewer.
    """
    if count > side**3:
        raise ValueError(f"there are {side**3} frequencies on {side}³ voxels, not {count}")
    place = (torch.arange(side) + 0.5) / side
    waves = torch.cos(math.pi * torch.arange(side)[:, None] * place) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    frequencies = sorted(
        itertools.product(range(side), repeat=3), key=lambda f: sum(n * n for n in f)
    )
    i, j, k = torch.tensor(frequencies[:count]).T
    return torch.einsum("ni,nj,nk->nijk", waves[i], waves[j], waves[k])
