"""What the teacher makes of each ROI, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib.networks import FastSAM3D

from .data.tensor_store import TensorStore

HALF_MAX = 65504.0

LAYOUT = 2
"""Of what is kept; raised whenever the same weights give another embedding."""

Features = tuple[dict[int, Tensor], Tensor]
"""The outputs [B, i, j, k, W] of some blocks by their number, and the embedding [B, C, g, g, g]."""


class TeacherFeatures:
    """The outputs of the teacher's blocks and its embedding, in half precision on disk.

    teacher: is frozen and put into eval mode; it stays on its device. teacher_hash: of its weights;
    features of other teachers lie in other folders. blocks: whose outputs are kept, from 0.
    max_bytes: on disk, see `TensorStore`. computed: how many ROIs the teacher's encoder has seen.
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
        named = "-".join(str(block) for block in self.blocks)
        name = f"{teacher_hash[:16]}-{named}-v{LAYOUT}"
        self._store = TensorStore(folder / name, max_bytes)

    @torch.no_grad()
    def get(self, keys: Sequence[str], images: Tensor) -> Features:
        """Of a batch of ROIs, float32, on the device of `images` [B, 1, S, S, S].

        keys: of the ROIs; the same key must always come with the same image. The numbers are
        rounded to half precision, whether they were kept or not, so that both give the same.
        """
        entries = [self._store.get(key) for key in keys]
        missing = [place for place, entry in enumerate(entries) if entry is None]
        # One ROI at a time on the CPU, where a batch is no faster: the last bits of a result may
        # depend on what else is in the batch, and a resumed run misses other ROIs.
        size = 1 if images.device.type == "cpu" else max(1, len(missing))
        for first in range(0, len(missing), size):
            places = missing[first : first + size]
            for place, entry in zip(places, self._compute(images[places]), strict=True):
                entries[place] = entry
                self._store.put(keys[place], entry)
        return self._collate([entry for entry in entries if entry is not None], images.device)

    def _compute(self, images: Tensor) -> list[dict[str, Tensor]]:
        embedding, outputs = self.teacher.encode_intermediates(images, self.blocks)
        self.computed += len(images)
        named = {str(block): outputs[block] for block in self.blocks} | {"embedding": embedding}
        halves = {
            name: x.float().clamp(-HALF_MAX, HALF_MAX).half().cpu() for name, x in named.items()
        }
        return [
            {name: x[place].contiguous() for name, x in halves.items()}
            for place in range(len(images))
        ]

    def _collate(self, entries: Sequence[dict[str, Tensor]], device: torch.device) -> Features:
        def stacked(name: str) -> Tensor:
            return torch.stack([entry[name] for entry in entries]).to(device).float()

        return {block: stacked(str(block)) for block in self.blocks}, stacked("embedding")
