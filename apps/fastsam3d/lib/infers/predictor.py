"""Encode a ROI once, decode it for every click, and give the mask its edges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lib.cache import ByteCache
from lib.infers.adapted_network import AdaptedNetwork
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.device_queue import DeviceQueue
from lib.infers.drawing_prior import (
    NETWORK_KINDS,
    NETWORK_SHARE,
    previous_mask,
    prior_logits,
    with_network,
)
from lib.infers.drawing_prior import TRUST as DRAWING_TRUST
from lib.infers.drawings import describe
from lib.infers.mask_state import Drawn, MaskState, RoiPrompt
from lib.infers.mask_steps import (
    clicks_of,
    corrected,
    fixed_cells,
    is_satisfied_by,
    joined,
    without_region,
)
from lib.infers.precision import FLOAT32, Precision
from lib.infers.random_walker import CELLS, TRAINED_MM, make_guide, random_walk
from lib.infers.stopwatch import Stopwatch
from lib.networks import FastSAM3D, PreparedImage, mask_threshold


@dataclass(frozen=True)
class ImageEmbedding:
    """A ROI after encoding, prepared for the decoder.

    key: identifies the weights, the device and the ROI. guide: the image whose edges the random
    walker follows (:func:`~lib.infers.random_walker.make_guide`). spacing_mm: distance between ROI
    voxels.
    """

    key: Hashable
    prepared: PreparedImage
    guide: np.ndarray
    spacing_mm: float

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes + self.guide.nbytes


class FastSAM3DPredictor:
    """A network on a device, with caches of embeddings and states. It has no state per request.

    network: must be on the device. network_id: changes with any weight and is part of all cache
    keys. precision: the number type that the network computes in, for information.
    """

    def __init__(
        self,
        network: FastSAM3D | CapturedNetwork | AdaptedNetwork,
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
        spacing_mm: float = TRAINED_MM,
        stages: Stopwatch | None = None,
    ) -> ImageEmbedding:
        """Return the embedding of a ROI, from the cache if `roi_key` was encoded before.

        make_roi_image: returns the normalised ROI image, (S, S, S) float32 in RAS+ order.
        spacing_mm: distance between ROI voxels, which `roi_key` must contain.
        stages: the times of Crop, Wait and Encode are added.
        """
        key = (self._network_id, str(self._device), roi_key)
        stages = stages if stages is not None else Stopwatch()

        def make() -> ImageEmbedding:
            with stages.measure("Crop"):
                roi_image = make_roi_image()
            return self._queue.run(stages, "Encode", self._encode, key, roi_image, spacing_mm)

        return self._embeddings.get_or_make(key, make)

    @torch.inference_mode()
    def _encode(self, key: Hashable, roi_image: np.ndarray, spacing_mm: float) -> ImageEmbedding:
        volume = self._on_device(roi_image)
        prepared = self._network.prepare(self._network.encode(volume))
        return ImageEmbedding(key, prepared, make_guide(roi_image), spacing_mm)

    def replay(
        self,
        embedding: ImageEmbedding,
        prompts: Sequence[RoiPrompt],
        start: MaskState | None = None,
        stages: Stopwatch | None = None,
    ) -> MaskState:
        """Replay the prompts of a structure in order, each with the mask of those before it.

        prompts: N >= 0; without any, `start` is returned, or an empty mask. start: the mask that
        was there before the first prompt, if any. The states after all prefixes of the prompts are
        cached, so that a further prompt costs one step, and an earlier state none. stages: the
        times of Wait, Decode and Outline are added.
        """
        stages = stages if stages is not None else Stopwatch()
        base, prompts = (embedding.key, start.digest() if start else ""), tuple(prompts)
        cached, state = self._longest_cached_prefix(base, prompts)
        state = state or start or self._blank_state()
        for count in range(cached + 1, len(prompts) + 1):
            state = self._step(embedding, prompts[:count], state, stages)
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
        return MaskState(low_res, np.full((CELLS,) * 3, -1, dtype=np.float32), 0.0)

    def _step(
        self,
        embedding: ImageEmbedding,
        prompts: tuple[RoiPrompt, ...],
        state: MaskState,
        stages: Stopwatch,
    ) -> MaskState:
        """Return the state after the last prompt, from the one before it."""
        policy, config = self._network.policy, self._network.config
        prompt = prompts[-1]
        if policy.mask_edges == "image" and is_satisfied_by(state, prompt, config.roi_size):
            return state
        if prompt.subtype in ("lasso", "bounding_box") and not prompt.is_foreground:
            return without_region(state, prompt, config.roi_size)
        if prompt.subtype == "point" or not prompt.is_foreground:
            return self._step_clicks(embedding, prompts, state, stages)
        return self._step_drawing(embedding, prompts, state, stages)

    def _step_clicks(
        self,
        embedding: ImageEmbedding,
        prompts: tuple[RoiPrompt, ...],
        state: MaskState,
        stages: Stopwatch,
    ) -> MaskState:
        """Return the state after a point, or after a scribble on the background.

        After a drawing the walk starts from its prior, with a share of the network's logits.
        """
        low_res, drawn, trust = state.low_res, state.drawn, None
        if drawn is None or NETWORK_SHARE[drawn.kind]:
            low_res = self._queue.run(
                stages, "Decode", self._decode, embedding, prompts, state.low_res
            )
        if self._network.policy.mask_edges == "logits" and drawn is None:
            threshold = self._threshold(low_res)
            return MaskState(low_res, low_res - threshold, float(threshold))
        logits = low_res
        if drawn is not None:
            logits = with_network(drawn.logits, drawn.kind, low_res)
            trust = DRAWING_TRUST[drawn.kind]
        values = self._walk(embedding, logits, prompts, state.fixed, trust, stages)
        roi_size = self._network.config.roi_size
        with stages.measure("Correct"):
            threshold = self._threshold(values)
            margins = corrected(state, values - threshold, prompts[-1], roi_size)
        return replace(state, low_res=low_res, margins=margins, threshold=float(threshold))

    def _step_drawing(
        self,
        embedding: ImageEmbedding,
        prompts: tuple[RoiPrompt, ...],
        state: MaskState,
        stages: Stopwatch,
    ) -> MaskState:
        """Return the state after a box, a lasso or a scribble on the structure."""
        config, prompt = self._network.config, prompts[-1]
        drawing = describe(prompt.subtype, prompt.points_roi, config.roi_size)
        network_logits = None
        if drawing.kind in NETWORK_KINDS:
            blank = np.zeros_like(state.low_res)
            network_logits = self._queue.run(
                stages, "Decode", self._decode, embedding, prompts[-1:], blank
            )
        logits = prior_logits(drawing, embedding.guide, network_logits)
        decided = fixed_cells(state.fixed, drawing.fixed)
        trust = DRAWING_TRUST[drawing.kind]
        values = self._walk(embedding, logits, prompts, decided, trust, stages)
        threshold = float(mask_threshold(torch.from_numpy(values)[None], "expected_dice"))
        margins = joined(state, values - np.float32(threshold), decided)
        low_res = previous_mask(margins, 0.0, config.low_res_size)
        if state.drawn is not None:
            logits = np.maximum(logits, state.drawn.logits)
        drawn = Drawn(drawing.kind, logits)
        return MaskState(low_res, margins, threshold, drawn, decided, state.is_given)

    @torch.inference_mode()
    def _decode(
        self,
        embedding: ImageEmbedding,
        prompts: tuple[RoiPrompt, ...],
        previous: np.ndarray,
    ) -> np.ndarray:
        """Return the logits (s, s, s) of the last prompt, given those before it."""
        shown = prompts if self._network.policy.click_history == "all" else prompts[-1:]
        points_roi, labels = clicks_of(shown)
        logits, _ = self._network.decode(
            embedding.prepared,
            points=torch.tensor(points_roi, dtype=torch.float32, device=self._device)[None],
            labels=torch.tensor(labels, device=self._device)[None],
            mask=self._on_device(previous),
        )
        # a copy, so that the cache does not keep the other masks of the output in memory
        return logits[0, 0].float().cpu().numpy().copy()

    def _walk(
        self,
        embedding: ImageEmbedding,
        logits: np.ndarray,
        prompts: tuple[RoiPrompt, ...],
        fixed: np.ndarray | None,
        drawing_trust: float | None,
        stages: Stopwatch,
    ) -> np.ndarray:
        """Return the logits (CELLS,)*3 of the random walk, which ends at the edges of the image."""
        points_roi, labels = clicks_of(prompts)
        return self._cpu_queue.run(
            stages,
            "Outline",
            random_walk,
            logits,
            embedding.guide,
            points_roi,
            labels,
            self._network.config.roi_size,
            embedding.spacing_mm,
            fixed,
            drawing_trust,
        )

    def _threshold(self, values: np.ndarray) -> np.float32:
        """Return the logit above which a cell of values (c, c, c) is inside of the mask."""
        threshold = mask_threshold(
            torch.from_numpy(values)[None], self._network.policy.mask_threshold
        )
        return np.float32(threshold)

    def _on_device(self, array: np.ndarray) -> Tensor:
        """Return an array (s, s, s) as a tensor [1, 1, s, s, s] on the device."""
        tensor = torch.from_numpy(array)[None, None]
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # unpinned memory is copied twice, and synchronously
        return tensor.to(self._device, non_blocking=True)
