"""Initial weights: a patch embedding of image frequencies, and attention to the click's place.

With random weights, the network needs the first hour of training to learn both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lib.errors import WeightsError
from lib.networks import FastSAM3D
from lib.trainers.losses import mask_loss

SHARPNESS = 4.0
"""SHARPNESS: factor on queries and keys of the decoder's cross-attention."""

CONTENT = 0.3
"""CONTENT: scale of the content of image and click tokens; their position has scale 0.7."""

MARKING_RATE = 3e-4
"""MARKING_RATE: learning rate for marking clicks; at 1e-3 the refiner diverges."""

KEY_SPREAD = 0.7
"""KEY_SPREAD: standard deviation of each key; two random cells then have a similarity of e^-8."""

GROUND_LOGIT = -3.0
"""GROUND_LOGIT: initial logit of every voxel, as a target fills a few per cent of the ROI."""


@torch.no_grad()
def initialise(network: FastSAM3D, images: Tensor) -> None:
    """Set the patch embedding and the decoder's cross-attention.

    The patch embedding returns the lowest spatial frequencies, scaled to similar variances over
    `images`. Queries and keys of the cross-attention start equal, so that their score is highest
    where their position encodings agree: tokens attend to the image at the click. All logits start
    near GROUND_LOGIT.

    images: (B, 1, S, S, S) normalised.
    """
    projection: Any = network.image_encoder.patch_embed.proj
    projection.weight.copy_(
        lowest_frequencies(projection.kernel_size[0], projection.out_channels)[:, None]
    )
    projection.bias.zero_()
    spread = network.image_encoder.patch_embed(images).flatten(0, 3).std(dim=0)
    projection.weight.div_((spread + 0.02 * spread.max())[:, None, None, None, None])
    transformer: Any = network.mask_decoder.transformer
    crossings = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        layer.cross_attn_image_to_token.out_proj.weight.mul_(3)
    for attention in crossings:
        attention.q_proj.weight.mul_(SHARPNESS)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    _spread_embedding(network, images)
    embedding: Any
    for embedding in network.prompt_encoder.point_embeddings:
        embedding.weight.mul_(CONTENT)
    _expect_ground(network)
    if network.config.detail_channels:
        _show_prompt(network)
        spread_keys(network, images)


def _spread_embedding(network: FastSAM3D, images: Tensor) -> None:
    """Scale the embedding, nearly constant over the tokens, to a standard deviation of CONTENT."""
    norm: Any = network.image_encoder.neck[-1]
    embedding = network.image_encoder(images)
    mean = embedding.mean(dim=(0, 2, 3, 4))
    factor = CONTENT / (embedding - mean[:, None, None, None]).std()
    norm.weight.mul_(factor)
    norm.bias.mul_(factor).add_(mean * (1 - factor))


def _expect_ground(network: FastSAM3D) -> None:
    """Make all logits start near GROUND_LOGIT, by one channel with a negative weight."""
    decoder: Any = network.mask_decoder
    decoder.output_upscaling[-2].bias[0] = -GROUND_LOGIT
    for head in decoder.output_hypernetworks_mlps:
        head.layers[-1].bias.normal_(0, 0.7, generator=torch.Generator().manual_seed(0))
        head.layers[-1].bias[0] = -1


def _show_prompt(network: FastSAM3D) -> None:
    """Let the refiner's first masks show its prompt: the clicks and the previous mask."""
    decoder: Any = network.mask_decoder
    merge = decoder.refiner.merge
    merge.weight.mul_(0.1)
    merge.bias.zero_()
    first = network.config.out_channels // 8 + network.config.detail_channels
    mask, foreground, background = range(first, first + 3)
    heads = [head.layers[-1].bias for head in decoder.output_hypernetworks_mlps]
    for channel, (source, gain, weight) in enumerate(
        ((foreground, 4, 1.5), (background, 4, -1.5), (mask, 3, 1)), start=1
    ):
        merge.weight[channel, source] = gain
        for bias in heads:
            bias[channel] = weight


@torch.no_grad()
def spread_keys(network: FastSAM3D, images: Tensor) -> None:
    """Scale the refiner's keys, by which it compares cells, to KEY_SPREAD over `images`."""
    key: Any = network.mask_decoder.refiner.key
    key.bias.zero_()
    keys = key(network.detail_stem(images))
    key.weight.mul_(KEY_SPREAD / keys.std(dim=(0, 2, 3, 4))[:, None, None, None, None])


@torch.no_grad()
def take_weights(network: FastSAM3D, earlier: Mapping[str, Tensor]) -> list[str]:
    """Copy the weights of an earlier network; return the names of the tensors that it lacks.

    If a tensor has more inputs than before (its second axis), the new inputs get weight 0. Raises
    WeightsError for any other difference of shapes.
    """
    missing = []
    for name, weight in network.state_dict().items():
        if name not in earlier:
            missing.append(name)
            continue
        source = earlier[name].to(weight.dtype)
        if source.shape != weight.shape:
            is_longer = source.ndim > 1 and source.shape[1] < weight.shape[1]
            if not is_longer or source[:, :1].shape != weight[:, :1].shape:
                raise WeightsError(
                    f"the weights to start from do not fit the network: {name} is "
                    f"{tuple(source.shape)}, not {tuple(weight.shape)}"
                )
            weight[:, source.shape[1] :] = 0
            weight = weight[:, : source.shape[1]]
        weight.copy_(source)
    return missing


def learn_to_mark_clicks(network: FastSAM3D, images: Tensor, steps: int, seed: int) -> float:
    """Train the decoder to mark a ball at positive clicks; return the last loss.

    The ball's radius is one patch. The network learns nothing else before this. With whole training
    steps it takes most of an hour, without the encoder a minute.

    images: (B, 1, S, S, S) normalised.
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
        image = torch.randint(len(embeddings), (len(targets),), generator=generator)
        blank = torch.zeros_like(targets)[:, None]
        prepared = network.prepare(embeddings[image])
        logits, _ = network.decode(prepared, points_roi, labels, blank)
        loss = mask_loss(logits[:, 0], targets).mean()
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        clip_each(parameters, 0.5)
        optimizer.step()
    return float(loss.detach())


def clip_each(parameters: Iterable[Tensor], norm: float) -> Tensor:
    """Clip the gradient of each parameter alone; return the largest norm before clipping, (,).

    The gradients of 1×1×1 convolutions over whole volumes are hundreds of times larger than those
    of the transformer: clipping all together would remove the transformer's gradient.
    """
    gradients = [x.grad for x in parameters if x.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(norm / (x + 1e-6)).clamp(max=1) for x in norms])
    return torch.stack(norms).max()


def click_balls(
    network: FastSAM3D, generator: torch.Generator, prompts: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random clicks (B, N, 3) in ROI voxels, labels (B, N) and masks (B, s, s, s).

    The first label is positive. Later clicks overwrite earlier ones.
    """
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
    """Return the `count` lowest 3D cosine functions on side³ voxels: (count, side, side, side).

    They are orthonormal (DCT-II). Raises ValueError if `count` exceeds side³.
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
