"""Solid shapes: primitives, smooth set operations, placement.

A field maps RAS world coordinates x, y, z (float32 arrays of one common shape, in mm) to an
approximate signed distance in mm: negative inside, positive outside, about 1 mm per mm near the
surface. Fields are distances up to ``REACH_MM`` outside the surface; further out they are only
positive.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

REACH_MM = 12.0
FAR_MM = 1e3

Field = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Shape(NamedTuple):
    """A field and the box [2, 3] (lowest and highest corner, RAS mm) around its inside."""

    field: Field
    box_mm: np.ndarray


EVERYWHERE = np.array([[-np.inf] * 3, [np.inf] * 3])


def unbounded(field: Field) -> Shape:
    """Return the field as a shape without a box."""
    return Shape(field, EVERYWHERE)


def rotation(angles_deg: tuple[float, float, float]) -> np.ndarray:
    """Return the matrix [3, 3] (local to world) of rotations about x, y, z; right-handed."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def ellipsoid(
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    angles_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Shape:
    """Return an ellipsoid with half axes ``radii`` (mm), rotated by ``angles_deg``."""
    matrix = rotation(angles_deg)
    half = np.sqrt((matrix**2) @ np.square(radii))
    inverse_radii = 1 / np.asarray(radii)

    def field(x, y, z):
        local = _to_local(x, y, z, centre, matrix)
        scaled = [
            axis * np.float32(inverse) for axis, inverse in zip(local, inverse_radii, strict=True)
        ]
        gradient = [
            axis * np.float32(inverse) for axis, inverse in zip(scaled, inverse_radii, strict=True)
        ]
        level, slope = _norm(scaled), _norm(gradient)
        tiny = np.float32(1e-6)  # keeps the quotient finite and correct at the centre
        return (level - 1) * (level + tiny) / (slope + tiny * np.float32(min(inverse_radii)))

    return Shape(field, np.stack([np.subtract(centre, half), np.add(centre, half)]))


def capsules(starts: np.ndarray, stops: np.ndarray, radii: np.ndarray) -> Shape:
    """Return the union of n round-ended cones; starts, stops: [n, 3]; radii: [n, 2]."""
    widest = radii.max(axis=1, keepdims=True)
    low = np.minimum(starts, stops) - widest
    high = np.maximum(starts, stops) + widest

    def field(x, y, z):
        distance = np.full(x.shape, FAR_MM, np.float32)
        if x.size == 0:
            return distance
        least, most = _extent(x, y, z)
        near = ((low - REACH_MM < most) & (high + REACH_MM > least)).all(axis=1)
        for start, stop, ends in zip(starts[near], stops[near], radii[near], strict=True):
            np.minimum(distance, _capsule(x, y, z, start, stop, ends), out=distance)
        return distance

    return Shape(field, np.stack([low.min(axis=0), high.max(axis=0)]))


def _capsule(x, y, z, start, stop, radii) -> np.ndarray:
    """Return the distance to the axis minus the radius, which is linear along the axis."""
    axis = (stop - start).astype(np.float32)
    offset = [x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])]
    along = sum(o * a for o, a in zip(offset, axis, strict=True)) / np.float32(
        max(axis @ axis, 1e-6)
    )
    along = np.clip(along, 0, 1)
    distance = _norm([o - along * a for o, a in zip(offset, axis, strict=True)])
    return distance - np.float32(radii[0]) - along * np.float32(radii[1] - radii[0])


def unite(*shapes: Shape, round_mm: float = 0.0) -> Shape:
    """Return the union; ``round_mm`` fillets the seams."""

    def field(x, y, z):
        result = shapes[0].field(x, y, z)
        for shape in shapes[1:]:
            result = -_smooth_max(-result, -shape.field(x, y, z), round_mm)
        return result

    boxes = np.stack([shape.box_mm for shape in shapes])
    grown = round_mm / 4 * (len(shapes) - 1)
    return Shape(
        field, np.stack([boxes[:, 0].min(axis=0) - grown, boxes[:, 1].max(axis=0) + grown])
    )


