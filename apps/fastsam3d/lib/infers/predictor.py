"""Encode a ROI once, decode it for every click, and give the mask its edges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.cache import ByteCache
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.device_queue import DeviceQueue
from lib.infers.mask_state import Beginning, MaskState, RoiPrompt
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


NOTHING_KNOWN = Beginning()

PROTECTED_LOGIT = -8.0
"""PROTECTED_LOGIT: logit of the cells of other structures, as the network and the walk get them."""

SCRIBBLE_CLICKS = 5
"""SCRIBBLE_CLICKS: clicks, evenly along the path, that a scribble becomes for the network."""


class FastSAM3DPredictor:
    """A network on a device, with caches of embeddings and states. It has no state per request.

    network: must be on the device. network_id: changes with any weight and is part of all cache
    keys. precision: the number type that the network computes in, for information.
    """

    def __init__(
        self,
        network: FastSAM3D | CapturedNetwork,
        network_id: str,
        device: torch.device,
        embeddings: ByteCache[ImageEmbedding],
        states: ByteCache[MaskState],
        precision: Precision = FLOAT32,
    ) -> None:
        self.precision = precision
        self._network = network
        self._network_id = network_id
        self._device = device
        self._embeddings = embeddings
        self._states = states
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

    def replay(
        self,
        embedding: ImageEmbedding,
        prompts: Sequence[RoiPrompt],
        beginning: Beginning = NOTHING_KNOWN,
        stages: Stopwatch | None = None,
    ) -> MaskState:
        """Replay the prompts of a structure in order, each with the mask of those before it.

        prompts: N >= 0; without any, the state of `beginning` is returned, or an empty mask. The
        states after all prefixes of the prompts are cached, so that a further prompt costs one
        step, and an earlier state none. stages: the times of Wait, Decode and Outline are added.
        """
        stages = stages if stages is not None else Stopwatch()
        base, prompts = (embedding.key, beginning.key()), tuple(prompts)
        cached, state = self._longest_cached_prefix(base, prompts)
        state = state or beginning.state or self._blank_state()
        for count in range(cached + 1, len(prompts) + 1):
            state = self._step(embedding, beginning, prompts[:count], state, stages)
            self._states.put((base, prompts[:count]), state)
        return state

    def _longest_cached_prefix(
        self, base: Hashable, prompts: tuple[RoiPrompt, ...]
    ) -> tuple[int, MaskState | None]:
        """Return the number of prompts whose state is cached, and that state."""
        for count in range(len(prompts), 0, -1):
            state = self._states.get((base, prompts[:count]))
            if state is not None:
                return count, state
        return 0, None

    def _blank_state(self) -> MaskState:
        # the networks were trained with zeros in the first step, not with "no mask"
        low_res = np.zeros((self._network.config.low_res_size,) * 3, dtype=np.float32)
        return MaskState(low_res, np.full_like(low_res, -1), 0.0)

    def _step(
        self,
        embedding: ImageEmbedding,
        beginning: Beginning,
        prompts: tuple[RoiPrompt, ...],
        state: MaskState,
        stages: Stopwatch,
    ) -> MaskState:
        """Return the state after the last prompt, from the one before it."""
        low_res = self._queue.run(
            stages, "Decode", self._decode, embedding, prompts, state.low_res, beginning.protected
        )
        return self._cpu_queue.run(
            stages, "Outline", self._delineate, embedding, low_res, prompts, beginning.protected
        )

    @torch.inference_mode()
    def _decode(
        self,
        embedding: ImageEmbedding,
        prompts: tuple[RoiPrompt, ...],
        previous: np.ndarray,
        protected: np.ndarray | None,
    ) -> np.ndarray:
        """Return the logits (s, s, s) of the last prompt, given those before it."""
        shown = prompts if self._network.policy.click_history == "all" else prompts[-1:]
        points_roi, labels = clicks_of(shown)
        logits, _ = self._network.decode(
            embedding.prepared,
            points=torch.tensor(points_roi, dtype=torch.float32, device=self._device)[None],
            labels=torch.tensor(labels, device=self._device)[None],
            mask=self._on_device(without_protected(previous, protected)),
        )
        # a copy, so that the cache does not keep the other masks of the output in memory
        return logits[0, 0].float().cpu().numpy().copy()

    def _delineate(
        self,
        embedding: ImageEmbedding,
        low_res: np.ndarray,
        prompts: tuple[RoiPrompt, ...],
        protected: np.ndarray | None,
    ) -> MaskState:
        """Return the state with the mask's edges: those of the image, or of the logits."""
        config, policy, values = self._network.config, self._network.policy, low_res
        if embedding.guide is not None:
            points_roi, labels = clicks_of(prompts)
            guide = embedding.guide
            values = random_walk(low_res, guide, points_roi, labels, config.roi_size, protected)
        threshold = mask_threshold(torch.from_numpy(values)[None], policy.mask_threshold)
        return MaskState(low_res, values, float(threshold))

    def _on_device(self, array: np.ndarray) -> Tensor:
        """Return an array (s, s, s) as a tensor [1, 1, s, s, s] on the device."""
        tensor = torch.from_numpy(array)[None, None]
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # unpinned memory is copied twice, and synchronously
        return tensor.to(self._device, non_blocking=True)


def clicks_of(prompts: Sequence[RoiPrompt]) -> tuple[np.ndarray, np.ndarray]:
    """Return the clicks (N, 3) that prompts become, ROI voxel indices, and their labels (N,)."""
    points, labels = [], []
    for prompt in prompts:
        places = prompt.points_roi
        if len(places) > SCRIBBLE_CLICKS:
            places = places[np.linspace(0, len(places) - 1, SCRIBBLE_CLICKS).round().astype(int)]
        points.append(places)
        labels.append(np.full(len(places), int(prompt.is_foreground), dtype=np.int64))
    return np.concatenate(points), np.concatenate(labels)


def without_protected(logits: np.ndarray, protected: np.ndarray | None) -> np.ndarray:
    """Return logits (s, s, s) that are low in the cells of other structures.

    protected: (c, c, c) bool, c a multiple of s; None if there are no other structures.
    """
    if protected is None:
        return logits
    size, step = len(logits), len(protected) // len(logits)
    shares = protected.reshape(size, step, size, step, size, step).mean(axis=(1, 3, 5))
    return np.where(shares >= 0.5, np.float32(PROTECTED_LOGIT), logits)
