"""The organs of the abdomen and the large muscles of the back (RAS mm)."""

import numpy as np

from .shapes import (
    Shape,
    ellipsoid,
    grow,
    half_space,
    intersect,
    subtract,
    unbounded,
    unite,
    wavy,
)
from .trunk import below_diaphragm, cavity
from .tubes import tube, vessel_tree


def liver() -> Shape:
    """A large right lobe under the right dome, a left lobe that thins out towards the stomach."""
    bulk = ellipsoid((52, 12, 2), (112, 92, 92), (0, -8, 0))

    def lower_edge(x, y, z):  # slopes up to the left, and a little to the front
        return (-76 + np.float32(0.47) * (96 - x) + np.float32(0.16) * y - z) / np.float32(1.15)

    left_back = half_space((24, -38, 0), (-0.72, -0.69, 0.0))
    parts = (cavity(2.5), below_diaphragm(3.5), unbounded(lower_edge), left_back)
    rough = intersect(wavy(bulk, 3.0, 95.0, 0.7), *parts, round_mm=16.0)
    return subtract(rough, grow(kidney(1), 3.0), _liver_hilum(), round_mm=8.0)


def _liver_hilum() -> Shape:
    return ellipsoid((26, -2, -24), (26, 15, 17), (0, 30, 20))


def portal_vein() -> Shape:
    """Portal vein outside the liver, from behind the pancreas to the hilum."""
    return tube([(-4, 10, -52, 7), (8, 6, -38, 7), (22, 0, -18, 7.5), (38, 2, -4, 7)])


def hepatic_vessels() -> Shape:
    """Portal branches from the hilum and hepatic veins towards the vena cava."""
    portal = vessel_tree(liver(), (38.0, 2.0, -4.0), tips=60, tip_radius=1.8, seed=3)
    veins = vessel_tree(liver(), (28.0, -10.0, 44.0), tips=45, tip_radius=2.0, seed=5)
    return unite(portal, veins)


def liver_lesion() -> Shape:
    """A lobulated mass in the right lobe."""
    core = ellipsoid((98, 8, 2), (18, 16, 17), (0, 20, 30))
    bud = ellipsoid((86, 20, -6), (11, 10, 10))
    return wavy(unite(core, bud, round_mm=8.0), 1.6, 22.0, 0.3)


def gallbladder() -> Shape:
    """A pear under the liver."""
    return tube([(34, 20, -30, 6), (44, 36, -44, 12), (52, 50, -58, 15)])


def spleen() -> Shape:
    """A curved wedge between the left dome, the ribs and the stomach."""
    bulk = wavy(ellipsoid((-104, -34, 4), (35, 50, 66), (18, 14, 24)), 4.0, 90.0, 2.0)
    hilum = ellipsoid((-66, -8, 6), (24, 34, 52), (0, 0, 20))
    parts = subtract(bulk, hilum, grow(kidney(-1), 3.0), round_mm=8.0)
    return intersect(parts, cavity(2.5), below_diaphragm(3.5), round_mm=6.0)


def kidney(side: int) -> Shape:
    """The right (``side`` 1) or left (-1) kidney with its sinus cut out."""
    x, y, z = (65, -44, -62) if side > 0 else (-64, -47, -42)
    bean = ellipsoid((x, y, z), (27, 24, 55 if side > 0 else 58), (-12, side * 12, side * 35))
    sinus = ellipsoid((x - side * 24, y + 11, z), (21, 10, 22), (-12, side * 12, side * 35))
    return wavy(subtract(bean, sinus, round_mm=10.0), 1.3, 40.0, 1.0 + side)


def kidney_vein(side: int) -> Shape:
    """The renal vein from the sinus to the midline."""
    x, y, z = (65, -44, -62) if side > 0 else (-64, -47, -42)
    inner = (26, -16, -48) if side > 0 else (20, -2, -36)
    return tube([(x - side * 14, y + 8, z, 5), (x - side * 28, y + 22, z + 2, 5), (*inner, 5.5)])


def adrenal(side: int) -> Shape:
    """A thin gland above the kidney."""
    x = 46 if side > 0 else -46
    one = tube([(x, -24, 6, 3), (x + side * 2, -38, 0, 2.5), (x + side * 4, -50, -6, 2)])
    two = tube([(x, -26, 4, 3), (x + side * 12, -40, -4, 2)])
    return unite(one, two)


