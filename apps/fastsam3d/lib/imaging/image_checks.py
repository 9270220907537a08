"""Checks that hold for every stored image, and the errors that name what is wrong with it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from nibabel.affines import voxel_sizes

from lib.errors import InputError

MIN_VOXELS = 4
"""MIN_VOXELS: least number of voxels along each axis; one slice, say, cannot be segmented in 3D."""

BYTES_PER_VOXEL = 8
"""BYTES_PER_VOXEL: memory that reading takes at most: the stored voxels and a converted copy."""

LARGEST_SKEW = 1e-3
"""LARGEST_SKEW: how far two axes may be from a right angle, as the cosine of their angle.

A NIfTI file cannot store a sheared grid in a way that ITK opens, so no mask could lie on it.
"""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""CGROUP_LIMIT: the memory that a container may use, in bytes, or "max"."""

GEOMETRY_CURE = "repair the geometry in its header or export it again"


def default_voxel_limit() -> int:
    """Return the number of voxels that fit into the memory of this machine or container."""
    memory = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit
        memory = min(memory, int(CGROUP_LIMIT.read_text()))
    return int(memory) // BYTES_PER_VOXEL


def check_voxel_count(name: str, shape: Sequence[int], max_voxels: int | None = None) -> None:
    """Raise InputError if a header claims more voxels than allowed, before any is read.

    max_voxels: None means `default_voxel_limit()`.
    """
    limit = default_voxel_limit() if max_voxels is None else max_voxels
    count = math.prod(int(length) for length in shape)
    if count > limit:
        raise InputError(
            f'image "{name}" has {_times(shape)} voxels, {count:,} in all; this server reads up to '
            f"{limit:,}; crop or resample it"
        )


def check_layout(name: str, shape: Sequence[int], is_scalar: bool) -> tuple[int, ...]:
    """Return the shape without trailing 1s; raise InputError unless it is a 3D scan of scalars."""
    if not is_scalar:
        raise InputError(
            f'image "{name}" holds complex, colour or vector voxels; '
            "export it with one real number per voxel"
        )
    shape_ijk = tuple(shape)
    while len(shape_ijk) > 3 and shape_ijk[-1] == 1:
        shape_ijk = shape_ijk[:-1]
    voxels = _times(shape_ijk)
    if len(shape_ijk) != 3:
        cure = (
            "export one volume of it"
            if len(shape_ijk) > 3
            else "give the whole scan, not one slice"
        )
        raise InputError(
            f'image "{name}" has {len(shape_ijk)} dimensions ({voxels}), not 3; {cure}'
        )
    if min(shape_ijk) < MIN_VOXELS:
        raise InputError(
            f'image "{name}" has only {voxels} voxels; '
            f"a 3D scan needs at least {MIN_VOXELS} along each axis"
        )
    return shape_ijk


def check_affine(name: str, affine_mm: np.ndarray) -> None:
    """Raise InputError unless the affine is finite and its axes are at right angles."""
    if not np.isfinite(affine_mm).all():
        raise InputError(f'the affine of image "{name}" holds NaN or infinity; {GEOMETRY_CURE}')
    spacing_mm = voxel_sizes(affine_mm)
    check_spacing(name, spacing_mm)
    axes = affine_mm[:3, :3] / spacing_mm
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if skew > LARGEST_SKEW:
        raise sheared(name, float(np.degrees(np.arcsin(min(skew, 1)))))


def check_spacing(name: str, spacing_mm: np.ndarray) -> None:
    """Raise InputError unless all lengths of a voxel (3,) are positive numbers."""
    if not np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)):
        values = " × ".join(f"{value:g}" for value in spacing_mm)
        raise InputError(f'image "{name}" has a voxel spacing of {values} mm; {GEOMETRY_CURE}')


def sheared(name: str, degrees: float | None = None) -> InputError:
    """Return the error for an image whose axes are not at right angles."""
    by = "" if degrees is None else f" by {degrees:.1f}°"
    return InputError(
        f'image "{name}" is sheared{by}: its axes are not at right angles, so that viewers show it '
        "elsewhere than its header says; resample it to an upright grid"
    )


def unreadable(name: str, error: Exception) -> InputError:
    """Return the error for the user; the reader's own message may name folders of the server."""
    if isinstance(error, MemoryError):
        return InputError(
            f'image "{name}" does not fit into the memory of the server; crop or resample it'
        )
    if isinstance(error, PermissionError):
        return InputError(f'image "{name}" may not be read by the server; change its permissions')
    if "Zero-valued spacing" in str(error):  # ITK's message
        return InputError(f'image "{name}" has a voxel spacing of 0 mm; {GEOMETRY_CURE}')
    if "orthonormal direction cosines" in str(error):  # ITK's message
        return sheared(name)
    return InputError(
        f'image "{name}" cannot be read: it is damaged, truncated, or not in the format that '
        "its extension names; copy or export it again"
    )


def is_hidden(path: str | Path) -> bool:
    """Return whether a file is hidden, such as the ``._name`` that macOS leaves beside a file."""
    return Path(path).name.startswith(".")


def _times(shape: Sequence[int]) -> str:
    return " × ".join(str(length) for length in shape)
