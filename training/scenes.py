"""Label maps without anatomy: random deformed, nested, touching shapes, and lesions.

The network learns from them which voxels belong to a click, not what an organ looks like.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from .fields import log_uniform, smooth_field

MAX_LABEL = 250


def clutter_scene(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a label map (size, size, size) uint8 of random shapes.

    The background is empty or partitioned. Later shapes cover earlier ones; every shape has its own
    number, and some have a core.
    """
    labels = (
        partition(size, generator)
        if generator.random() < 0.5
        else np.zeros((size,) * 3, dtype=np.uint8)
    )
    places = deformed_places(size, generator)
    for _ in range(generator.integers(8, 36)):
        number = int(labels.max()) + 1
        if number >= MAX_LABEL:
            break
        if generator.random() < 0.3:
            draw_tube(labels, places, number, generator)
        else:
            draw_superquadric(labels, places, number, generator)
    return labels


def partition(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the number of the largest of some smooth random fields, (size, size, size) uint8."""
    channels = int(generator.integers(3, 9))
    fields = smooth_field((size,) * 3, int(generator.integers(4, 12)), generator, channels)
    return fields.argmax(axis=0).astype(np.uint8)


def deformed_places(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return every voxel's index moved by a smooth random field, (3, size, size, size) float32."""
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 3, indexing="ij"))
    knots = int(generator.integers(4, 16))
    amplitude = generator.uniform(0, 0.5) * size / knots / 2
    return grid + np.float32(amplitude) * smooth_field((size,) * 3, knots, generator, channels=3)


def draw_superquadric(
    labels: np.ndarray, places: np.ndarray, number: int, generator: np.random.Generator
) -> None:
    """Draw a rotated superquadric of `number`; some are hollow or have a core, `number` + 1."""
    size = len(labels)
    radii = log_uniform(generator, size / 40, size / 3.5) * generator.uniform(0.4, 1, 3)
    centre = generator.uniform(0, size, 3)
    box = _box(centre, 1.3 * radii.max() + 4, size)
    local = _turn(places[(slice(None), *box)] - centre[:, None, None, None], generator)
    exponent = generator.choice([1.2, 2, 2, 2, 4, 8])
    level = (np.abs(local / radii[:, None, None, None]) ** exponent).sum(axis=0)
    view = labels[box]
    view[level < 1] = number
    kind = generator.random()
    if kind < 0.25:
        view[level < generator.uniform(0.1, 0.6)] = number + 1
    elif kind < 0.35:
        view[level < generator.uniform(0.4, 0.8)] = 0


def draw_tube(
    labels: np.ndarray, places: np.ndarray, number: int, generator: np.random.Generator
) -> None:
    """Draw a tube of `number` along a quadratic curve, as vessels and nerves run."""
    size = len(labels)
    ends = generator.uniform(0, size, (3, 3))
    along = np.linspace(0, 1, 48)[:, None]
    curve = (1 - along) ** 2 * ends[0] + 2 * along * (1 - along) * ends[1] + along**2 * ends[2]
    radius = log_uniform(generator, size / 64, size / 16)
    for centre in curve[: generator.integers(12, 49)]:
        box = _box(centre, radius + size / 16, size)
        offset = places[(slice(None), *box)] - centre[:, None, None, None].astype(np.float32)
        labels[box][(offset**2).sum(axis=0) < radius**2] = number


def lesion(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the level of an irregular blob, (size, size, size) float32; < 1 is inside.

    The blob contains the central voxel.
    """
    radii = log_uniform(generator, size / 32, size / 4) * generator.uniform(0.6, 1, 3)
    shift = generator.uniform(-0.5, 0.5, 3) * radii
    grid = np.meshgrid(*[np.arange(size, dtype=np.float32) - size // 2] * 3, indexing="ij")
    local = _turn(np.stack(grid) - shift[:, None, None, None], generator)
    level = ((local / radii[:, None, None, None].astype(np.float32)) ** 2).sum(axis=0)
    knots = int(np.clip(1.5 * size / radii.max(), 4, 40))
    level += np.float32(generator.uniform(0, 0.5)) * smooth_field(level.shape, knots, generator)[0]
    middle = level[(size // 2,) * 3]
    return level if middle < 0.9 else level - middle


def _box(centre: np.ndarray, reach: float, size: int) -> tuple[slice, slice, slice]:
    """Return slices of the scene within `reach` of a centre; they may be empty."""
    low = np.clip(np.floor(centre - reach), 0, size).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, 0, size).astype(int)
    i, j, k = (slice(a, b) for a, b in zip(low, high, strict=True))
    return i, j, k


def _turn(offsets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rotate offsets (3, …) at random."""
    matrix = Rotation.random(random_state=generator).as_matrix().astype(np.float32)
    return np.tensordot(matrix, offsets.astype(np.float32), axes=1)
