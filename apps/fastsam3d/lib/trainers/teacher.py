"""The teacher's features of each ROI, computed once and stored on disk."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib.networks import FastSAM3D
from lib.weights.files import Weights

from .data.tensor_store import TensorStore
from .schedule import LayerPairs

HALF_MAX = 65504.0
"""HALF_MAX: the largest finite number in half precision."""

LAYOUT = 2
"""LAYOUT: version of the stored features; raise it if the same weights give other embeddings."""

Features = tuple[dict[int, Tensor], Tensor]
"""Features: block number -> output [B, i, j, k, W], and the embedding [B, C, g, g, g]."""


class TeacherFeatures:
    """The outputs of the teacher's blocks and its embedding, on disk in half precision.

    teacher: is frozen and put into eval mode; it stays on its device. teacher_hash: hash of its
    weights; each teacher has a folder of its own. blocks: numbers (from 0) of the blocks whose
    outputs are stored. max_bytes: size limit on disk (`TensorStore`). computed: number of ROIs that
    the teacher's encoder has processed.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        teacher: FastSAM3D,
        teacher_hash: str,
        blocks: Sequence[int],
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.blocks = tuple(blocks)
        self.computed = 0
        block_names = "-".join(str(block) for block in self.blocks)
        name = f"{teacher_hash[:16]}-{block_names}-v{LAYOUT}"
        self._store = TensorStore(folder / name, max_bytes)

    @torch.no_grad()
    def get(self, keys: Sequence[str], images: Tensor) -> Features:
        """Return the features of a batch of ROIs, float32, on the device of the images.

        images: [B, 1, S, S, S]. keys: the ROIs' keys; a key must always come with the same image.
        Values are rounded to half precision even if they were not stored before, so that both cases
        give the same numbers.
        """
        entries = [self._store.get(key) for key in keys]
        missing = [place for place, entry in enumerate(entries) if entry is None]
        # One ROI at a time on the CPU, where a batch is no faster: the last bits of a result may
        # depend on the rest of the batch, and a resumed run computes other ROIs together.
        size = 1 if images.device.type == "cpu" else max(1, len(missing))
        for first in range(0, len(missing), size):
            places = missing[first : first + size]
            for place, entry in zip(places, self._compute(images[places]), strict=True):
                entries[place] = entry
                self._store.put(keys[place], entry)
        return self._collate([entry for entry in entries if entry is not None], images.device)

    def _compute(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return one entry per image, half precision, on the CPU."""
        embedding, outputs = self.teacher.encode_intermediates(images, self.blocks)
        self.computed += len(images)
        by_name = {str(block): outputs[block] for block in self.blocks} | {"embedding": embedding}
        halves = {
            name: x.float().clamp(-HALF_MAX, HALF_MAX).half().cpu() for name, x in by_name.items()
        }
        return [
            {name: x[place].contiguous() for name, x in halves.items()}
            for place in range(len(images))
        ]

    def _collate(self, entries: Sequence[dict[str, Tensor]], device: torch.device) -> Features:
        def stacked(name: str) -> Tensor:
            return torch.stack([entry[name] for entry in entries]).to(device).float()

        return {block: stacked(str(block)) for block in self.blocks}, stacked("embedding")


def make_features(
    teacher: Weights, pairs: LayerPairs, folder: Path, max_bytes: int, device: torch.device
) -> TeacherFeatures:
    """Return the teacher's features; remove those of other teachers from the folder."""
    for other in folder.glob("*"):
        if not other.name.startswith(teacher.network_id[:16]):
            shutil.rmtree(other, ignore_errors=True)
    network = copy.deepcopy(teacher.network).to(device)
    blocks = [block for block, _ in pairs]
    return TeacherFeatures(folder, max_bytes, network, teacher.network_id, blocks)
