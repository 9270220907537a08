"""The last stage of the pretraining: the mask decoder learns from every click of many series.

Image encoder, image detail and cell keys get no gradient, so each ROI is encoded once. A step has
one new ROI and the newest click of each series that is under way. The series are at
different clicks, and every mask that is computed is learned from. Most clicks lie on the errors of
the network's own masks, the others on those of another model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.networks import FastSAM3D, mask_threshold
from lib.trainers.clicks import next_clicks
from lib.trainers.decoder_autocast import decoder_autocast
from lib.trainers.losses import mask_loss, overlaps

from .interaction import HARM_WEIGHT, loss_of_harm

LEAST_CELLS = 8
"""LEAST_CELLS: targets with fewer cells of at least half are left out."""

OTHERS_SHARE = 0.25
"""OTHERS_SHARE: share of series whose clicks lie on the errors of another model, as replayed clicks
do: balls around the clicks, which know no image."""

BALL_RADIUS = 10.0
"""BALL_RADIUS: in ROI voxels."""


@dataclass(eq=False)
class OpenSeries:
    """A series of clicks on one structure that goes on.

    embedding: [C, g, g, g] of the neck. detail: [D, s, s, s]. keys: [K, s, s, s], or None for a
    network without them. target: (c, c, c). points_roi: (N, 3); labels: (N,). low_res: (s, s, s),
    the logits before the newest click. left: clicks that follow, the newest one included.
    on_others: the clicks lie on the errors of another model.
    """

    embedding: Tensor
    detail: Tensor
    keys: Tensor | None
    target: Tensor
    points_roi: Tensor
    labels: Tensor
    low_res: Tensor
    left: int
    on_others: bool


class SeriesLoss:
    """The loss of a step, for :func:`training.stage_loop.train`: it keeps the series under way.

    clicks: maximum clicks of a series. A resumed run starts with new series.
    """

    def __init__(self, clicks: int) -> None:
        self.clicks = clicks
        self.active: list[OpenSeries] = []

    def __call__(
        self, network: FastSAM3D, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and the mean Dice after each number of clicks.

        batch: ROIs of :class:`training.data.ClickSamples`. The loss is that of the masks on the
        cells of the targets, plus the Dice that they lose against the mask before the click.
        """
        self.active += new_series(network, batch, self.clicks, generator)
        targets = torch.stack([series.target for series in self.active])
        low_res = decode_newest(network, self.active)
        logits = F.interpolate(low_res, size=targets.shape[1:], mode="trilinear")[:, 0]
        loss = mask_loss(logits, targets).mean()
        later = [n for n, series in enumerate(self.active) if len(series.labels) > 1]
        if later:
            before = torch.stack([self.active[n].low_res for n in later])[:, None]
            before = F.interpolate(before, size=targets.shape[1:], mode="trilinear")[:, 0]
            harm = loss_of_harm(before, logits[later], targets[later])
            loss = loss + HARM_WEIGHT * harm * len(later) / len(self.active)
        low_res = low_res.detach()
        threshold = mask_threshold(low_res, network.policy.mask_threshold)
        margins = logits.detach() - threshold[:, None, None, None]
        by_click = defaultdict(list)
        for series, dice in zip(self.active, overlaps(margins, targets)[1].tolist(), strict=True):
            by_click[f"dice_{len(series.labels)}"].append(dice)
        self._advance(low_res, margins, targets, network.config.roi_size, generator)
        return loss, {name: float(np.mean(values)) for name, values in by_click.items()}

    def _advance(
        self,
        low_res: Tensor,
        margins: Tensor,
        targets: Tensor,
        roi_size: int,
        generator: torch.Generator,
    ) -> None:
        """Click on the error of each mask, or of the other model's; drop the ended series."""
        cell = roi_size // targets.shape[-1]
        for n, series in enumerate(self.active):
            if series.on_others:
                margins[n] = ball_margins(series.points_roi, series.labels, margins[n], cell)
        points_roi, labels = next_clicks(margins, targets, generator, cell)
        for n, series in enumerate(self.active):
            series.points_roi = torch.cat([series.points_roi, points_roi[n]])
            series.labels = torch.cat([series.labels, labels[n]])
            series.low_res = low_res[n, 0]
            series.left -= 1
        self.active = [series for series in self.active if series.left]


@torch.no_grad()
def new_series(
    network: FastSAM3D, batch: dict[str, Tensor], clicks: int, generator: torch.Generator
) -> Iterator[OpenSeries]:
    """Yield a series of 1 to ``clicks`` clicks for each target of a batch of ROIs."""
    embedding = network.encode(batch["image"])
    prepared = network.prepare(embedding)
    if prepared.detail is None:
        raise ValueError("the network has no mask refiner: detail_channels is 0")
    low_res = embedding.new_zeros((network.config.low_res_size,) * 3)
    for n, (targets, clicks_roi) in enumerate(
        zip(batch["targets"], batch["clicks_roi"], strict=True)
    ):
        for target, click_roi in zip(targets, clicks_roi, strict=True):
            if int((target >= 0.5).sum()) < LEAST_CELLS:
                continue
            yield OpenSeries(
                embedding[n, : network.config.out_channels],
                prepared.detail[n],
                None if prepared.keys is None else prepared.keys[n],
                target,
                points_roi=click_roi[None],
                labels=torch.ones(1, dtype=torch.long, device=target.device),
                low_res=low_res,
                left=int(torch.randint(1, clicks + 1, (), generator=generator)),
                on_others=bool(torch.rand((), generator=generator) < OTHERS_SHARE),
            )


def ball_margins(points_roi: Tensor, labels: Tensor, margins: Tensor, cell: int) -> Tensor:
    """Return 1 on the cells whose nearest click is foreground and near, else -1, as `margins`.

    points_roi: (N, 3); labels: (N,); margins: (c, c, c). cell: ROI voxels along a cell.
    """
    along = (torch.arange(margins.shape[-1], device=margins.device) + 0.5) * cell - 0.5
    places_roi = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    distance, nearest = torch.cdist(places_roi.flatten(0, 2), points_roi).min(dim=1)
    is_inside = (distance <= BALL_RADIUS) & (labels[nearest] == 1)
    return (2 * is_inside.to(margins) - 1).reshape(margins.shape)


def decode_newest(network: FastSAM3D, active: Sequence[OpenSeries]) -> Tensor:
    """Return the logits of each series after its newest click, (B, 1, s, s, s)."""
    points_roi, labels = padded_clicks(active)
    before = torch.stack([series.low_res for series in active])[:, None]
    keys = [series.keys for series in active if series.keys is not None]
    with decoder_autocast(points_roi.device):
        prepared = network.mask_decoder.prepare(
            torch.stack([series.embedding for series in active]),
            network.decoder_constants(),
            torch.stack([series.detail for series in active]),
            torch.stack(keys) if keys else None,
        )
        return network.decode(prepared, points_roi, labels, before)[0].float()


def padded_clicks(active: Sequence[OpenSeries]) -> tuple[Tensor, Tensor]:
    """Return the clicks of several series, (B, N, 3), and their labels (B, N), -1 for padding."""
    count = max(len(series.labels) for series in active)
    points_roi = active[0].points_roi.new_zeros(len(active), count, 3)
    labels = active[0].labels.new_full((len(active), count), -1)
    for row, series in enumerate(active):
        points_roi[row, : len(series.labels)] = series.points_roi
        labels[row, : len(series.labels)] = series.labels
    return points_roi, labels
