"""Whether a ROI looks like those that a network was adapted to, from the ROI's embedding alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .config import FastSAM3DConfig

SLACK = 1.75
"""SLACK: a ROI is alike up to this factor times the usual distance between two adapted studies."""


def image_features(embedding: Tensor, config: FastSAM3DConfig) -> Tensor:
    """Return features [B, 4 D] of embeddings [B, C, g, g, g]: what an image looks like.

    They are mean and standard deviation of each of D channels, over the ROI and over its central
    half along each axis. The channels are those of the image detail, and of the neck for networks
    without it.
    """
    maps = embedding[:, : config.out_channels]
    if config.detail_channels:
        size = config.low_res_size
        maps = embedding[:, config.out_channels :].reshape(-1, config.detail_channels, *(size,) * 3)
    maps = maps.float()
    quarter = maps.shape[-1] // 4
    inner = slice(quarter, maps.shape[-1] - quarter)
    parts = (maps.flatten(2), maps[:, :, inner, inner, inner].flatten(2))
    return torch.cat([statistic for x in parts for statistic in (x.mean(2), x.std(2))], dim=1)


@dataclass(frozen=True)
class ImageLikeness:
    """The ROIs that a network was adapted to, as standardised features.

    mean, spread: [F], of the features (:func:`image_features`). known: [N, F], the ROIs. limit:
    scalar, the largest Euclidean distance of a ROI that is alike to the nearest known one.
    """

    mean: Tensor
    spread: Tensor
    known: Tensor
    limit: Tensor

    @classmethod
    def fit(cls, features: Tensor, studies: Sequence[str], arbitrary: Tensor) -> ImageLikeness:
        """Learn which ROIs are alike.

        The limit is SLACK times the median distance of a ROI to the nearest one of another study
        (of the same study, if there is no other), and no more than the distance of the nearest
        arbitrary image. The more the studies differ, the more images are alike.

        features: [N, F] of the ROIs. studies: the N names of their studies. arbitrary: [M, F],
        features of other images; with them, each feature is scaled to a standard deviation of 1.
        """
        everything = torch.cat([features, arbitrary])
        mean, spread = everything.mean(0), everything.std(0).clamp(min=1e-6)
        known, others = ((x - mean) / spread for x in (features, arbitrary))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(studies))}
        study = torch.tensor([numbers[name] for name in studies])
        if len(numbers) == 1:
            study = torch.arange(len(studies))
        between = torch.cdist(known, known)
        between[study[:, None] == study[None]] = torch.inf
        usual = SLACK * between.amin(dim=1).median()
        return cls(mean, spread, known, torch.minimum(usual, torch.cdist(others, known).min()))

    def distance(self, features: Tensor) -> Tensor:
        """Return the distances [B] of features [B, F] to the nearest known ROI."""
        return torch.cdist((features - self.mean) / self.spread, self.known).amin(dim=1)

    def includes(self, features: Tensor) -> bool:
        """Return whether a ROI with features [1, F] is alike."""
        return bool(self.distance(features) <= self.limit)

    def to(self, device: torch.device) -> ImageLikeness:
        """Return the same on a device."""
        return ImageLikeness(**{name: x.to(device) for name, x in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, config: FastSAM3DConfig, tensors: Mapping[str, Tensor]) -> ImageLikeness:
        """Rebuild it from the result of :meth:`tensors`; raise ValueError if they do not fit."""
        count = 4 * (config.detail_channels or config.out_channels)
        rois = len(tensors["known"]) if "known" in tensors and tensors["known"].ndim else 0
        expected = {"mean": (count,), "spread": (count,), "known": (max(1, rois), count)}
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        is_finite = all(bool(torch.isfinite(x).all()) for x in tensors.values())
        if shapes != {**expected, "limit": ()} or not is_finite:
            raise ValueError(
                f"its images to compare with are damaged: {shapes or 'none'}; publish it again, or "
                "roll back"
            )
        return cls(**{field.name: tensors[field.name].float() for field in fields(cls)})
