"""Clicks and box of a request: parsed, checked, and put in the order in which they are replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.box import Box, contains

FOREGROUND, BACKGROUND = 1, 0
MAX_CLICKS = 100

DECIMALS = 2
"""DECIMALS: clicks in mm are rounded to this many decimals of a voxel."""

COORDINATES = ("ijk", "lps_mm")
"""COORDINATES: values of the request key ``coordinates``, the frame of its clicks; the first is the
default. ``lps_mm`` is the patient's frame of DICOM, in which viewers know a click."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Clicks on the stored image; the ROI is centred on the first one.

    points_ijk: (N, 3) float64, N >= 1, stored voxel indices inside the image: first the foreground
        clicks in the order sent, then the background clicks in the order sent.
    labels: (N,) int64, 1 foreground, 0 background.
    within_ijk: half-open box of stored voxels that the mask is limited to, if any.
    warnings: messages for the user about clicks that were left out.
    """

    points_ijk: np.ndarray
    labels: np.ndarray
    within_ijk: Box | None = None
    warnings: tuple[str, ...] = ()

    @property
    def voxels_ijk(self) -> np.ndarray:
        """The clicked voxels, (N, 3) int stored indices."""
        return np.rint(self.points_ijk).astype(np.intp)

    def is_within(self, i: int, j: int, k: int) -> bool:
        """Return whether a stored voxel lies in the box that the mask is limited to."""
        return self.within_ijk is None or contains(self.within_ijk, i, j, k)


def parse_prompts(
    request: Mapping[str, Any], shape_ijk: Sequence[int], affine_mm: np.ndarray | None = None
) -> Prompts:
    """Parse the clicks in `request["foreground"]` and `["background"]` and the box in `["roi"]`.

    shape_ijk: the shape of the stored image. affine_mm: (4, 4), stored index -> RAS mm; identity by
    default. The clicks are in the frame that `request["coordinates"]` names. A missing, None or
    empty entry means no clicks. Clicks outside the image are left out with a warning while others
    remain. Raises InputError if an entry is not a list of [i, j, k] clicks, if there is no click,
    none inside the image or more than MAX_CLICKS, if the frame is unknown, and if the box is not
    six numbers or lies outside the image.
    """
    warnings = []
    foreground = _parse_clicks(request, "foreground")
    background = _parse_clicks(request, "background")
    if not foreground and not background:
        raise InputError("there is no click; click on the structure to segment")
    if foreground == background:
        # OHIF sends the background clicks under both names while that list is active
        foreground = []
        warnings.append(
            "foreground and background are the same clicks; they are used as background only"
        )
    elif not foreground:
        warnings.append("there are only background clicks; a structure needs a foreground click")

    clicks = foreground + background
    if len(clicks) > MAX_CLICKS:
        raise InputError(f"{len(clicks)} clicks are too many; send at most {MAX_CLICKS}")
    points = np.array(clicks, dtype=np.float64)
    unit, points_ijk = _to_stored_index(points, request.get("coordinates"), affine_mm)
    labels = np.array(
        [FOREGROUND] * len(foreground) + [BACKGROUND] * len(background), dtype=np.int64
    )

    inside = np.all((points_ijk >= -0.5) & (points_ijk < np.array(shape_ijk) - 0.5), axis=1)
    if not inside.all():
        outside = _describe_outside(points[~inside], unit, shape_ijk)
        if not inside.any():
            raise InputError(f"{outside}; click inside the image")
        warnings.append(f"{outside}; left out")
    within_ijk = _parse_box(request.get("roi"), shape_ijk)
    return Prompts(points_ijk[inside], labels[inside], within_ijk, tuple(warnings))


def _to_stored_index(
    points: np.ndarray, coordinates: Any, affine_mm: np.ndarray | None
) -> tuple[str, np.ndarray]:
    """Return the unit of points (N, 3) in a frame, for messages, and their stored indices."""
    if coordinates in (None, "ijk"):
        return "", points
    if coordinates != "lps_mm":
        choices = ", ".join(COORDINATES)
        raise InputError(f"coordinates is {_shorten(coordinates)}; choose one of {choices}")
    affine_mm = np.eye(4) if affine_mm is None else affine_mm
    points_ijk = apply_affine(np.linalg.inv(affine_mm), points @ RAS_TO_LPS)
    # the mask must not depend on the rounding of the conversion or on the digits that were sent
    return " mm", np.round(points_ijk, DECIMALS)


def _parse_clicks(request: Mapping[str, Any], key: str) -> list[tuple[float, ...]]:
    """Return the clicks of an entry as three floats each; none if it is missing, None or empty."""
    clicks = request.get(key)
    if clicks is None:
        return []
    if not isinstance(clicks, list | tuple | np.ndarray):
        raise InputError(f"{key} is {_shorten(clicks)}; expected a list of clicks [[i, j, k], …]")
    return [_parse_click(click, key) for click in clicks]


def _parse_click(click: Any, key: str) -> tuple[float, ...]:
    numbers = _parse_numbers(click, 3)
    if numbers is None:
        raise InputError(
            f"{key} click {_shorten(click)} is not a place; "
            "expected three finite numbers, [i, j, k] or [x, y, z] in mm, for each click"
        )
    return numbers


def _parse_box(roi: Any, shape_ijk: Sequence[int]) -> Box | None:
    """Return the half-open voxel box of Slicer's [i0, i1, j0, j1, k0, k1].

    Slicer's ends are inclusive voxel indices in either order; they may lie outside the image.
    """
    if roi is None or (isinstance(roi, list | tuple) and not roi):
        return None
    numbers = _parse_numbers(roi, 6)
    if numbers is None:
        raise InputError(
            f"roi {_shorten(roi)} is not a box; expected six numbers [i0, i1, j0, j1, k0, k1]"
        )
    ends = np.sort(np.rint(np.reshape(numbers, (3, 2))), axis=1)
    starts = np.clip(ends[:, 0], 0, shape_ijk)
    stops = np.clip(ends[:, 1] + 1, 0, shape_ijk)
    if np.any(starts >= stops):
        raise InputError(
            f"roi {_shorten(roi)} lies outside the image of {_format_shape(shape_ijk)} voxels; "
            "move it onto the image or remove it"
        )
    i, j, k = ((int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    return i, j, k


def _parse_numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return the values as floats; None unless they are `count` finite numbers, not True or "1"."""
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != count:
        return None
    kinds = int | float | np.integer | np.floating
    if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except OverflowError:  # an int larger than the largest float
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _describe_outside(points: np.ndarray, unit: str, shape_ijk: Sequence[int]) -> str:
    """Return the start of a message about clicks (N, 3), as sent, outside the image."""
    first = f"({', '.join(f'{value:.6g}' for value in points[0])}){unit}"
    image = f"outside the image of {_format_shape(shape_ijk)} voxels"
    if len(points) == 1:
        return f"click {first} lies {image}"
    return f"{len(points)} clicks, the first at {first}, lie {image}"


def _format_shape(shape_ijk: Sequence[int]) -> str:
    return " × ".join(str(length) for length in shape_ijk)


def _shorten(value: Any) -> str:
    """Return a value as it was sent, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
