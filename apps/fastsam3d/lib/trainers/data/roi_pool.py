"""ROIs for training, cut as in serving: image, first click, and target if there is a label."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from torch import Tensor
from torch.utils.data import Dataset

from lib.cache import ByteCache, array_nbytes
from lib.errors import InputError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi, crop_labels
from lib.imaging.volume import Volume, read_volume
from lib.networks import FastSAM3DConfig

from ..train_options import TrainOptions
from .studies import ExaminedStudy
from .study_split import Split
from .tensor_store import TensorStore

POOLING = 2
"""POOLING: ROI voxels along the side of a target's cell."""

TRIES = 8
"""TRIES: clicks that are tried in a study until a ROI has contrast."""

VOLUME_BYTES = 1 << 30
"""VOLUME_BYTES: memory for decoded images, and the same for label maps."""

SMALLEST_MM, LARGEST_MM = 0.4, 4.0
"""SMALLEST_MM, LARGEST_MM: limits of a ROI's voxel size, as in serving."""

ZOOM = 0.25
"""ZOOM: standard deviation of the logarithm of a ROI's voxel size around the served one."""

SpacingAt = Callable[[Volume, str, np.ndarray, int], float]
"""SpacingAt(volume, key, click_ijk, roi_size) returns the voxel size that serving chooses.

key: of the volume. click_ijk: the first click (3,). roi_size: in voxels.
"""

HALF_MAX = 65504.0
"""HALF_MAX: the largest finite number in half precision."""

VERSION = 3
"""VERSION: part of the ROIs' keys; raise it if the code makes other ROIs, to ignore stored ones."""


@dataclass(frozen=True)
class RoiOptions:
    """The augmentation of ROIs; with zeros they are those of serving.

    flip: probability of mirroring, per axis. shift: largest shift of the ROI, as a share of its
    size. scale: standard deviation of the logarithm of the scale, per axis. zoom: the same, of all
    axes together; the voxel size stays within SMALLEST_MM and LARGEST_MM. intensity: 1 changes a
    CT by up to 10 % and 20 HU, and other images by a gamma of up to 1.2.
    """

    spacing_mm: float = 1.5
    flip: float = 0.5
    shift: float = 0.15
    scale: float = 0.08
    zoom: float = 0.0
    intensity: float = 1.0

    @classmethod
    def plain(cls, spacing_mm: float = 1.5) -> RoiOptions:
        """Return options without augmentation, for validation."""
        return cls(spacing_mm, flip=0, shift=0, scale=0, intensity=0)


