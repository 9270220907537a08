"""The clicks of a request: parsed once, checked, in the order in which they are replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.errors import InputError

FOREGROUND, BACKGROUND = 1, 0
MAX_CLICKS = 100

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Clicks on the stored image; `points_ijk[0]` is the one that the ROI is centred on.

    points_ijk: (N, 3) float64, N >= 1, stored voxel indices, all inside the image: first the
        foreground clicks in the order sent, then the background clicks in the order sent.
    labels: (N,) int64, 1 foreground, 0 background.
    within_ijk: half-open box of stored voxels ((i0, i1), (j0, j1), (k0, k1)) that the mask is
        limited to.
    warnings: sentences for the user about what was left out.
    """

    points_ijk: np.ndarray
    labels: np.ndarray
    within_ijk: Box | None = None
    warnings: tuple[str, ...] = ()

    @property
    def voxels_ijk(self) -> np.ndarray:
        """(N, 3) int, the stored voxels that were clicked."""
        return np.rint(self.points_ijk).astype(np.intp)

    def is_within(self, i: int, j: int, k: int) -> bool:
        """Whether a stored voxel lies in the box that the mask is limited to."""
        if self.within_ijk is None:
            return True
        bounds = zip((i, j, k), self.within_ijk, strict=True)
        return all(start <= index < stop for index, (start, stop) in bounds)


def parse_prompts(request: Mapping[str, Any], shape_ijk: Sequence[int]) -> Prompts:
    """The clicks in `request["foreground"]`, `["background"]` and the box in `["roi"]`.

    shape_ijk: the stored image's. A missing, None or empty entry holds nothing. Clicks outside the
    image are left out with a warning while others remain. Raises InputError for anything that is no
    list of [i, j, k] clicks, for no click, none inside the image or more than MAX_CLICKS, and for a
    box that is not six numbers or misses the image.
    """
    warnings = []
    foreground = _parse_clicks(request, "foreground")
    background = _parse_clicks(request, "background")
    if not foreground and not background:
        raise InputError("there is no click; click on the structure to segment")
    if foreground == background:
        # OHIF sends the row of background clicks under both names while that row is the active one.
        foreground = []
        warnings.append(
            "foreground and background are the same clicks; they are used as background only"
        )
    elif not foreground:
        warnings.append("there are only background clicks; a structure needs a foreground click")

    clicks = foreground + background
    if len(clicks) > MAX_CLICKS:
        raise InputError(f"{len(clicks)} clicks are too many; send at most {MAX_CLICKS}")
    points_ijk = np.array(clicks, dtype=np.float64)
    labels = np.array(
        [FOREGROUND] * len(foreground) + [BACKGROUND] * len(background), dtype=np.int64
    )

    inside = np.all((points_ijk >= -0.5) & (points_ijk < np.array(shape_ijk) - 0.5), axis=1)
    if not inside.all():
        where = _describe_outside(points_ijk[~inside], shape_ijk)
        if not inside.any():
            raise InputError(f"{where}; click inside the image")
        warnings.append(f"{where}; left out")
    within_ijk = _parse_box(request.get("roi"), shape_ijk)
    return Prompts(points_ijk[inside], labels[inside], within_ijk, tuple(warnings))


def _parse_clicks(request: Mapping[str, Any], key: str) -> list[tuple[float, ...]]:
    """The clicks under `key` as three floats each; none where it is missing, None or empty."""
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
            f"{key} click {_shorten(click)} is not a voxel index; "
            "expected three finite numbers [i, j, k] for each click"
        )
    return numbers


def _parse_box(roi: Any, shape_ijk: Sequence[int]) -> Box | None:
    """Half-open voxel box of Slicer's [i0, i1, j0, j1, k0, k1].

    Slicer's ends are inclusive voxel indices, come in either order and may overhang the image.
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
    """`values` as floats if they are `count` finite numbers (True and "1" are none), else None."""
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != count:
        return None
    kinds = int | float | np.integer | np.floating
    if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except OverflowError:  # an int beyond the largest float
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _describe_outside(points_ijk: np.ndarray, shape_ijk: Sequence[int]) -> str:
    first = f"({', '.join(f'{value:.6g}' for value in points_ijk[0])})"
    image = f"outside the image of {_format_shape(shape_ijk)} voxels"
    if len(points_ijk) == 1:
        return f"click {first} lies {image}"
    return f"{len(points_ijk)} clicks, the first at {first}, lie {image}"


def _format_shape(shape_ijk: Sequence[int]) -> str:
    return " × ".join(str(length) for length in shape_ijk)


def _shorten(value: Any) -> str:
    """`value` as it was sent, but no longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
