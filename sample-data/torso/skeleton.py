"""Spine, ribs, breastbone and hip bones of the torso (RAS mm)."""

from itertools import pairwise

import numpy as np

from .shapes import (
    Shape,
    complement,
    ellipsoid,
    grow,
    intersect,
    placed,
    subtract,
    unbounded,
    unite,
    wavy,
)
from .trunk import cavity
from .tubes import tube

# VERTEBRAE: by name, z of the vertebral body's centre and its height, mm.
VERTEBRAE = {
    "T4": (211.0, 18.0),
    "T5": (188.0, 18.5),
    "T6": (164.5, 19.5),
    "T7": (140.0, 20.0),
    "T8": (114.5, 20.5),
    "T9": (88.5, 21.0),
    "T10": (61.5, 22.0),
    "T11": (33.0, 23.0),
    "T12": (3.0, 24.0),
    "L1": (-29.5, 26.0),
    "L2": (-64.0, 27.0),
    "L3": (-100.0, 28.0),
    "L4": (-136.5, 28.0),
    "L5": (-172.5, 27.0),
}
RIB_PITCH_MM = 26.6


def spine_centre(z: float) -> np.ndarray:
    """Return the centre (x, y, z) of the curved spine at height z."""
    return np.array([3 * np.sin(z / 70), -50 + 9 * np.cos(np.pi * (z + 105) / 230), z])


def _tilt(z: float) -> np.ndarray:
    """Return the rotation [3, 3] that aligns the local z axis with the spine."""
    along = spine_centre(z + 1) - spine_centre(z - 1)
    along /= np.linalg.norm(along)
    right = np.cross([0, 1, 0], along)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(along, right), along], axis=1)


def _disc_cylinder(half_height: float, waist: float) -> Shape:
    """Oval column with a flat back, in local coordinates; ``waist`` narrows its middle."""

    def side(x, y, z):
        bulge = 1 - np.float32(waist) * (1 - np.square(z / np.float32(half_height)))
        depth = np.where(y > 0, 17.0, 14.0).astype(np.float32)
        return (np.sqrt(np.square(x / 22) + np.square(y / depth)) - bulge) * 18

    def ends(x, y, z):
        return np.abs(z) - np.float32(half_height)

    box = np.array([[-23.0, -16.0, -half_height], [23.0, 19.0, half_height]])
    return intersect(Shape(side, box), unbounded(ends), round_mm=4.0)


def _vertebra(half_height: float, lumbar: bool) -> Shape:
    """Body, arch and processes of a vertebra around the local origin."""
    body = _disc_cylinder(half_height, waist=0.11)
    canal = unbounded(lambda x, y, z: np.sqrt(np.square(x / 1.15) + np.square(y + 23)) - 10)
    arch = ellipsoid((0, -24, 0), (18, 15, 10))
    spinous = (
        ellipsoid((0, -46, -6), (3.5, 17, 10), (8, 0, 0))
        if lumbar
        else ellipsoid((0, -44, -12), (3.2, 19, 5.5), (38, 0, 0))
    )
    reach, back = (40, -26) if lumbar else (33, -36)
    processes = [tube([(s * 12, -20, 3, 5), (s * reach, back, 5, 3.5)]) for s in (-1, 1)]
    facets = [
        ellipsoid((s * 15, -30, end * (half_height + 1)), (5, 5, 7.5))
        for s in (-1, 1)
        for end in (-1, 1)
    ]
    posterior = subtract(unite(arch, spinous, *processes, *facets, round_mm=3.0), canal)
    return unite(body, posterior, round_mm=3.0)


def vertebra(name: str) -> Shape:
    """The whole vertebra ``name``, a key of ``VERTEBRAE``."""
    z, height = VERTEBRAE[name]
    scale = 1.0 - 0.0009 * (z + 100)
    local = _vertebra(height / 2 / scale, lumbar=name.startswith("L"))
    return placed(local, spine_centre(z), _tilt(z), scale)


