"""Encode a ROI once, decode it for every click, and give the mask its edges."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.cache import ByteCache
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.device_queue import DeviceQueue
from lib.infers.precision import FLOAT32, Precision
from lib.infers.random_walker import make_guide, random_walk
from lib.infers.stopwatch import Stopwatch
from lib.networks import FastSAM3D, PreparedImage, mask_threshold


@dataclass(frozen=True)
class ImageEmbedding:
    """A ROI after encoding, prepared for the decoder.

    key: identifies the weights, the device and the ROI. guide: the image whose edges the random
    walker follows (:func:`~lib.infers.random_walker.make_guide`); None if the network's masks are
    used as they are.
    """

    key: Hashable
    prepared: PreparedImage
    guide: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes + (0 if self.guide is None else self.guide.nbytes)


class FastSAM3DPredictor:
    """A network on a device, with caches of embeddings and masks. It has no state per request.

    network: must be on the device. network_id: changes with any weight and is part of all cache
    keys. precision: the number type that the network computes in, for information.
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
        self._queue = DeviceQueue.on(device)
        self._cpu_queue = DeviceQueue.on(torch.device("cpu"))

    def encode(
        self,
        roi_key: Hashable,
        make_roi_image: Callable[[], np.ndarray],
        stages: Stopwatch | None = None,
    ) -> ImageEmbedding:
        """Return the embedding of a ROI, from the cache if `roi_key` was encoded before.

        make_roi_image: returns the normalised ROI image, (S, S, S) float32 in RAS+ order.
        stages: the times of Crop, Wait and Encode are added.
        """
        key = (self._network_id, str(self._device), roi_key)
        stages = stages if stages is not None else Stopwatch()

        def make() -> ImageEmbedding:
            with stages.measure("Crop"):
                roi_image = make_roi_image()
            return self._queue.run(stages, "Encode", self._encode, key, roi_image)

        return self._embeddings.get_or_make(key, make)

    @torch.inference_mode()
    def _encode(self, key: Hashable, roi_image: np.ndarray) -> ImageEmbedding:
        volume = self._on_device(roi_image)
        prepared = self._network.prepare(self._network.encode(volume))
        has_guide = self._network.policy.mask_edges == "image"
        return ImageEmbedding(key, prepared, make_guide(roi_image) if has_guide else None)

    def decode(
        self,
        embedding: ImageEmbedding,
        points_roi: np.ndarray,
        labels: np.ndarray,
        stages: Stopwatch | None = None,
    ) -> np.ndarray:
        """Replay N >= 1 clicks in order, each with the mask of those before it.

        Return low-resolution logits (s, s, s) float32, which must not be changed. The masks of all
        prefixes of the clicks are cached, so that a further click costs one step.

        points_roi: (N, 3) ROI voxel indices. labels: (N,), 1 foreground, 0 background. stages: the
        times of Wait and Decode are added.
        """
        stages = stages if stages is not None else Stopwatch()
        clicks = tuple(
            (*point, label)
            for point, label in zip(points_roi.tolist(), labels.tolist(), strict=True)
        )
        cached, low_res = self._longest_cached_prefix(embedding, clicks)
        for count in range(cached + 1, len(clicks) + 1):
            low_res = self._queue.run(
                stages, "Decode", self._step, embedding, clicks[:count], low_res
            )
            self._masks.put((embedding.key, clicks[:count]), low_res)
        return low_res

    def _longest_cached_prefix(
        self, embedding: ImageEmbedding, clicks: tuple
    ) -> tuple[int, np.ndarray]:
        """Return the number of clicks whose mask is cached, and that mask; zeros without clicks."""
        for count in range(len(clicks), 0, -1):
            low_res = self._masks.get((embedding.key, clicks[:count]))
            if low_res is not None:
                return count, low_res
        # the networks were trained with zeros in the first step, not with "no mask"
        return 0, np.zeros((self._network.config.low_res_size,) * 3, dtype=np.float32)

    def delineate(
        self,
        embedding: ImageEmbedding,
        low_res: np.ndarray,
        points_roi: np.ndarray,
        labels: np.ndarray,
        stages: Stopwatch | None = None,
    ) -> tuple[np.ndarray, float]:
        """Return logits (c, c, c) float32 on the ROI, and the threshold above which they are mask.

        With a guide the random walker places the edges; without one the low-resolution logits
        (s, s, s) are returned themselves. points_roi, labels: all clicks, as for `decode`. stages:
        the times of Wait and Outline are added.
        """
        stages = stages if stages is not None else Stopwatch()
        return self._cpu_queue.run(
            stages, "Outline", self._delineate, embedding, low_res, points_roi, labels
        )

    def _delineate(
        self,
        embedding: ImageEmbedding,
        low_res: np.ndarray,
        points_roi: np.ndarray,
        labels: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        config, policy, values = self._network.config, self._network.policy, low_res
        if embedding.guide is not None:
            values = random_walk(low_res, embedding.guide, points_roi, labels, config.roi_size)
        threshold = mask_threshold(torch.from_numpy(values)[None], policy.mask_threshold)
        return values, float(threshold)

    @torch.inference_mode()
    def _step(self, embedding: ImageEmbedding, clicks: tuple, previous: np.ndarray) -> np.ndarray:
        """Decode the last click with the logits (s, s, s) after the ones before it."""
        shown = clicks if self._network.policy.click_history == "all" else clicks[-1:]
        prompt = torch.tensor(shown, dtype=torch.float32, device=self._device)[None]
        logits, _ = self._network.decode(
            embedding.prepared,
            points=prompt[..., :3],
            labels=prompt[..., 3].long(),
            mask=self._on_device(previous),
        )
        # a copy, so that the cache does not keep the other masks of the output in memory
        return logits[0, 0].float().cpu().numpy().copy()

    def _on_device(self, array: np.ndarray) -> Tensor:
        """Return an array (s, s, s) as a tensor [1, 1, s, s, s] on the device."""
        tensor = torch.from_numpy(array)[None, None]
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # unpinned memory is copied twice, and synchronously
        return tensor.to(self._device, non_blocking=True)