class RoiPool(Dataset):
    """`count` ROIs, the same in every epoch and every process; the studies take turns.

    Item n is a dictionary. image: (1, S, S, S) float32, normalised as in serving and rounded to
    half precision, in which it is stored. target: (c, c, c) float32, the share of each cell of
    `POOLING`³ voxels that belongs to the clicked structure; zeros without a label. has_label: bool.
    click_roi: (3,) float32, the first click. key: a string that depends on everything that the item
    depends on.

    store: stores items on disk, so that later epochs read no volumes. spacing_mm_at: chooses
    the voxel size of each ROI; by default it is that of the options. volume_bytes: memory for
    decoded images, and the same for label maps.
    """

    def __init__(
        self,
        studies: Sequence[ExaminedStudy],
        count: int,
        config: FastSAM3DConfig,
        options: RoiOptions,
        seed: int,
        store: TensorStore | None = None,
        volume_bytes: int = VOLUME_BYTES,
        spacing_mm_at: SpacingAt | None = None,
    ) -> None:
        if not studies:
            raise InputError("there are no studies to train on; add images to the datastore")
        self.studies = list(studies)
        self.count = count
        self.size = config.roi_size
        self.options = options
        self.seed = seed
        self._order = np.random.default_rng([seed, 0]).permutation(len(self.studies))
        self._store = store
        self._spacing_mm_at = spacing_mm_at
        self._volumes: ByteCache[Volume] = ByteCache(volume_bytes, array_nbytes)
        self._labels: ByteCache[np.ndarray] = ByteCache(volume_bytes, array_nbytes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a ROI.

        Raise IndexError beyond the last ROI, and InputError if an examined study cannot be read any
        more.
        """
        if not 0 <= number < self.count:
            raise IndexError(f"ROI {number} of a pool of {self.count}")
        study = self.study(number)
        key = self._key(study, number)
        entry = self._store.get(key) if self._store else None
        if entry is None:
            entry = self._make(study, number)
            if self._store:
                self._store.put(key, entry)
        return {
            "image": entry["image"].float()[None],
            "target": entry["share"].float() / POOLING**3,
            "has_label": torch.tensor(study.is_labelled),
            "click_roi": entry["click_roi"],
            "key": key,
        }

    def study(self, number: int) -> ExaminedStudy:
        """Return the study of a ROI."""
        return self.studies[self._order[number % len(self.studies)]]

    def _key(self, study: ExaminedStudy, number: int) -> str:
        is_scaled = self._spacing_mm_at is not None
        facts = (study.key, self.options, is_scaled, self.size, self.seed, number, VERSION)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _make(self, study: ExaminedStudy, number: int) -> dict[str, Tensor]:
        """Return image (S, S, S) half, share (c, c, c) uint8 (voxels per cell), click_roi (3,)."""
        generator = np.random.default_rng([self.seed, 1, number])
        volume = self._volumes.get_or_make(study.name, lambda: read_volume(study.study.image))
        for attempt in range(TRIES):
            click = draw_click(study, generator)
            options = self._placed_options(study, volume, click, generator)
            roi = place_roi(volume, click.place_ijk, self.size, options, generator)
            try:
                image = make_image(roi, volume, self.options, generator)
                break
            except InputError:  # no contrast
                if attempt == TRIES - 1:
                    raise
        cells = self.size // POOLING
        share = np.zeros((cells,) * 3, dtype=np.uint8)
        if click.structure is not None:
            share = voxels_of_cells(crop_labels(roi, self._label(study)) == click.structure)
        return {
            "image": torch.from_numpy(np.clip(image, -HALF_MAX, HALF_MAX)).half(),
            "share": torch.from_numpy(share),
            "click_roi": torch.from_numpy(roi.to_roi(click.place_ijk)[0]).float(),
        }

    def _placed_options(
        self, study: ExaminedStudy, volume: Volume, click: Click, generator: np.random.Generator
    ) -> RoiOptions:
        """Return the options with the voxel size of one ROI."""
        spacing_mm = self.options.spacing_mm
        if self._spacing_mm_at is not None:
            spacing_mm = self._spacing_mm_at(volume, study.key, click.place_ijk, self.size)
        if self.options.zoom:
            zoomed_mm = spacing_mm * np.exp(generator.normal(0, self.options.zoom))
            spacing_mm = float(np.clip(zoomed_mm, SMALLEST_MM, LARGEST_MM))
        return dataclasses.replace(self.options, spacing_mm=spacing_mm)

    def _label(self, study: ExaminedStudy) -> np.ndarray:
        if study.label is None:
            raise ValueError(f"{study.name} has structures, but no label")
        return self._labels.get_or_make(study.name, study.label.unpack)


class Click(NamedTuple):
    """A first click.

    place_ijk: (3,) integers, a stored voxel. structure: label value at the click, None without a
    label.
    """

    place_ijk: np.ndarray
    structure: int | None


def draw_click(study: ExaminedStudy, generator: np.random.Generator) -> Click:
    """Draw a click in one of the structures, all equally likely, or in the body without a label."""
    structure = int(generator.choice(list(study.structures))) if study.structures else None
    places = study.body if structure is None else study.structures[structure]
    return Click(places[generator.integers(len(places))], structure)


def place_roi(
    volume: Volume,
    click_ijk: np.ndarray,
    size: int,
    options: RoiOptions,
    generator: np.random.Generator,
) -> Roi:
    """Place a ROI around a stored voxel as serving does, mirrored, scaled and shifted."""
    orientation = io_orientation(volume.affine_mm)
    axes, signs = orientation[:, 0].astype(int), orientation[:, 1]
    signs = np.where(generator.random(3) < options.flip, -signs, signs)
    scales = np.exp(generator.normal(0, 1, 3) * options.scale)
    affine_mm = np.zeros((4, 4))
    affine_mm[axes, range(3)] = signs * scales * voxel_sizes(volume.affine_mm)
    affine_mm[3, 3] = 1
    roi = Roi.place(
        volume.shape_ijk, affine_mm, click_ijk[None], size=size, spacing_mm=options.spacing_mm
    )
    shifts = generator.uniform(-1, 1, 3) * options.shift * size
    starts = (
        start + shift * step
        for start, shift, step in zip(roi.starts, shifts, roi.steps, strict=True)
    )
    return dataclasses.replace(roi, starts=tuple(starts))


def make_image(
    roi: Roi, volume: Volume, options: RoiOptions, generator: np.random.Generator
) -> np.ndarray:
    """Return the normalised ROI image, (S, S, S) float32; raise InputError without contrast."""
    image = roi.crop(volume.array)
    gain, offset, gamma = generator.uniform(-1, 1, 3) * options.intensity
    if volume.is_ct:
        # outside of the scan voxels are 0; changed values there would dominate the normalisation
        image = np.where(image == 0, 0, image * (1 + 0.1 * gain) + 20 * offset)
    elif gamma:
        top = max(float(image.max()), 1e-6)
        image = np.sign(image) * top * (np.abs(image) / top) ** np.exp(0.2 * gamma)
    return normalize(image.astype(np.float32, copy=False), volume.is_ct)


def voxels_of_cells(mask: np.ndarray) -> np.ndarray:
    """Count the voxels of a mask in each cell of `POOLING`³: (S, S, S) bool to (c, c, c) uint8."""
    counts = mask.view(np.uint8)
    for axis in range(3):
        starts = np.arange(0, counts.shape[axis], POOLING)
        counts = np.add.reduceat(counts, starts, axis=axis, dtype=np.uint8)
    return counts


def make_pools(
    studies: Split[ExaminedStudy],
    config: FastSAM3DConfig,
    options: TrainOptions,
    spacing_mm: float,
    store: TensorStore,
    spacing_mm_at: SpacingAt | None = None,
) -> tuple[RoiPool, RoiPool]:
    """Return the ROIs for training, and those for validation (without augmentation).

    spacing_mm: voxel size of ROIs. spacing_mm_at: the one that serving chooses, if it does; the
    training then sees sizes around it too.
    """
    augmented = RoiOptions(spacing_mm, zoom=ZOOM if spacing_mm_at else 0)
    plain = RoiOptions.plain(spacing_mm)
    train, held_out = (
        RoiPool(part, count, config, roi_options, seed, store, spacing_mm_at=spacing_mm_at)
        for part, count, roi_options, seed in (
            (studies.train, options.pool_size, augmented, options.seed),
            (studies.held_out, options.val_rois, plain, options.seed + 1),
        )
    )
    return train, held_out