def stomach() -> Shape:
    """Fundus under the left dome, body and antrum sweeping to the right."""
    sack = tube(
        [
            (-58, -22, 40, 20),
            (-62, -6, 22, 30),
            (-60, 20, -8, 30),
            (-46, 42, -38, 25),
            (-16, 50, -56, 20),
            (12, 40, -54, 15),
            (28, 26, -46, 11),
        ]
    )
    shaped = subtract(wavy(sack, 5.0, 75.0, 0.2), grow(liver(), 2.0), round_mm=6.0)
    return intersect(shaped, below_diaphragm(3.5), cavity(3.0), round_mm=6.0)


def duodenum() -> Shape:
    """The C around the pancreas' head."""
    return tube(
        [
            (28, 26, -46, 11),
            (46, 12, -52, 12),
            (50, 4, -80, 13),
            (34, 4, -104, 13),
            (0, 10, -106, 12),
            (-24, 14, -88, 11),
        ]
    )


def pancreas() -> Shape:
    """Head in the duodenum's C, tail towards the spleen."""
    gland = tube(
        [
            (34, 8, -82, 12),
            (30, 10, -64, 13),
            (8, 18, -50, 10),
            (-22, 12, -36, 10),
            (-54, -12, -18, 10),
            (-76, -22, -8, 8),
        ]
    )
    return wavy(gland, 2.2, 17.0, 0.5)


def splenic_vein() -> Shape:
    """Vein along the pancreas' back, from the spleen to the portal vein."""
    return tube([(-78, -22, 0, 4), (-54, -20, -20, 4.5), (-24, 2, -38, 5), (-4, 10, -52, 6)])


def colon() -> Shape:
    """Ascending, transverse and descending colon with haustra."""
    knots = [
        (96, 2, -210, 25),
        (104, 2, -165, 25),
        (104, 4, -120, 22),
        (88, 30, -96, 21),
        (50, 60, -112, 20),
        (0, 68, -122, 20),
        (-50, 62, -104, 19),
        (-88, 36, -66, 18),
        (-106, 0, -46, 17),
        (-112, -18, -90, 16),
        (-112, -14, -150, 15),
        (-96, -4, -210, 15),
    ]
    return intersect(tube(knots, bead_mm=2.2), cavity(3.0), round_mm=5.0)


def small_bowel() -> Shape:
    """Loops in the middle of the abdomen, in three layers."""
    knots = []
    for layer, depth in enumerate((14.0, 38.0, 60.0)):
        for row, z in enumerate(np.arange(-92.0, -240.0, -26.0)):
            reach = 62.0 - 5 * layer
            for step in (-1.0, -0.33, 0.33, 1.0):
                sideways = step * reach * (1 if (row + layer) % 2 else -1)
                ripple = 7 * np.sin(3.1 * step + row + 2 * layer)
                knots.append((sideways - 4, depth + ripple, z + 5 * np.cos(2.3 * step + row), 12.0))
    return intersect(tube(knots, bead_mm=1.5), cavity(4.0), round_mm=4.0)


def gut_gas() -> Shape:
    """Gas in stomach and bowel; it ends at a level fluid line and lies in front of it."""
    bubbles = (
        ((-52, 44, -14), (50, 60, 50), 34.0),
        ((10, 66, -122), (48, 40, 40), 71.0),
        ((100, 10, -122), (44, 50, 32), 11.0),
        ((-106, -8, -64), (40, 50, 26), 4.0),
        ((16, 62, -170), (30, 30, 18), 63.0),
    )
    return unite(
        *(
            intersect(ellipsoid(centre, radii), half_space((0, level, 0), (0, -1, 0)))
            for centre, radii, level in bubbles
        )
    )


def mesentery_vessels() -> Shape:
    """Small vessels that fan out to the gut from the front of the aorta."""
    fan = ellipsoid((2, 36, -116), (84, 34, 80))
    return vessel_tree(fan, (2.0, 14.0, -64.0), tips=90, tip_radius=1.1, seed=17)


def psoas(side: int) -> Shape:
    """The psoas muscle beside the lumbar spine."""
    return tube(
        [
            (side * 26, -46, -20, 6),
            (side * 32, -42, -60, 13),
            (side * 40, -38, -110, 19),
            (side * 50, -32, -160, 23),
            (side * 60, -22, -230, 24),
        ]
    )


def back_muscle(side: int) -> Shape:
    """Erector spinae, and quadratus lumborum in front of it."""
    heights = np.arange(-300.0, 301.0, 60.0)
    inner = tube([(side * 21, -86, z, 14 - 0.012 * z) for z in heights])
    outer = tube([(side * (42 + 0.01 * z), -82, z, 14 - 0.014 * z) for z in heights])
    loin = ellipsoid((side * 74, -54, -120), (22, 13, 95), (0, 0, side * 28))
    return unite(inner, outer, loin, round_mm=8.0)
