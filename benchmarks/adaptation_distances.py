"""How far the ROIs of scans are from those on the labels that a network was adapted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lib.infers.served_masks import ServedMasks
from lib.networks import Adaptation, image_features
from lib.trainers.data.roi_pool import RoiOptions, RoiPool
from lib.trainers.data.studies import Study, examine
from lib.weights.files import Weights

from .adaptation_site import study_name
from .datasets import BenchmarkCase


@torch.inference_mode()
def distances(
    weights: Weights, adaptation: Adaptation, cases: Sequence[BenchmarkCase], rois: int, seed: int
) -> list[float]:
    """Return the distances of `rois` ROIs on structures; none if no label can be used.

    They are cut as in serving, around a click on a structure; the cases take turns.
    """
    studies, _ = examine([Study(study_name(case), case.image, case.label) for case in cases])
    labelled = [study for study in studies if study.is_labelled]
    if not labelled:
        return []
    config = weights.network.config
    spacing_mm_at = ServedMasks().spacing_mm_at
    pool = RoiPool(labelled, rois, config, RoiOptions.plain(), seed, spacing_mm_at=spacing_mm_at)
    embeddings = (weights.network.encode(pool[number]["image"][None]) for number in range(rois))
    features = torch.cat([image_features(embedding, config) for embedding in embeddings])
    return adaptation.likeness.distance(features).tolist()


def described(values: Sequence[float], limit: float) -> dict[str, float]:
    """Return smallest, median, 95th percentile, largest, and the share up to the limit."""
    smallest, median, high, largest = np.percentile(values, [0, 50, 95, 100]).tolist()
    share = float(np.mean(np.array(values) <= limit))
    return {"smallest": smallest, "median": median, "p95": high, "largest": largest, "alike": share}
