"""The clicks of stock OHIF and 3D Slicer: two lists, whose order between them is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.imaging.box import Box
from lib.infers.places import Frame, format_shape, parse_numbers, shorten
from lib.infers.prompts import BACKGROUND, Prompt, Prompts

MAX_CLICKS = 100

STRUCTURE = 1
"""STRUCTURE: the number of the one structure that the clicks are about."""


def parse_click_lists(request: Mapping[str, Any], frame: Frame) -> Prompts:
    """Parse the clicks in `request["foreground"]` and `["background"]`, foreground first.

    A missing, None or empty entry means no clicks. Clicks outside the image are left out with a
    warning while others remain. Raises InputError if an entry is not a list of clicks, if there is
    no click on the structure, no click inside the image, or more than MAX_CLICKS.
    """
    warnings = []
    foreground = _parse_clicks(request, "foreground")
    background = _parse_clicks(request, "background")
    if not foreground and not background:
        raise InputError("there is no click; click on the structure to segment")
    if foreground == background:
        # OHIF sends the background clicks under both names while that list is active
        foreground = []
    if not foreground:
        raise InputError(
            "there are only background clicks; choose the label and click on the structure"
        )
    clicks = foreground + background
    if len(clicks) > MAX_CLICKS:
        raise InputError(f"{len(clicks)} clicks are too many; send at most {MAX_CLICKS}")
    points = np.array(clicks, dtype=np.float64)
    points_ijk = frame.to_ijk(points)
    structures = [STRUCTURE] * len(foreground) + [BACKGROUND] * len(background)

    inside = frame.is_inside(points_ijk)
    if not inside.all():
        outside = _describe_outside(points[~inside], frame)
        if not inside.any():
            raise InputError(f"{outside}; click inside the image")
        warnings.append(f"{outside}; left out")
    items = tuple(
        Prompt("point", (tuple(point),), structure)
        for point, structure, is_in in zip(points_ijk.tolist(), structures, inside, strict=True)
        if is_in
    )
    return Prompts(items, warnings=tuple(warnings))


def parse_box(roi: Any, shape_ijk: Sequence[int]) -> Box | None:
    """Return the half-open voxel box of Slicer's [i0, i1, j0, j1, k0, k1], None if there is none.

    Slicer's ends are inclusive voxel indices in either order; they may lie outside the image.
    Raises InputError if they are not six numbers, or if the box lies outside the image.
    """
    if roi is None or (isinstance(roi, list | tuple) and not roi):
        return None
    numbers = parse_numbers(roi, 6)
    if numbers is None:
        raise InputError(
            f"roi {shorten(roi)} is not a box; expected six numbers [i0, i1, j0, j1, k0, k1]"
        )
    ends = np.sort(np.rint(np.reshape(numbers, (3, 2))), axis=1)
    starts = np.clip(ends[:, 0], 0, shape_ijk)
    stops = np.clip(ends[:, 1] + 1, 0, shape_ijk)
    if np.any(starts >= stops):
        raise InputError(
            f"roi {shorten(roi)} lies outside the image of {format_shape(shape_ijk)} voxels; "
            "move it onto the image or remove it"
        )
    i, j, k = ((int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    return i, j, k


def _parse_clicks(request: Mapping[str, Any], key: str) -> list[tuple[float, ...]]:
    """Return the clicks of an entry as three floats each; none if it is missing, None or empty."""
    clicks = request.get(key)
    if clicks is None:
        return []
    if not isinstance(clicks, list | tuple | np.ndarray):
        raise InputError(f"{key} is {shorten(clicks)}; expected a list of clicks [[i, j, k], …]")
    return [_parse_click(click, key) for click in clicks]


def _parse_click(click: Any, key: str) -> tuple[float, ...]:
    numbers = parse_numbers(click, 3)
    if numbers is None:
        raise InputError(
            f"{key} click {shorten(click)} is not a place; "
            "expected three finite numbers, [i, j, k] or [x, y, z] in mm, for each click"
        )
    return numbers


def _describe_outside(points: np.ndarray, frame: Frame) -> str:
    """Return the start of a message about clicks (N, 3), as sent, outside the image."""
    first = frame.describe(points[0])
    if len(points) == 1:
        return f"click {first} lies outside {frame.describe_image()}"
    return f"{len(points)} clicks, the first at {first}, lie outside {frame.describe_image()}"
