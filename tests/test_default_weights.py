"""The default weights do something sensible on the synthetic torso, through the served path."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import torso
from lib.cache import ByteCache, array_nbytes
from lib.configs.fastsam3d import DEFAULT_WEIGHTS
from lib.infers.predictor import FastSAM3DPredictor
from lib.intensity import normalize
from lib.roi import Roi
from lib.weights import file_weights

SHAPE_IJK = (160, 128, 70)
SPACING_MM = (2.4, 2.4, 4.5)

# half of what 5 clicks reached when the weights were made
FLOORS = {"kidney_right": 0.35, "spleen": 0.35}


@pytest.fixture(scope="module")
def scan():
    affine_mm = torso.centred_affine(SHAPE_IJK, SPACING_MM)
    image, labels = torso.sample(SHAPE_IJK, affine_mm)
    return image, labels, affine_mm


@pytest.fixture(scope="module")
def predictor():
    weights = file_weights(DEFAULT_WEIGHTS)
    caches = (ByteCache(10**8, array_nbytes), ByteCache(10**8, array_nbytes))
    return FastSAM3DPredictor(weights.network, weights.network_id, torch.device("cpu"), *caches)


def deepest_voxel(error):
    depth = ndimage.distance_transform_edt(error, sampling=SPACING_MM)
    return np.unravel_index(depth.argmax(), error.shape)


def dice_after_clicks(predictor, scan, target, count):
    """Click in the middle of the larger error, over and over."""
    image, _, affine_mm = scan
    mask, points_ijk, labels = np.zeros(SHAPE_IJK, dtype=bool), [], []
    for _ in range(count):
        missing, excess = target & ~mask, mask & ~target
        labels.append(int(missing.sum() >= excess.sum()))
        points_ijk.append(deepest_voxel(missing if labels[-1] else excess))
        roi = Roi.place(SHAPE_IJK, affine_mm, np.array(points_ijk))
        embedding = predictor.encode(roi, lambda roi=roi: normalize(roi.crop(image), True))
        logits = predictor.decode(embedding, roi.to_roi(np.array(points_ijk)), np.array(labels))
        mask = roi.paste(logits).astype(bool)
    return 2 * (mask & target).sum() / (mask.sum() + target.sum())


@pytest.mark.parametrize("structure", FLOORS)
def test_five_clicks_find_an_organ(predictor, scan, structure):
    value = next(value for value, name in torso.LABELS.items() if name == structure)
    dice = dice_after_clicks(predictor, scan, scan[1] == value, count=5)
    assert dice > FLOORS[structure], f"{structure}: {dice:.2f}"
