"""What a reply holds beside the mask: probability, uncertainty, and places worth a click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.box import hull_of_boxes
from lib.imaging.mask import BoxMask
from lib.imaging.volume import Volume
from lib.infers.structures import RoiStructure
from lib.infers.uncertainty import (
    expected_error,
    foreground_probability,
    label_error,
    next_clicks,
)

LEVELS = 255
"""LEVELS: value of a map where the probability is 1; maps are uint8, as masks are."""

MAPS = ("probability", "uncertainty")
"""MAPS: the outputs that are maps."""

LEAST = 0.02
"""LEAST: the box of a map holds all cells with a larger value."""


@dataclass(frozen=True)
class Outputs:
    """What a request asked for beside the mask.

    maps: by the output's name, LEVELS for probability 1. facts: entries of the reply's JSON.
    """

    maps: dict[str, BoxMask]
    facts: dict[str, Any]


def make_outputs(
    structures: Sequence[RoiStructure], mask: BoxMask, volume: Volume, names: Sequence[str]
) -> Outputs:
    """Return the outputs that a request asked for.

    Of several structures, the maps hold the largest value at each voxel, and the places worth a
    click are those of the last one. mask: of the reply. names: of OUTPUTS.
    """
    fields = [_fields(structure) for structure in structures] if names else []
    maps = {
        name: _paste(structures, [field[name] for field in fields], mask)
        for name in names
        if name in MAPS
    }
    facts = {}
    if "next_click" in names:
        last, roi_mask = structures[-1], structures[-1].mask
        assert roi_mask is not None
        points_ijk = np.concatenate([prompt.points_ijk for prompt in last.prompts])
        points_roi = roi_mask.roi.to_roi(points_ijk)
        places_ijk = next_clicks(
            fields[-1]["uncertainty"], roi_mask.margins, points_roi, roi_mask.roi
        )
        places_lps = apply_affine(volume.affine_mm, places_ijk) @ RAS_TO_LPS
        facts["next_click"] = {
            "places_ijk": places_ijk.tolist(),
            "places_lps_mm": np.round(places_lps, 3).tolist(),
        }
    return Outputs(maps, facts)


def structure_error(structure: RoiStructure) -> float:
    """Return `expected_error` of a structure's mask."""
    assert structure.mask is not None
    return expected_error(_probability(structure), structure.mask.margins)


def _probability(structure: RoiStructure) -> np.ndarray:
    state, mask = structure.state, structure.mask
    assert state is not None and mask is not None
    return foreground_probability(mask.margins, state.threshold, max(1, len(structure.prompts)))


def _fields(structure: RoiStructure) -> dict[str, np.ndarray]:
    """Return each map of a structure on the cells of its ROI, (c, c, c) float32."""
    assert structure.mask is not None
    probability = _probability(structure)
    error = label_error(probability, structure.mask.margins)
    return {"probability": probability, "uncertainty": error}


def _paste(
    structures: Sequence[RoiStructure], fields: Sequence[np.ndarray], mask: BoxMask
) -> BoxMask:
    """Return a map on the grid of the image, in a box that holds the mask and all large values."""
    box_ijk = mask.box_ijk
    rois = [structure.mask.roi for structure in structures if structure.mask is not None]
    for roi, field in zip(rois, fields, strict=True):
        _, own_box_ijk = roi.paste_box(field, LEAST)
        box_ijk = hull_of_boxes(box_ijk, own_box_ijk)
    largest = np.zeros([stop - start for start, stop in box_ijk], dtype=np.float32, order="F")
    for roi, field in zip(rois, fields, strict=True):
        np.maximum(largest, roi.sample_box(field, box_ijk), out=largest)
    values = np.asfortranarray(np.rint(largest * LEVELS).astype(np.uint8))
    return BoxMask(values, box_ijk, mask.shape_ijk, mask.affine_mm)
