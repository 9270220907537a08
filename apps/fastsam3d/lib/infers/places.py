"""Places in a request: parsed as numbers, and brought from the client's frame to stored indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS

DECIMALS = 2
"""DECIMALS: places in mm are rounded to this many decimals of a voxel."""

COORDINATES = ("ijk", "lps_mm")
"""COORDINATES: values of the request key ``coordinates``, the frame of its places; the first is the
default. ``lps_mm`` is the patient's frame of DICOM, in which viewers know a place."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The frame in which a client gives places on an image.

    coordinates: one of COORDINATES. shape_ijk: the shape of the stored image. affine_mm: (4, 4),
    stored index -> RAS mm.
    """

    coordinates: str
    shape_ijk: tuple[int, ...]
    affine_mm: np.ndarray

    @classmethod
    def of(
        cls,
        request: Mapping[str, Any],
        shape_ijk: Sequence[int],
        affine_mm: np.ndarray | None = None,
    ) -> Frame:
        """Return the frame that a request names; raises InputError for an unknown one.

        affine_mm: identity by default.
        """
        coordinates = request.get("coordinates")
        coordinates = COORDINATES[0] if coordinates is None else coordinates
        if coordinates not in COORDINATES:
            choices = ", ".join(COORDINATES)
            raise InputError(f"coordinates is {shorten(coordinates)}; choose one of {choices}")
        affine_mm = np.eye(4) if affine_mm is None else affine_mm
        return cls(coordinates, tuple(int(length) for length in shape_ijk), affine_mm)

    @property
    def is_mm(self) -> bool:
        return self.coordinates == "lps_mm"

    def to_ijk(self, points: np.ndarray) -> np.ndarray:
        """Return the stored indices (N, 3), float64, of places (N, 3) in this frame."""
        if not self.is_mm:
            return points
        points_ijk = apply_affine(np.linalg.inv(self.affine_mm), points @ RAS_TO_LPS)
        # the mask must not depend on the rounding of the conversion or on the digits that were sent
        return np.round(points_ijk, DECIMALS)

    def is_inside(self, points_ijk: np.ndarray) -> np.ndarray:
        """Return which stored indices (N, 3) lie in a voxel of the image, (N,) bool."""
        above = points_ijk >= -0.5
        return np.all(above & (points_ijk < np.array(self.shape_ijk) - 0.5), axis=1)

    def voxel_mm(self) -> np.ndarray:
        """Return the voxel sizes along I, J, K."""
        return voxel_sizes(self.affine_mm)

    def describe(self, point: Sequence[float]) -> str:
        """Return a place in this frame for a message."""
        return f"({', '.join(f'{value:.6g}' for value in point)}){' mm' if self.is_mm else ''}"

    def describe_image(self) -> str:
        """Return the image for a message about a place outside of it."""
        return f"the image of {format_shape(self.shape_ijk)} voxels"


def parse_numbers(values: Any, count: int) -> tuple[float, ...] | None:
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


def format_shape(shape_ijk: Sequence[int]) -> str:
    return " × ".join(str(length) for length in shape_ijk)


def shorten(value: Any) -> str:
    """Return a value as it was sent, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
