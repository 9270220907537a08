"""The mask of one structure on a ROI, and the prompts that lead to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lib.imaging.roi import Roi
from lib.infers.prompts import Place, Prompt, Subtype


@dataclass(frozen=True, eq=False)
class Drawn:
    """What drawings say about a structure.

    kind: of the newest drawing: box, flat_box, lasso or scribble. logits: (c, c, c) float32, the
    prior of the random walk.
    """

    kind: str
    logits: np.ndarray


@dataclass(frozen=True, eq=False)
class MaskState:
    """What is known of a structure after some prompts; its arrays must not be changed.

    low_res: (s, s, s) float32, the logits that the network gets with the next prompt. margins:
    (c, c, c) float32 on the cells that divide the ROI, logits minus their threshold: the mask is
    where they are positive. threshold: logit that was subtracted last. drawn: what drawings say
    about the structure, None without a drawing on it. fixed: (c, c, c) float32, 1 or 0 in the cells
    that drawings decided, NaN elsewhere; None if there are none. is_given: the mask descends from
    one that the request starts from.
    """

    low_res: np.ndarray
    margins: np.ndarray
    threshold: float
    drawn: Drawn | None = None
    fixed: np.ndarray | None = None
    is_given: bool = False

    def digest(self) -> str:
        """Return a key that changes with any value of a mask to start from."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.low_res, self.margins):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        optional = [self.fixed, self.drawn.logits if self.drawn else None]
        arrays = [self.low_res, self.margins, *(array for array in optional if array is not None)]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class RoiPrompt:
    """A prompt in ROI voxel indices. It compares and hashes by value, for use in cache keys."""

    subtype: Subtype
    places_roi: tuple[Place, ...]
    is_foreground: bool

    @classmethod
    def of(cls, prompt: Prompt, roi: Roi) -> RoiPrompt:
        places_roi = tuple(map(tuple, roi.to_roi(prompt.points_ijk).tolist()))
        return cls(prompt.subtype, places_roi, prompt.is_foreground)

    @property
    def points_roi(self) -> np.ndarray:
        """The places, (N, 3) float64 ROI voxel indices."""
        return np.array(self.places_roi, dtype=np.float64)
