"""The first stage of the pretraining: the encoder learns which cells belong together.

There are no clicks and no masks yet. Only the image encoder and the cell keys learn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.networks import FastSAM3D
from lib.trainers.decoder_autocast import decoder_autocast

from .cell_pairs import cells_of, draw_pairs, pair_loss
from .data import ClickSamples

REUSE = 8
"""REUSE: samples of each ROI, which are turned and mirrored; to crop a ROI takes longer than to
learn from it."""

WINDOW = 160
"""WINDOW: consecutive ROIs from which a sample is drawn."""


class CellRois(Dataset):
    """Samples 0, 1, …, without end: image (1, S, S, S) float32, and pairs of :func:`draw_pairs`.

    Sample n is a pure function of (seed, n).
    """

    def __init__(self, clicks: ClickSamples) -> None:
        self.clicks = clicks
        self._roi = lru_cache(maxsize=WINDOW)(self._make_roi)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.clicks.seed, 4, number])
        last = number // REUSE
        image, cells = self._roi(int(generator.integers(max(0, last - WINDOW + 1), last + 1)))
        axes = generator.permutation(3)
        mirrored = tuple(np.flatnonzero(generator.random(3) < 0.5))
        image, cells = (np.flip(x.transpose(axes), mirrored) for x in (image, cells))
        gain, offset = np.exp(generator.normal(0, 0.1)), generator.normal(0, 0.1)
        image = image.astype(np.float32) * np.float32(gain) + np.float32(offset)
        return {"image": torch.from_numpy(image)[None], **draw_pairs(cells, generator)}

    def _make_roi(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self.clicks.seed, 3, number])
        image, labels, _ = self.clicks.draw_normalised(generator)
        return image.astype(np.float16), cells_of(labels, self.clicks.options.cell).copy()


def cell_loss(
    network: FastSAM3D, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return :func:`pair_loss` of the network's keys, and the values to log.

    batch: image (B, 1, S, S, S) and pairs of :class:`CellRois`. Raises ValueError for a network
    without keys.
    """
    image, stem = batch["image"], network.detail_stem
    encoder, cell_keys = network.image_encoder, network.mask_decoder.refiner.cell_keys
    if cell_keys is None:
        raise ValueError("the network has no cell keys: key_channels is 0")
    # patches are embedded in float32, where their convolutions are faster on a CPU
    tokens = encoder.embed(image)
    with torch.no_grad():
        patches = stem.patches(image)
        with decoder_autocast(image.device):
            detail = stem.mix(patches)
    with decoder_autocast(image.device):
        *_, tokens = encoder.block_outputs(tokens)
        embedding = encoder.neck(tokens.movedim(-1, 1))
        keys = cell_keys(embedding, detail)
    loss, same = pair_loss(keys, batch)
    return loss, {"same": same}
