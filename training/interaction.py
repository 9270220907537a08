"""One training step: encode ROIs once, then click, look at the errors and click again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.networks import FastSAM3D, mask_threshold
from lib.trainers.clicks import next_clicks
from lib.trainers.losses import mask_loss, overlaps

IOU_WEIGHT = 0.5
FORGET_MASK = 0.1
"""Share of calls after the first that get zeros instead of the previous mask."""


def interactive_loss(
    network: FastSAM3D,
    batch: dict[str, Tensor],
    clicks: int,
    graded: set[int],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The mean loss over the clicks in `graded` (counted from 0) of a series, and what to log.

    batch: image (B, 1, S, S, S), targets (B, T, c, c, c), clicks_roi (B, T, 3), as ClickSamples
    gives them. The T targets of a ROI share its embedding. Other clicks only lead to the next one.
    """
    image, targets = batch["image"], batch["targets"]
    per_roi = targets.shape[1]
    targets = targets.flatten(0, 1)
    points_roi = batch["clicks_roi"].flatten(0, 1)[:, None]
    labels = torch.ones(points_roi.shape[:2], dtype=torch.long, device=image.device)
    embedding = network.encode(image).repeat_interleave(per_roi, dim=0)

    low_res = embedding.new_zeros(len(targets), 1, *(network.config.low_res_size,) * 3)
    cell = network.config.roi_size // targets.shape[-1]
    losses, facts = [], {}
    for click in range(clicks):
        with torch.set_grad_enabled(torch.is_grad_enabled() and click in graded):
            low_res, iou = network.decode(embedding, points_roi, labels, low_res)
            logits = F.interpolate(low_res, size=targets.shape[1:], mode="trilinear")[:, 0]
            if click in graded:
                losses.append(_loss(logits, iou[:, 0], targets))
        low_res = low_res.detach()
        threshold = mask_threshold(low_res, network.config.mask_threshold)
        logits = logits.detach() - threshold[:, None, None, None]
        facts[f"dice_{click + 1}"] = float(overlaps(logits, targets)[1].mean())
        if click + 1 < clicks:
            point, label = next_clicks(logits, targets, generator, cell)
            points_roi = torch.cat([points_roi, point], dim=1)
            labels = torch.cat([labels, label], dim=1)
            if torch.rand((), generator=generator) < FORGET_MASK:
                low_res = torch.zeros_like(low_res)
    return torch.stack(losses).mean(), facts


def _loss(logits: Tensor, expected_iou: Tensor, targets: Tensor) -> Tensor:
    iou, _ = overlaps(logits, targets)
    return mask_loss(logits, targets).mean() + IOU_WEIGHT * F.mse_loss(expected_iou, iou)
