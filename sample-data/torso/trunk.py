"""The body wall, the diaphragm and the organs of the chest. RAS mm: +x right, +y front, +z head.

The origin is the body's centre at the height of the twelfth thoracic vertebra.
"""

import numpy as np

from .shapes import (
    Shape,
    complement,
    ellipsoid,
    grow,
    half_space,
    intersect,
    unbounded,
    unite,
    wavy,
)
from .tubes import tube, vessel_tree

HEIGHT_MM = (-600.0, 600.0)  # beyond every usual field of view, so no grid reaches an end


def _bump(z: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Return a smooth bell curve of height 1 along z."""
    return np.exp(-np.square((z - np.float32(centre)) / np.float32(width)))


def trunk(side: float, front: float, back: float, groove: float = 0.0) -> Shape:
    """The body's outline moved inwards by ``side``, ``front`` and ``back`` mm.

    An upright cylinder over a superellipse of exponent 2.5, narrower at the waist and towards the
    shoulders, bulging at the belly; ``groove`` is the depth in mm of the furrow along the spine.
    """

    def field(x, y, z):
        taper = 40 * (1 - _bump(np.maximum(z, 30), 30, 190))
        half_width = 168 - 13 * _bump(z, -60, 70) - taper - np.float32(side)
        front_depth = 100 + 9 * _bump(z, -90, 80) - taper / 2 - np.float32(front)
        half_depth = np.where(y > 0, front_depth, np.float32(108 - back))
        u = (x - 2 * np.sin(z * np.float32(0.017))) / half_width
        v = (y - 3 * np.sin(x * np.float32(0.021))) / half_depth
        u2, v2 = u * u, v * v
        level = (u2 * np.sqrt(np.abs(u)) + v2 * np.sqrt(np.abs(v))) ** np.float32(0.4)
        size = (half_width * u2 + half_depth * v2) / (u2 + v2 + np.float32(1e-6))
        distance = (level - 1) * np.maximum(size, 50)
        if groove:
            distance += np.float32(groove) * np.exp(-np.square(x / 24)) * np.clip(-v, 0, 1)
        return distance

    low = (side - 171, back - 116, HEIGHT_MM[0])
    high = (171 - side, 113 - front, HEIGHT_MM[1])
    return Shape(field, np.array([low, high]))


def cavity(inset: float = 0.0) -> Shape:
    """The space inside ribs and abdominal muscles, smaller by ``inset`` mm on all sides."""
    return trunk(27 + inset, 25 + inset, 34 + inset)


def _dome(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the diaphragm's height z in mm: the right dome is higher than the left one."""
    right = 68 - 78 * (np.square((x - 66) / 96) + np.square((y - 18) / 88))
    left = 52 - 74 * (np.square((x + 68) / 92) + np.square((y - 14) / 86))
    gap = np.maximum(24 - np.abs(right - left), 0)
    return np.maximum(right, left) + gap * gap / 96 + 3 * np.sin(x / 19 + y / 27)


def below_diaphragm(distance: float) -> Shape:
    """The space at least about ``distance`` mm below the diaphragm; above it if negative."""
    slope = np.float32(1.35)  # the dome's usual steepness turns height into distance
    return unbounded(lambda x, y, z: (z - _dome(x, y)) / slope + np.float32(distance))


def above_diaphragm(distance: float) -> Shape:
    """The space at least about ``distance`` mm above the diaphragm."""
    return complement(below_diaphragm(-distance))


def chest() -> Shape:
    """The inside of the chest with the diaphragm, about 3 mm thick."""
    return intersect(cavity(), above_diaphragm(-1.5))


def lung(side: int) -> Shape:
    """The right (``side`` 1) or left (-1) lung."""
    inner = 17 if side > 0 else 19

    def mediastinum(x, y, z):
        waist = inner + 11 * _bump(y, -5, 30) - 9 * _bump(y, 75, 30) + 4 * np.sin(z / 31 + side)
        return waist - side * x

    apex = ellipsoid((side * 70, -5, 110), (95, 110, 170))
    return intersect(cavity(2.0), unbounded(mediastinum), above_diaphragm(2.5), apex, round_mm=9.0)


def lung_vessels(side: int) -> Shape:
    """Pulmonary vessels branching from the hilum into a lung."""
    root = (side * 30.0, -8.0, 128.0 if side > 0 else 134.0)
    return vessel_tree(lung(side), root, tips=330, tip_radius=1.15, seed=11 + side)


def lung_nodule() -> Shape:
    """A nodule in the left lung."""
    return wavy(ellipsoid((-94, 8, 118), (8, 7, 8.5)), 1.2, 9.0, 0.4)


def heart() -> Shape:
    """The heart with the roots of the great vessels; the apex points left and forward."""
    ventricles = ellipsoid((-30, 32, 98), (58, 40, 44), (0, 22, 28))
    atria = ellipsoid((12, 5, 118), (38, 34, 42))
    return intersect(unite(ventricles, atria, round_mm=14.0), grow(chest(), -1.0), round_mm=6.0)


def heart_chambers() -> Shape:
    """The blood inside the heart."""
    left = ellipsoid((-38, 25, 96), (36, 17, 22), (0, 22, 28))
    right = ellipsoid((-8, 47, 92), (38, 11, 26), (0, 15, 24))
    right_atrium = ellipsoid((28, 12, 108), (15, 20, 28))
    left_atrium = ellipsoid((2, -12, 122), (28, 14, 20))
    return unite(left, right, right_atrium, left_atrium, round_mm=3.0)


def aorta() -> Shape:
    """Ascending aorta, arch, and descending aorta to its bifurcation."""
    knots = [
        (2, 20, 128, 15),
        (10, 30, 170, 16),
        (4, 20, 212, 15),
        (-14, -18, 226, 13.5),
        (-24, -48, 196, 12.5),
        (-23, -42, 140, 12),
        (-20, -34, 80, 11.5),
        (-13, -24, 20, 10.5),
        (-7, -8, -50, 9.5),
        (-5, -4, -120, 9),
        (-4, -8, -140, 8.5),
    ]
    right = tube([(-4, -8, -138, 7), (22, -12, -170, 6), (48, -20, -215, 5.5)])
    left = tube([(-4, -8, -138, 7), (-30, -12, -168, 6), (-54, -20, -215, 5.5)])
    return unite(tube(knots), right, left, round_mm=2.0)


def vena_cava() -> Shape:
    """Inferior vena cava from its bifurcation to the right atrium."""
    trunk_knots = [
        (20, -16, -148, 10),
        (22, -14, -100, 10.5),
        (24, -16, -50, 11),
        (27, -18, 0, 11.5),
        (28, -12, 45, 12),
        (26, 4, 84, 12),
    ]
    right = tube([(20, -16, -146, 8), (42, -20, -180, 7), (60, -26, -220, 6)])
    left = tube([(20, -16, -146, 8), (-26, -20, -184, 7), (-60, -26, -220, 6)])
    return unite(tube(trunk_knots), right, left, round_mm=2.0)


def oesophagus() -> Shape:
    """Oesophagus from the chest to the stomach."""
    return tube([(2, -28, 230, 7), (-4, -26, 130, 7.5), (-14, -12, 76, 8), (-30, 0, 48, 8)])


def table() -> Shape:
    """The scanner's curved table top under the patient."""
    bow = unbounded(lambda x, y, z: np.abs(y + 133 - np.square(x) / 1100) - np.float32(9))
    sides = intersect(half_space((200, 0, 0), (1, 0, 0)), half_space((-200, 0, 0), (-1, 0, 0)))
    return intersect(bow, sides, round_mm=6.0)
