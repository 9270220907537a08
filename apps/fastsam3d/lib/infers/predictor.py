"""Encode a ROI once, decode it for every click."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.cache import ByteCache
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.device_queue import Computing
from lib.infers.precision import FLOAT32, Precision
from lib.infers.random_walker import guide_of, outline
from lib.infers.stopwatch import Stopwatch
from lib.networks import FastSAM3D, PreparedImage, mask_threshold


@dataclass(frozen=True)
class ImageEmbedding:
    """What the encoder made of a ROI, and the decoder of that before any click; and a key for all
    that it was made of.

    guide: the image of :func:`~lib.infers.random_walker.guide_of`, where masks follow edges.
    """

    key: Hashable
    prepared: PreparedImage
    guide: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes + (0 if self.guide is None else self.guide.nbytes)


class FastSAM3DPredictor:
    """A network on a device, and caches of what it computed. Nothing per request lives here.

    network: on that device already. network_id: changes with any weight; part of all keys.
    precision: of what the network computes in, for those who ask.
    """

    def __init__(
        self,
        network: FastSAM3D | CapturedNetwork,
        network_id: str,
        device: torch.device,
        embeddings: ByteCache[ImageEmbedding],
        masks: ByteCache[np.ndarray],
        precision: Precision = FLOAT32,
    ) -> None:
        self.precision = precision
        self._network = network
        self._network_id = network_id
        self._device = device
        self._embeddings = embeddings
        self._masks = masks
        self._computing = Computing.on(device)
        self._cutting = Computing.on(torch.device("cpu"))

    def encode(
        self,
        roi_key: Hashable,
        make_roi_image: Callable[[], np.ndarray],
        stages: Stopwatch | None = None,
    ) -> ImageEmbedding:
        """The embedding of a ROI, from the cache where ``roi_key`` was encoded before.

        make_roi_image: gives the normalised ROI image, (S, S, S) float32 in RAS+ order.
        stages: is told how long Crop, Wait and Encode took.
        """
        key = (self._network_id, str(self._device), roi_key)
        stages = stages if stages is not None else Stopwatch()

        def make() -> ImageEmbedding:
            with stages.measure("Crop"):
                roi_image = make_roi_image()
            return self._computing.run(stages, "Encode", self._encode, key, roi_image)

        return self._embeddings.get_or_make(key, make)

    @torch.inference_mode()
    def _encode(self, key: Hashable, roi_image: np.ndarray) -> ImageEmbedding:
        volume = self._on_device(roi_image)
        prepared = self._network.prepare(self._network.encode(volume))
        has_guide = self._network.policy.mask_edges == "image"
        return ImageEmbedding(key, prepared, guide_of(roi_image) if has_guide else None)

    def decode(
        self,
        embedding: ImageEmbedding,
        points_roi: np.ndarray,
        labels: np.ndarray,
        stages: Stopwatch | None = None,
    ) -> np.ndarray:
        """Replay N >= 1 clicks in order, each with the mask of those before it.

        points_roi: (N, 3) ROI voxel indices. labels: (N,), 1 foreground, 0 background.
        -> low-resolution logits (s, s, s) float32, not to be changed. Every prefix of the clicks is
        kept in the cache, so that a further click costs one step. stages: is told how long Wait
        and Decode took.
        """
        stages = stages if stages is not None else Stopwatch()
        clicks = tuple(
            (*point, label)
            for point, label in zip(points_roi.tolist(), labels.tolist(), strict=True)
        )
        known, low_res = self._longest_known_prefix(embedding, clicks)
        for count in range(known + 1, len(clicks) + 1):
            low_res = self._computing.run(
                stages, "Decode", self._step, embedding, clicks[:count], low_res
            )
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

    def cut(
        self,
        embedding: ImageEmbedding,
        low_res: np.ndarray,
        points_roi: np.ndarray,
        labels: np.ndarray,
        stages: Stopwatch | None = None,
    ) -> tuple[np.ndarray, float]:
        """The mask of low-resolution logits (s, s, s): logits (c, c, c) on the ROI, and the
        threshold above which they are inside.

        points_roi, labels: all clicks, as for ``decode``. stages: is told how long Wait and Outline
        took.
        """
        stages = stages if stages is not None else Stopwatch()
        return self._cutting.run(
            stages, "Outline", self._cut, embedding, low_res, points_roi, labels
        )

    def _cut(
        self,
        embedding: ImageEmbedding,
        low_res: np.ndarray,
        points_roi: np.ndarray,
        labels: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        config, policy, values = self._network.config, self._network.policy, low_res
        if embedding.guide is not None:
            values = outline(low_res, embedding.guide, points_roi, labels, config.roi_size)
        threshold = mask_threshold(torch.from_numpy(values)[None], policy.mask_threshold)
        return values, float(threshold)

    @torch.inference_mode()
    def _step(self, embedding: ImageEmbedding, clicks: tuple, previous: np.ndarray) -> np.ndarray:
        shown = clicks if self._network.policy.click_history == "all" else clicks[-1:]
        prompt = torch.tensor(shown, dtype=torch.float32, device=self._device)[None]
        logits, _ = self._network.decode(
            embedding.prepared,
            points=prompt[..., :3],
            labels=prompt[..., 3].long(),
            mask=self._on_device(previous),
        )
        # a copy: what is kept must not hold on to the other masks that were computed
        return logits[0, 0].float().cpu().numpy().copy()

    def _on_device(self, array: np.ndarray) -> Tensor:
        """(s, s, s) -> [1, 1, s, s, s]."""
        tensor = torch.from_numpy(array)[None, None]
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # else the copy is made twice, and waited for
        return tensor.to(self._device, non_blocking=True)
