"""Corrections: what a further click changes in the mask before it.

The network answers each click with a whole new mask, which is right near the click and often worse
elsewhere. So the new mask is taken near the click, and far from it only in part. Masks are given by
their margins: the logits minus the threshold, positive inside the mask.

    after = before + reach × (answer - before) ± PUSH × push

`reach` falls from 1 at the click to the rule's `far` far away. A click far from the border of the
mask tells of a large error, so the distance between them scales both `reach` and `push`.

A mask that was given to start from is more reliable than an answer. There a click changes less, and
only towards its own label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """How far a click changes a mask.

    per_depth, per_radius: the standard deviation of the reach is the sum of the click's distance
    from the mask's border and of the radius of a ball of the mask's volume, times these. far: share
    of the answer that is taken far from the click. opposed: factor for changes against the click:
    removals by a foreground click, additions by a background click.
    """

    per_depth: float
    per_radius: float
    far: float
    opposed: float


ANSWERED = Rule(per_depth=1.0, per_radius=0.4, far=0.1, opposed=0.7)
"""ANSWERED: rule for a mask that is an answer to earlier prompts."""

GIVEN_ADD = Rule(per_depth=0.5, per_radius=0.2, far=0.0, opposed=0.0)
GIVEN_REMOVE = Rule(per_depth=0.4, per_radius=0.1, far=0.0, opposed=0.0)
"""GIVEN_ADD, GIVEN_REMOVE: rules for foreground and background clicks on a given mask."""

LEAST_REACH, LEAST_PUSH = 2.0, 1.5
"""LEAST_REACH, LEAST_PUSH: smallest standard deviations of reach and push, in cells."""

PUSH = 1.0
"""PUSH: what a click adds at its place, in the unit of logits, towards its own label."""

CLICKED = 1.0
"""CLICKED: least distance of the clicked cell from the threshold, on the side of its label."""


def correct(
    before: np.ndarray | None,
    answer: np.ndarray,
    point_roi: np.ndarray,
    label: int,
    roi_size: int,
    is_given: bool = False,
) -> np.ndarray:
    """Return the margins after a click, (c, c, c) float32; the inputs are not changed.

    before: margins (c, c, c) of the mask that was clicked; None at the first click. answer: margins
    (c, c, c) of the network's mask with this click, which are its logits minus its threshold.
    point_roi: (3,) ROI voxel indices of the click. label: 1 foreground, 0 background. roi_size: ROI
    voxels along each axis. is_given: `before` descends from a mask that was given to start from.

    The first answer is returned as it is, and so is any answer to an empty mask. A click that the
    mask satisfies (foreground inside of it, background outside) changes nothing: `before` is
    returned.
    """
    if before is None or not (before > 0).any():
        return answer
    if is_satisfied(before, point_roi, label, roi_size):
        return before
    cells = len(before)
    place = cell_place(point_roi, roi_size, cells)
    depth = border_distance(before, place, bool(label))
    radius = ball_radius(before)
    rule = ANSWERED
    if is_given:
        rule = GIVEN_ADD if label else GIVEN_REMOVE
    deviation = max(LEAST_REACH, rule.per_depth * depth + rule.per_radius * radius)
    sign = 1 if label else -1
    reach = np.float32(rule.far) + np.float32(1 - rule.far) * bell(cells, place, deviation)
    change = answer - before
    change *= np.where(sign * change < 0, np.float32(rule.opposed) * reach, reach)
    after = before + change
    after += sign * PUSH * bell(cells, place, max(LEAST_PUSH, depth))
    cell = nearest_cell(place, cells)
    after[cell] = sign * max(CLICKED, sign * float(after[cell]))
    return after


def is_satisfied(margins: np.ndarray, point_roi: np.ndarray, label: int, roi_size: int) -> bool:
    """Return whether the cell of a click has its label already; see :func:`correct`."""
    cells = len(margins)
    cell = nearest_cell(cell_place(point_roi, roi_size, cells), cells)
    return bool(margins[cell] > 0) == bool(label)


def cell_place(point_roi: np.ndarray, roi_size: int, cells: int) -> np.ndarray:
    """Return the place of ROI voxel indices (3,) in cells, (3,); 0 is the first cell's centre."""
    return (np.asarray(point_roi) + 0.5) * cells / roi_size - 0.5


def nearest_cell(place: np.ndarray, cells: int) -> tuple[int, int, int]:
    """Return the index of the cell that holds a place, as the random walker takes its seeds."""
    i, j, k = (place + 0.5).astype(int).clip(0, cells - 1).tolist()
    return i, j, k


def border_distance(margins: np.ndarray, place: np.ndarray, to_mask: bool) -> float:
    """Return the distance in cells from a place (3,) to the mask, or to the cells outside of it.

    Return 0 if there are no such cells.
    """
    other = (margins > 0) == to_mask
    if not other.any():
        return 0.0
    i, j, k = (np.square(np.arange(len(margins)) - along) for along in place)
    squares = i[:, None, None] + j[:, None] + k
    return float(np.sqrt(squares[other].min()))


def ball_radius(margins: np.ndarray) -> float:
    """Return the radius in cells of a ball of the mask's volume."""
    return float((3 / (4 * np.pi) * np.count_nonzero(margins > 0)) ** (1 / 3))


def bell(cells: int, place: np.ndarray, deviation: float) -> np.ndarray:
    """Return a Gaussian that is 1 at a place (3,), (cells,)*3 float32. deviation: in cells."""
    i, j, k = (
        np.exp(-0.5 * np.square((np.arange(cells) - along) / deviation)).astype(np.float32)
        for along in place
    )
    return i[:, None, None] * j[:, None] * k
