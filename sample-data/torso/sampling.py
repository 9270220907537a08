"""Sample the torso: tissue, label and HU at world points, and noisy CT volumes."""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from tqdm import tqdm

from .anatomy import LABEL_NAMES, Structure, structures, tissues

LABELS = dict(enumerate(LABEL_NAMES))
HU_RANGE = (-1024, 3071)  # of twelve stored bits with the usual intercept, as in ct_series.py
BRICK = 32
AIR_NOISE = np.float32(0.4)  # relative to the noise in the body


def evaluate(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return label (uint8 [...]) and noise-free HU (float32 [...]) at points [..., 3], RAS mm."""
    x, y, z = np.moveaxis(np.asarray(points_mm, np.float32), -1, 0)
    tissue = _tissue_at(x, y, z)
    return _table("label")[tissue], _hu_at(tissue, x, y, z)


def sample(
    shape_ijk: tuple[int, int, int],
    affine_mm: np.ndarray,
    *,
    seed: int = 0,
    supersample: int = 2,
    noise_hu: float = 12.0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a CT of the torso on a voxel grid: HU int16 [I, J, K], labels uint8 [I, J, K].

    ``affine_mm`` [4, 4] maps voxel indices (i, j, k) to RAS mm in any orientation. The label is
    that of the voxel's centre. Where tissues meet, HU are the mean of ``supersample``³ points per
    voxel. ``seed`` determines the noise; its standard deviation is ``noise_hu``, less in air.
    ``progress`` shows a bar on a terminal.
    """
    image_hu = np.empty(shape_ijk, np.int16)
    labels = np.empty(shape_ijk, np.uint8)
    bricks = list(_bricks(shape_ijk))
    for brick in tqdm(bricks, desc="torso", unit="brick", disable=None if progress else True):
        image_hu[brick], labels[brick] = _render(brick, np.asarray(affine_mm, float), supersample)
    for k, noise in enumerate(_noise_slices(shape_ijk, seed)):
        sigma = np.float32(noise_hu) * np.where(labels[:, :, k] > 0, 1, AIR_NOISE)
        noisy = np.rint(image_hu[:, :, k] + sigma * noise)
        image_hu[:, :, k] = np.clip(noisy, *HU_RANGE)
    return image_hu, labels


def centred_affine(
    shape_ijk: tuple[int, int, int], spacing_mm: tuple[float, float, float], axes: str = "LPS"
) -> np.ndarray:
    """Return the affine [4, 4] (voxel to RAS mm) of a grid around the torso's origin.

    ``axes`` names the direction in which each index grows, e.g. "LPS" for usual axial slices.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (letter, step) in enumerate(zip(axes, spacing_mm, strict=True)):
        pair = next(pair for pair in ("LR", "PA", "IS") if letter in pair)
        row = ("LR", "PA", "IS").index(pair)
        affine[row, column] = step if pair.index(letter) else -step
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_ijk) - 1) / 2)
    return affine


def _bricks(shape_ijk: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Yield small boxes that tile the grid, so that each one intersects few structures."""
    axes = ([slice(at, min(at + BRICK, n)) for at in range(0, n, BRICK)] for n in shape_ijk)
    return product(*axes)


def _render(brick, affine: np.ndarray, supersample: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise-free HU (int16) and labels (uint8) of one brick."""
    indices = [np.arange(axis.start - 1, axis.stop + 1, dtype=float) for axis in brick]
    x, y, z = _world(affine, *np.ix_(*indices))
    tissue = _tissue_at(x, y, z)
    inner = (slice(1, -1),) * 3
    border = (maximum_filter(tissue, 3) != minimum_filter(tissue, 3))[inner]
    tissue, x, y, z = tissue[inner], x[inner], y[inner], z[inner]
    hu = _hu_at(tissue, x, y, z)
    if supersample > 1 and border.any():
        hu[border] = _supersampled(affine, supersample, x[border], y[border], z[border])
    return np.rint(hu).astype(np.int16), _table("label")[tissue]


def _supersampled(affine: np.ndarray, supersample: int, x, y, z) -> np.ndarray:
    """Return the mean HU [N] over the voxels centred at the world points x, y, z [N]."""
    steps = (np.arange(supersample) + 0.5) / supersample - 0.5
    total = np.zeros(x.shape, np.float32)
    for offset in product(steps, repeat=3):
        dx, dy, dz = (affine[:3, :3] @ offset).astype(np.float32)
        at = x + dx, y + dy, z + dz
        total += _hu_at(_tissue_at(*at), *at)
    return total / np.float32(supersample**3)


def _world(affine: np.ndarray, i, j, k) -> list[np.ndarray]:
    """Return RAS mm coordinates (three float32 arrays) of voxel indices that broadcast."""
    rows = affine[:3]
    return [(row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in rows]


def _tissue_at(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the number of the tissue (index into ``tissues()``) at each point, uint8."""
    tissue = np.zeros(x.size, np.uint8)
    points = np.stack([x.ravel(), y.ravel(), z.ravel()])
    if x.size == 0:
        return tissue.reshape(x.shape)
    low, high = points.min(axis=1), points.max(axis=1)
    number = {each: index for index, each in enumerate(tissues())}
    for structure in structures():
        least, most = structure.shape.box_mm
        if (least <= high).all() and (most >= low).all():
            _paint(tissue, points, structure, number)
    return tissue.reshape(x.shape)


def _paint(tissue: np.ndarray, points: np.ndarray, structure: Structure, number: dict) -> None:
    """Write the structure's tissues into ``tissue`` [N] where ``points`` [3, N] lie inside it."""
    low, high = structure.shape.box_mm.astype(np.float32)
    near = np.ones(tissue.shape, bool)
    for axis, least, most in zip(points, low, high, strict=True):
        near &= (axis >= least) & (axis <= most)
    if structure.only_in:
        near &= np.isin(tissue, [number[each] for each in structure.only_in])
    near = np.flatnonzero(near)
    if near.size == 0:
        return
    distance = structure.shape.field(*points[:, near])
    for depth, layer in structure.layers:
        tissue[near[distance < -depth]] = number[layer]


def _hu_at(tissue: np.ndarray, x, y, z) -> np.ndarray:
    """Return noise-free HU: the tissue's mean plus its texture."""
    return _table("hu")[tissue] + _table("texture_hu")[tissue] * _texture(x, y, z)


@cache
def _table(attribute: str) -> np.ndarray:
    """Return an attribute of all tissues in the order of ``tissues()``; labels as numbers."""
    values = [getattr(tissue, attribute) for tissue in tissues()]
    if attribute == "label":
        return np.array([LABEL_NAMES.index(value) for value in values], np.uint8)
    return np.array(values, np.float32)


# TEXTURE_WAVES: wave vectors (radians per mm) and phases; wavelengths from 12 to 60 mm.
TEXTURE_WAVES = np.array(
    [
        (0.09, 0.05, 0.03, 0.3),
        (-0.06, 0.12, 0.08, 1.7),
        (0.15, -0.10, 0.13, 4.0),
        (0.21, 0.24, -0.17, 2.2),
        (-0.29, 0.18, 0.27, 5.1),
        (0.33, -0.35, 0.21, 0.9),
    ],
    np.float32,
)


def _texture(x, y, z) -> np.ndarray:
    """Return a smooth field between -1 and 1 with mean 0."""
    waves = [np.sin(a * x + b * y + c * z + phase) for a, b, c, phase in TEXTURE_WAVES]
    return sum(waves) / np.float32(len(waves))


def _noise_slices(shape_ijk: tuple[int, int, int], seed: int) -> Iterator[np.ndarray]:
    """Yield unit noise [I, J] per slice k, with the grain of a filtered back projection.

    A slice shares part of its noise with the slice below. The noise depends on ``seed`` and k only.
    """
    size = shape_ijk[:2]
    impulse = np.zeros((31, 31), np.float32)
    impulse[15, 15] = 1
    scale = np.float32(1 / np.linalg.norm(_grain(impulse)))
    below = None
    for k in range(-1, shape_ijk[2]):
        white = np.random.default_rng([seed, k + 1]).standard_normal(size, dtype=np.float32)
        here = _grain(white) * scale
        if below is not None:
            yield np.float32(0.9) * here + np.float32(np.sqrt(1 - 0.9**2)) * below
        below = here


def _grain(white: np.ndarray) -> np.ndarray:
    """Apply a band-pass filter in the plane: CT noise has little power at low frequencies."""
    return gaussian_filter(white, 0.7, mode="wrap") - 0.6 * gaussian_filter(white, 1.8, mode="wrap")
