"""Encode a ROI once, decode it for every click."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.cache import ByteCache, array_nbytes
from lib.networks import FastSAM3D


@dataclass(frozen=True)
class ImageEmbedding:
    """What the encoder made of a ROI, [1, C, g, g, g], and a key for all that it was made of."""

    key: Hashable
    tensor: Tensor

    @property
    def nbytes(self) -> int:
        return array_nbytes(self.tensor)


class FastSAM3DPredictor:
    """A network on a device, and caches of what it computed. Nothing per request lives here.

    network_id: changes with any weight; part of all keys.
    """

    def __init__(
        self,
        network: FastSAM3D,
        network_id: str,
        device: torch.device,
        embeddings: ByteCache[ImageEmbedding],
        masks: ByteCache[np.ndarray],
    ) -> None:
        self._network = network.to(device)
        self._network_id = network_id
        self._device = device
        self._embeddings = embeddings
        self._masks = masks
        # one computation at a time: they would only share the same cores, and the memory adds up
        self._computing = threading.Lock()

    def encode(self, roi_key: Hashable, make_roi_image: Callable[[], np.ndarray]) -> ImageEmbedding:
        """The embedding of a ROI, from the cache where ``roi_key`` was encoded before.

        make_roi_image: gives the normalised ROI image, (S, S, S) float32 in RAS+ order.
        """
        key = (self._network_id, str(self._device), roi_key)
        return self._embeddings.get_or_make(key, lambda: self._encode(key, make_roi_image()))

    @torch.inference_mode()
    def _encode(self, key: Hashable, roi_image: np.ndarray) -> ImageEmbedding:
        volume = torch.from_numpy(roi_image)[None, None].to(self._device)
        with self._computing:
            return ImageEmbedding(key, self._network.encode(volume))

    def decode(
        self, embedding: ImageEmbedding, points_roi: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """Replay N >= 1 clicks in order, each with the mask of those before it.

        points_roi: (N, 3) ROI voxel indices. labels: (N,), 1 foreground, 0 background.
        -> low-resolution logits (s, s, s) float32, not to be changed. Every prefix of the clicks is
        kept in the cache, so that a further click costs one step.
        """
        clicks = tuple(
            (*point, label)
            for point, label in zip(points_roi.tolist(), labels.tolist(), strict=True)
        )
        known, low_res = self._longest_known_prefix(embedding, clicks)
        for count in range(known + 1, len(clicks) + 1):
            low_res = self._step(embedding, clicks[:count], low_res)
            self._masks.put((embedding.key, clicks[:count]), low_res)
        return low_res

    def _longest_known_prefix(
        self, embedding: ImageEmbedding, clicks: tuple
    ) -> tuple[int, np.ndarray]:
        for count in range(len(clicks), 0, -1):
            low_res = self._masks.get((embedding.key, clicks[:count]))
            if low_res is not None:
                return count, low_res
        # the networks were trained with zeros, not with "no mask", in the first step
        return 0, np.zeros((self._network.config.low_res_size,) * 3, dtype=np.float32)

    @torch.inference_mode()
    def _step(self, embedding: ImageEmbedding, clicks: tuple, previous: np.ndarray) -> np.ndarray:
        shown = clicks if self._network.config.click_history == "all" else clicks[-1:]
        prompt = torch.tensor(shown, dtype=torch.float32, device=self._device)[None]
        with self._computing:
            logits, _ = self._network.decode(
                embedding.tensor,
                points=prompt[..., :3],
                labels=prompt[..., 3].long(),
                mask=torch.from_numpy(previous)[None, None].to(self._device),
            )
        return logits[0, 0].float().cpu().numpy()
