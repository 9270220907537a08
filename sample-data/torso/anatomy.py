"""The tissues of all shapes, and the order in which they are painted."""

from dataclasses import dataclass
from functools import cache

from . import abdomen, skeleton, trunk
from .shapes import Shape


@dataclass(frozen=True)
class Tissue:
    """A material: the label of its organ, its mean HU and its texture's amplitude."""

    name: str
    label: str
    hu: float
    texture_hu: float = 0.0


@dataclass(frozen=True)
class Structure:
    """A shape filled in layers from the outside to the inside.

    ``layers`` are (depth in mm, tissue), shallowest first. ``only_in`` limits the shape to points
    that hold one of these tissues before.
    """

    shape: Shape
    layers: tuple[tuple[float, Tissue], ...]
    only_in: tuple[Tissue, ...] = ()


LABEL_NAMES = (
    "background",
    "body",
    "lung_right",
    "lung_left",
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "stomach",
    "gallbladder",
    "pancreas",
    "duodenum",
    "small_bowel",
    "colon",
    "heart",
    "aorta",
    "vena_cava",
    "portal_vein",
    "hepatic_vessels",
    "liver_lesion",
    "lung_nodule",
    "adrenal_glands",
    "ribs",
    "sternum",
    "hip_bones",
    "discs",
    *(f"vertebra_{name}" for name in skeleton.VERTEBRAE),
)
SIDES = {"right": 1, "left": -1}

AIR = Tissue("air", "background", -1000)
FAT = Tissue("fat", "body", -100, 12)
MUSCLE = Tissue("muscle", "body", 55, 14)
VISCERAL_FAT = Tissue("visceral fat", "body", -102, 16)
LIVER = Tissue("liver", "liver", 110, 10)
MUSCLE_SHEETS = ((0.0, MUSCLE), (4.5, FAT), (5.3, MUSCLE), (9.3, FAT), (10.0, MUSCLE))
STOMACH_CONTENT = Tissue("stomach content", "stomach", 22, 22)
COLON_CONTENT = Tissue("colon content", "colon", 30, 55)
BOWEL_CONTENT = Tissue("bowel content", "small_bowel", 28, 16)
LUNGS = {side: Tissue(f"{side} lung", f"lung_{side}", -850, 38) for side in SIDES}


def _filled(shape: Shape, name: str, label: str, hu: float, texture_hu: float = 0.0) -> Structure:
    return Structure(shape, ((0.0, Tissue(name, label, hu, texture_hu)),))


def _walled(
    shape: Shape, name: str, label: str, wall_mm: float, *, wall_hu: float, content_hu: float
) -> Structure:
    wall = Tissue(f"{name} wall", label, wall_hu, 6)
    return Structure(shape, ((0.0, wall), (wall_mm, Tissue(name, label, content_hu, 10))))


def _bone(
    shape: Shape, name: str, label: str, cortex_mm: float, spongy_hu: float = 200
) -> Structure:
    cortical = Tissue(f"cortical {name}", label, 800, 60)
    spongy = Tissue(f"spongy {name}", label, spongy_hu, 45)
    return Structure(shape, ((0.0, cortical), (cortex_mm, spongy)))


def _body_wall() -> list[Structure]:
    table = Tissue("table shell", "background", -420), Tissue("table core", "background", -900)
    skin = Tissue("skin", "body", 15, 10)
    return [
        Structure(trunk.table(), ((0.0, table[0]), (2.0, table[1]))),
        Structure(trunk.trunk(0, 0, 0, groove=9), ((0.0, skin), (2.0, FAT))),
        Structure(trunk.trunk(12, 15, 10, groove=7), MUSCLE_SHEETS),
        Structure(trunk.cavity(), ((0.0, MUSCLE), (1.5, VISCERAL_FAT))),
    ]


def _chest() -> list[Structure]:
    diaphragm = Tissue("diaphragm", "body", 50, 8)
    mediastinum = Tissue("mediastinal fat", "body", -85, 30)
    parts = [Structure(trunk.chest(), ((0.0, diaphragm), (3.0, mediastinum)))]
    for side, sign in SIDES.items():
        vessel = Tissue(f"{side} lung vessel", f"lung_{side}", 60)
        parts.append(Structure(trunk.lung(sign), ((0.0, LUNGS[side]),)))
        parts.append(Structure(trunk.lung_vessels(sign), ((0.0, vessel),), (LUNGS[side],)))
    return [
        *parts,
        _filled(trunk.lung_nodule(), "lung nodule", "lung_nodule", 30, 6),
        _filled(trunk.heart(), "heart muscle", "heart", 105, 10),
        _filled(trunk.heart_chambers(), "heart blood", "heart", 165, 6),
        _walled(trunk.oesophagus(), "oesophagus", "body", 2.5, wall_hu=55, content_hu=10),
    ]


