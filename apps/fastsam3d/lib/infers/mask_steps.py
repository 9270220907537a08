"""The parts of a replay's step: what a prompt tells the network, and what it makes of the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lib.infers.corrections import CLICKED, correct, is_satisfied
from lib.infers.drawings import region
from lib.infers.mask_state import MaskState, RoiPrompt
from lib.infers.roi_cells import on_cells, places_along

OUTSIDE_LOGIT = -8.0
"""OUTSIDE_LOGIT: logit of cells that are not of the structure, as the network gets them."""

SCRIBBLE_CLICKS = 3
"""SCRIBBLE_CLICKS: clicks that a scribble becomes for the network: its ends and its middle."""


def clicks_of(prompts: Sequence[RoiPrompt]) -> tuple[np.ndarray, np.ndarray]:
    """Return the clicks (N, 3) that points and scribbles become, ROI voxels, and labels (N,)."""
    points, labels = [np.empty((0, 3))], [np.empty(0, dtype=np.int64)]
    for prompt in prompts:
        if prompt.subtype in ("point", "scribble"):
            places = clicks_of_one(prompt)
            points.append(places)
            labels.append(np.full(len(places), int(prompt.is_foreground), dtype=np.int64))
    return np.concatenate(points), np.concatenate(labels)


def clicks_of_one(prompt: RoiPrompt) -> np.ndarray:
    """Return the clicks (N, 3) of a point or a scribble, ROI voxel indices."""
    if prompt.subtype == "point":
        return prompt.points_roi
    return places_along(prompt.points_roi, np.linspace(0, 1, SCRIBBLE_CLICKS))


def is_satisfied_by(state: MaskState, prompt: RoiPrompt, roi_size: int) -> bool:
    """Return whether a point asks for nothing new: the mask is right there already.

    False for drawings, and while there is no mask: the first prompt always counts.
    """
    if prompt.subtype != "point" or not has_mask(state):
        return False
    return is_satisfied(state.margins, prompt.points_roi[0], prompt.is_foreground, roi_size)


def has_mask(state: MaskState) -> bool:
    """Return whether the mask has a cell; without one the network's answer is taken as it is."""
    return bool((state.margins > 0).any())


def corrected(state: MaskState, answer: np.ndarray, prompt: RoiPrompt, roi_size: int) -> np.ndarray:
    """Return the margins after a point or a scribble, (c, c, c).

    answer: (c, c, c) margins of the network's mask with this prompt.
    """
    margins = state.margins
    for point in clicks_of_one(prompt):
        label = int(prompt.is_foreground)
        margins = correct(margins, answer, point, label, roi_size, state.is_given)
    if not prompt.is_foreground:  # it says where the structure is not, and nothing else
        margins = np.minimum(margins, state.margins) if has_mask(state) else margins
    if prompt.subtype == "scribble":
        on_path = region("scribble", prompt.points_roi, roi_size)
        margins = np.where(on_path, np.minimum(margins, -CLICKED), margins)
    return margins


def joined(state: MaskState, margins: np.ndarray, decided: np.ndarray | None) -> np.ndarray:
    """Return the margins after a drawing on the structure, (CELLS,)*3.

    The mask before it stays: a second drawing shows another part of the structure. margins: of the
    drawing alone. decided: see `MaskState.fixed`.
    """
    before = on_cells(state.margins)
    if (before > 0).any():
        margins = np.maximum(margins, before)
    if decided is not None:
        margins = np.where(decided == 1, np.maximum(margins, CLICKED), margins)
        margins = np.where(decided == 0, np.minimum(margins, -CLICKED), margins)
    return margins


def without_region(state: MaskState, prompt: RoiPrompt, roi_size: int) -> MaskState:
    """Return the state after a box or a lasso around background: its cells are taken off."""
    cells = region(prompt.subtype, prompt.points_roi, roi_size)
    margins = on_cells(state.margins)
    margins = np.where(cells, np.minimum(margins, -CLICKED), margins)
    outside = np.where(cells, np.float32(0), np.float32(np.nan))
    low_res = without_cells(state.low_res, cells)
    return replace(state, low_res=low_res, margins=margins, fixed=fixed_cells(state.fixed, outside))


def fixed_cells(fixed: np.ndarray | None, newest: np.ndarray) -> np.ndarray | None:
    """Return the cells that are decided, (CELLS,)*3: 1 or 0, NaN elsewhere; None if there are none.

    fixed: those before. newest: those of the newest drawing, which count more.
    """
    if not np.isfinite(newest).any():
        return fixed
    return newest if fixed is None else np.where(np.isfinite(newest), newest, fixed)


def without_cells(logits: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return logits (s, s, s) that are low in some of the finer cells (c, c, c), bool.

    c is a multiple of s.
    """
    size, step = len(logits), len(cells) // len(logits)
    shares = cells.reshape(size, step, size, step, size, step).mean(axis=(1, 3, 5))
    return np.where(shares >= 0.5, np.float32(OUTSIDE_LOGIT), logits)
