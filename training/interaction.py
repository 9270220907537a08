"""The loss of a series of simulated clicks: encode ROIs once, then click on the errors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.networks import FastSAM3D, mask_threshold
from lib.trainers.clicks import next_clicks
from lib.trainers.decoder_autocast import decoder_autocast, encoder_autocast
from lib.trainers.losses import dice_loss, mask_loss, overlaps

from .cell_pairs import pair_loss

IOU_WEIGHT = 0.5
HARM_WEIGHT = 1.0
"""HARM_WEIGHT: weight of the Dice that a correcting click loses."""

KEYS_WEIGHT = 0.5
"""KEYS_WEIGHT: weight of the loss of the cells' keys (:mod:`training.cell_pairs`)."""

OTHERS_SHARE = 0.25
"""OTHERS_SHARE: share of series whose clicks lie on the errors of another model, as replayed clicks
do: balls around the clicks."""

BALL_RADIUS = 10.0
"""BALL_RADIUS: in ROI voxels."""

FORGET_MASK = 0.1
"""FORGET_MASK: share of calls after the first that get zeros instead of the previous mask."""

OTHERS_WEIGHT = 0.1
"""OTHERS_WEIGHT: weight of the loss averaged over all masks of an ambiguous click.

With it, the masks that fit less learn too (relaxed winner-takes-all, Rupprecht et al., Learning in
an Uncertain World, arXiv 1612.00197).
"""


def interactive_loss(
    network: FastSAM3D,
    batch: dict[str, Tensor],
    clicks: int,
    graded: set[int],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss over the graded clicks of a series, and the values to log.

    batch: image (B, 1, S, S, S), targets (B, T, c, c, c), clicks_roi (B, T, 3) and pairs of cells,
    as ClickSamples returns them. The T targets of a ROI share its embedding. graded: numbers of the
    clicks that have a loss, from 0. The other clicks only lead to the next one. Most clicks lie on
    the errors of the network's own masks, those of `OTHERS_SHARE` of the series on the errors of
    another model. If a graded click lowers the Dice of the mask before it, `loss_of_harm` is added,
    and to the whole the loss of the cells' keys.
    """
    image, targets = batch["image"], batch["targets"]
    per_roi = targets.shape[1]
    targets = targets.flatten(0, 1)
    points_roi = batch["clicks_roi"].flatten(0, 1)[:, None]
    labels = torch.ones(points_roi.shape[:2], dtype=torch.long, device=image.device)
    with encoder_autocast(image.device):
        embedding = network.encode(image)
    with decoder_autocast(image.device):
        prepared = network.prepare(embedding)
    loss_of_keys, facts = None, {}
    if prepared.keys is not None:
        loss_of_keys, facts["same"] = pair_loss(prepared.keys, batch)
    prepared = prepared.for_each(per_roi)

    low_res = image.new_zeros(len(targets), 1, *(network.config.low_res_size,) * 3)
    cell = network.config.roi_size // targets.shape[-1]
    losses, before = [], None
    on_others = torch.rand(len(targets), generator=generator) < OTHERS_SHARE
    for click in range(clicks):
        is_graded = click in graded
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_graded):
            multimask: Literal["all", False] = "all" if click == 0 and is_graded else False
            with decoder_autocast(image.device):
                masks, iou = network.decode(prepared, points_roi, labels, low_res, multimask)
            masks, iou = masks.float(), iou.float()
            low_res = masks[:, :1]
            logits = F.interpolate(low_res, size=targets.shape[1:], mode="trilinear")[:, 0]
        if is_graded:
            losses.append(_loss(logits, iou[:, 0], targets))
        if multimask:
            loss, facts["multimask_1"] = loss_of_best(masks[:, 1:], iou[:, 1:], targets)
            losses.append(loss)
        threshold = mask_threshold(low_res, network.policy.mask_threshold)
        logits = logits - threshold[:, None, None, None]
        if is_graded and before is not None:
            harm = loss_of_harm(before, logits, targets)
            losses[-1] = losses[-1] + HARM_WEIGHT * harm
            facts["harm"] = harm
        low_res, logits = low_res.detach(), logits.detach()
        before = logits
        facts[f"dice_{click + 1}"] = overlaps(logits, targets)[1].mean()
        if click + 1 < clicks:
            shown = ball_margins(points_roi, labels, logits, on_others, cell)
            point, label = next_clicks(shown, targets, generator, cell)
            points_roi = torch.cat([points_roi, point], dim=1)
            labels = torch.cat([labels, label], dim=1)
            if torch.rand((), generator=generator) < FORGET_MASK:
                low_res = torch.zeros_like(low_res)
    loss = torch.stack(losses).mean()
    return loss if loss_of_keys is None else loss + KEYS_WEIGHT * loss_of_keys, facts


def ball_margins(
    points_roi: Tensor, labels: Tensor, margins: Tensor, chosen: Tensor, cell: int
) -> Tensor:
    """Return the masks of a model that knows no image in place of the ``chosen`` ones.

    Such a mask is 1 on cells whose nearest click is foreground and at most `BALL_RADIUS` away, and
    -1 elsewhere. points_roi: (B, N, 3); labels: (B, N); margins: (B, c, c, c); chosen: (B,) bool,
    on the CPU. cell: ROI voxels along a cell.
    """
    places = torch.nonzero(chosen)[:, 0].to(margins.device)
    if not len(places):
        return margins
    along = (torch.arange(margins.shape[-1], device=margins.device) + 0.5) * cell - 0.5
    cells_roi = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    distance, nearest = torch.cdist(points_roi[places], cells_roi.flatten(0, 2)).min(dim=1)
    is_inside = (distance <= BALL_RADIUS) & (labels[places].gather(1, nearest) == 1)
    balls = (2 * is_inside.to(margins) - 1).unflatten(1, margins.shape[1:])
    return margins.index_copy(0, places, balls)


def _loss(logits: Tensor, expected_iou: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of one mask and of its predicted IoU."""
    iou, _ = overlaps(logits, targets)
    return mask_loss(logits, targets).mean() + IOU_WEIGHT * F.mse_loss(expected_iou, iou)


def loss_of_harm(before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Return the mean soft Dice that the masks lose from one click to the next.

    before, after: logits (B, c, c, c), positive inside. targets: (B, c, c, c). The gradient does
    not reach `before`. Masks that gain count as 0. The result is a scalar.
    """
    lost = dice_loss(after, targets) - dice_loss(before.detach(), targets)
    return F.relu(lost).mean()


def loss_of_best(masks: Tensor, iou: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of the masks of an ambiguous click, and the Dice of the best mask.

    The loss is that of the best mask, plus `OTHERS_WEIGHT` times the mean over all masks, plus the
    squared error of the predicted IoU. masks: logits (B, M, s, s, s). iou: predictions (B, M).
    targets: (B, c, c, c).
    """
    resized = F.interpolate(masks, size=targets.shape[1:], mode="trilinear").unbind(dim=1)
    loss = torch.stack([mask_loss(logits, targets) for logits in resized], dim=1)
    overlap = [overlaps(logits, targets) for logits in resized]
    true_iou, dice = (torch.stack(values, dim=1) for values in zip(*overlap, strict=True))
    best = loss.amin(dim=1) + OTHERS_WEIGHT * loss.mean(dim=1)
    return best.mean() + IOU_WEIGHT * F.mse_loss(iou, true_iou), dice.amax(dim=1).mean()