def _gut() -> list[Structure]:
    gas = Tissue("stomach gas", "stomach", -960), Tissue("colon gas", "colon", -960)
    stomach_wall = Tissue("stomach wall", "stomach", 80, 8)
    colon_wall = Tissue("colon wall", "colon", 70, 8)
    bowel_wall = Tissue("bowel wall", "small_bowel", 90, 8)
    bubbles = abdomen.gut_gas()
    mesentery = Tissue("mesentery vessel", "body", 140)
    return [
        Structure(abdomen.mesentery_vessels(), ((0.0, mesentery),), (VISCERAL_FAT,)),
        Structure(abdomen.small_bowel(), ((0.0, bowel_wall), (2.5, BOWEL_CONTENT))),
        Structure(abdomen.colon(), ((0.0, colon_wall), (2.5, COLON_CONTENT))),
        _walled(abdomen.duodenum(), "duodenum", "duodenum", 2.5, wall_hu=85, content_hu=25),
        Structure(abdomen.stomach(), ((0.0, stomach_wall), (4.0, STOMACH_CONTENT))),
        Structure(bubbles, ((0.0, gas[0]),), (STOMACH_CONTENT,)),
        Structure(bubbles, ((0.0, gas[1]),), (COLON_CONTENT,)),
    ]


def _solid_organs() -> list[Structure]:
    parts = [
        _filled(abdomen.pancreas(), "pancreas", "pancreas", 95, 18),
        _filled(abdomen.spleen(), "spleen", "spleen", 120, 8),
        Structure(abdomen.liver(), ((0.0, LIVER),)),
        Structure(
            abdomen.hepatic_vessels(),
            ((0.0, Tissue("hepatic vessel", "hepatic_vessels", 160)),),
            (LIVER,),
        ),
        _filled(abdomen.liver_lesion(), "liver lesion", "liver_lesion", 60, 12),
        _filled(abdomen.gallbladder(), "gallbladder", "gallbladder", 8, 3),
    ]
    for side, sign in SIDES.items():
        label = f"kidney_{side}"
        cortex = Tissue(f"{side} renal cortex", label, 195, 8)
        medulla = Tissue(f"{side} renal medulla", label, 160, 14)
        parts += [
            Structure(abdomen.kidney(sign), ((0.0, cortex), (7.0, medulla))),
            _filled(abdomen.kidney_vein(sign), f"{side} renal vein", "body", 140, 6),
            _filled(abdomen.adrenal(sign), f"{side} adrenal", "adrenal_glands", 70, 8),
        ]
    return parts


def _vessels() -> list[Structure]:
    return [
        _filled(trunk.vena_cava(), "vena cava", "vena_cava", 150, 8),
        _filled(trunk.aorta(), "aorta", "aorta", 170, 5),
        _filled(abdomen.portal_vein(), "portal vein", "portal_vein", 160, 5),
        _filled(abdomen.splenic_vein(), "splenic vein", "portal_vein", 158, 5),
    ]


def _back() -> list[Structure]:
    parts = []
    for side, sign in SIDES.items():
        sheath = (0.0, VISCERAL_FAT), (1.2, MUSCLE)
        parts += [
            Structure(abdomen.psoas(sign), sheath),
            Structure(abdomen.back_muscle(sign), sheath),
            _bone(skeleton.hip_bone(sign), f"{side} hip bone", "hip_bones", 1.8),
        ]
    return parts


def _bones() -> list[Structure]:
    parts = [
        _bone(skeleton.ribs(), "rib", "ribs", 1.6, spongy_hu=230),
        _filled(skeleton.rib_cartilage(), "rib cartilage", "body", 110, 14),
        _bone(skeleton.sternum(), "sternum", "sternum", 1.6, spongy_hu=160),
        _filled(skeleton.spinal_canal(), "spinal fluid", "body", 15, 4),
        _filled(skeleton.spinal_cord(), "spinal cord", "body", 42, 3),
        _filled(skeleton.discs(), "disc", "discs", 85, 10),
    ]
    for name in skeleton.VERTEBRAE:
        parts.append(_bone(skeleton.vertebra(name), name, f"vertebra_{name}", 1.5))
    return parts


@cache
def structures() -> tuple[Structure, ...]:
    """Return all structures in painting order: a later structure hides earlier ones."""
    groups = (_body_wall, _chest, _back, _gut, _solid_organs, _vessels, _bones)
    return tuple(part for group in groups for part in group())


@cache
def tissues() -> tuple[Tissue, ...]:
    """Return every tissue once, air first."""
    layers = (tissue for part in structures() for _, tissue in part.layers)
    return tuple(dict.fromkeys((AIR, *layers)))