def intersect(*shapes: Shape, round_mm: float = 0.0) -> Shape:
    """Return the intersection; ``round_mm`` rounds the edges."""

    def field(x, y, z):
        result = shapes[0].field(x, y, z)
        for shape in shapes[1:]:
            result = _smooth_max(result, shape.field(x, y, z), round_mm)
        return result

    boxes = np.stack([shape.box_mm for shape in shapes])
    return Shape(field, np.stack([boxes[:, 0].max(axis=0), boxes[:, 1].min(axis=0)]))


def subtract(shape: Shape, *others: Shape, round_mm: float = 0.0) -> Shape:
    """Return ``shape`` without ``others``."""
    return intersect(shape, *(complement(other) for other in others), round_mm=round_mm)


def complement(shape: Shape) -> Shape:
    """Return everything outside the shape."""
    return unbounded(lambda x, y, z: -shape.field(x, y, z))


def grow(shape: Shape, by_mm: float) -> Shape:
    """Return the shape with its surface moved outwards; inwards if ``by_mm`` is negative.

    Raises ValueError beyond ``REACH_MM``.
    """
    if by_mm > REACH_MM:
        raise ValueError(f"a shape cannot grow by {by_mm} mm: the limit is {REACH_MM} mm")
    margin = np.array([[-1.0], [1.0]]) * max(by_mm, 0.0)
    return Shape(lambda x, y, z: shape.field(x, y, z) - np.float32(by_mm), shape.box_mm + margin)


def wavy(shape: Shape, amplitude_mm: float, wavelength_mm: float, phase: float) -> Shape:
    """Return the shape with a wavy surface: a wave along the next axis shifts each coordinate."""
    wave = np.float32(2 * np.pi / wavelength_mm)
    size = np.float32(amplitude_mm)

    def field(x, y, z):
        return shape.field(
            x + size * np.sin(wave * y + np.float32(phase)),
            y + size * np.sin(wave * z + np.float32(phase + 1.9)),
            z + size * np.sin(wave * x + np.float32(phase + 4.1)),
        )

    return Shape(field, shape.box_mm + np.array([[-1.0], [1.0]]) * amplitude_mm)


def placed(shape: Shape, centre: np.ndarray, matrix: np.ndarray, scale: float) -> Shape:
    """Return a shape in local coordinates scaled, rotated by ``matrix`` and moved to ``centre``."""

    def field(x, y, z):
        local = _to_local(x, y, z, centre, matrix)
        return shape.field(*(axis / np.float32(scale) for axis in local)) * np.float32(scale)

    corners = np.array([shape.box_mm[list(pick), range(3)] for pick in np.ndindex(2, 2, 2)])
    corners = scale * corners @ matrix.T + centre
    return Shape(field, np.stack([corners.min(axis=0), corners.max(axis=0)]))


def half_space(point: tuple[float, float, float], outward: tuple[float, float, float]) -> Shape:
    """Return the half space behind the plane through ``point`` with the normal ``outward``."""
    nx, ny, nz = (np.asarray(outward) / np.linalg.norm(outward)).astype(np.float32)
    offset = np.float32(np.dot(point, (nx, ny, nz)))
    return unbounded(lambda x, y, z: nx * x + ny * y + nz * z - offset)


def _smooth_max(a: np.ndarray, b: np.ndarray, round_mm: float) -> np.ndarray:
    """Return a maximum whose crease is a parabola of width ``round_mm``; it is never smaller."""
    if round_mm == 0:
        return np.maximum(a, b)
    blend = np.maximum(np.float32(round_mm) - np.abs(a - b), 0)
    return np.maximum(a, b) + blend * blend * np.float32(0.25 / round_mm)


def _to_local(x, y, z, centre, matrix) -> list[np.ndarray]:
    """Return coordinates in the frame at ``centre`` whose axes are the matrix's columns."""
    dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), centre, strict=True))
    columns = np.asarray(matrix, np.float32).T
    return [dx * column[0] + dy * column[1] + dz * column[2] for column in columns]


def _extent(x, y, z) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates [3] of the points."""
    return np.array([c.min() for c in (x, y, z)]), np.array([c.max() for c in (x, y, z)])


def _norm(axes: list[np.ndarray]) -> np.ndarray:
    return np.sqrt(sum(axis * axis for axis in axes))