def discs() -> Shape:
    """All discs between neighbouring vertebrae."""
    levels = list(VERTEBRAE.values())
    parts = []
    for (upper, upper_height), (lower, lower_height) in pairwise(levels):
        z = (upper - upper_height / 2 + lower + lower_height / 2) / 2
        gap = upper - lower - (upper_height + lower_height) / 2
        scale = 1.0 - 0.0009 * (z + 100)
        column = _disc_cylinder((gap + 1) / 2 / scale, waist=-0.03)
        parts.append(placed(column, spine_centre(z), _tilt(z), scale))
    return unite(*parts)


def spinal_canal() -> Shape:
    """The tube of fluid and cord behind the vertebral bodies."""
    return tube([(*(spine_centre(z) - [0, 23, 0]), 8.5) for z in np.arange(-230.0, 260.0, 20.0)])


def spinal_cord() -> Shape:
    """The cord inside the canal; it ends at L1."""
    heights = np.arange(-40.0, 260.0, 20.0)
    return tube([(*(spine_centre(z) - [0, 23, 0]), 4.5 if z > -30 else 2.0) for z in heights])


def _rib_angle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the angle in degrees from the back (0) over the flank (90) to the front (180)."""
    return np.rad2deg(np.arctan2(np.abs(x), -(y + 12)))


def _rib_cage(from_deg: np.ndarray, to_deg: np.ndarray) -> Shape:
    """Ribs 12, 11, ... in the chest wall, each between two angles [count]."""
    wall = cavity()
    count = len(to_deg)

    def field(x, y, z):
        angle = _rib_angle(x, y)
        sagging = 62 * np.square(np.sin(np.deg2rad(np.clip(angle, 0, 150)) * np.float32(0.6)))
        rising = 34 * np.square(np.clip(angle - 130, 0, 50) / 50)
        height = (z + sagging - rising + 4) / np.float32(RIB_PITCH_MM)
        number = np.clip(np.rint(height), 0, count - 1).astype(int)
        across = (height - number) * np.float32(0.82 * RIB_PITCH_MM)
        depth = wall.field(x, y, z) - np.float32(6.5)
        section = np.sqrt(np.square(across / 5.2) + np.square(depth / 3.4)) - 1
        ends = np.maximum(from_deg[number] - angle, angle - to_deg[number])
        return np.maximum(section * 4, ends * np.float32(1.5))

    top = RIB_PITCH_MM * (count + 1) + 40
    low, high = wall.box_mm + np.array([[-12.0], [12.0]])
    return Shape(field, np.array([[low[0], low[1], -90.0], [high[0], high[1], top]]))


def ribs() -> Shape:
    """The bony ribs of both sides; the last two end in the flank."""
    to_deg = np.array([68.0, 96.0, 128.0, 138.0, 141.0, 143.0, 145.0, 147.0, 149.0], np.float32)
    return _rib_cage(np.full(9, 17.0, np.float32), to_deg)


def rib_cartilage() -> Shape:
    """The cartilage between the upper ribs and the breastbone."""
    from_deg = np.array([180.0, 180, 128, 138, 141, 143, 145, 147, 149], np.float32)
    to_deg = np.array([0.0, 0, 150, 158, 166, 172, 174, 174, 174], np.float32)
    return _rib_cage(from_deg, to_deg)


def sternum() -> Shape:
    """The breastbone, in the chest wall's front."""
    plate = ellipsoid((1, 82, 158), (17, 40, 74))
    wall = cavity()
    return intersect(plate, grow(wall, 11.0), complement(grow(wall, 2.0)), round_mm=3.0)


def hip_bone(side: int) -> Shape:
    """The wing of the right (``side`` 1) or left (-1) hip bone."""
    plate = ellipsoid((side * 88, -32, -208), (58, 6.5, 86), (-14, 0, side * 46))
    return wavy(plate, 5.0, 150.0, 0.6 + side)
