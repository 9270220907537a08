"""The click path: a request with clicks on an image becomes a mask on the grid of that image.

MONAI Label's `BasicInferTask` calls these methods of `FastSAM3DInfer` in this order, with one
dictionary `data` per request:

`__call__`         check the request and choose the device      request.py
`pre_transforms`   read the volume (cached)                     transforms.py, lib/imaging/volume.py
                   parse the prompts                            prompt_parser.py
                   read the mask to start from (cached)         initial_mask.py
                   place a ROI for each structure               structures.py, scale.py
`run_inferer`      crop and normalise a ROI, encode (cached)    predictor.py
                   replay prompt after prompt (cached)          predictor.py
                   give the mask its edges                      random_walker.py
`post_transforms`  paste the masks into the stored image        semantic_mask.py
                   give marked voxels their structure           semantic_mask.py
                   probability, uncertainty, next clicks        outputs.py
`writer`           return the mask, or write its file           lib/imaging/mask_file.py
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.utils.others.generic import device_list

from lib.cache import ByteCache
from lib.imaging.mask import BoxMask
from lib.imaging.mask_file import write_temporary
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.adapted_network import AdaptedNetwork
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.image_score import score_image
from lib.infers.interactions import describe_interactions
from lib.infers.large_mask import coarser_roi, fits_inside, join, reaches_face
from lib.infers.mask_state import MaskState
from lib.infers.outputs import Outputs, structure_error
from lib.infers.precision import Precision, choose
from lib.infers.predictor import FastSAM3DPredictor, ImageEmbedding
from lib.infers.request import MAPS, MASK, check_reply_form, requested_device, requested_form
from lib.infers.roi_images import RoiImages
from lib.infers.scale import Look, RoiScale
from lib.infers.stopwatch import Stopwatch
from lib.infers.structures import RoiMask, RoiStructure, prompts_in_roi
from lib.infers.transforms import (
    LoadVolumed,
    MakeOutputsd,
    ParsePromptsd,
    PasteStructuresd,
    PlaceRoisd,
    ReadInitialMaskd,
    Transforms,
)
from lib.networks import AttentionChoice, FastSAM3D, with_attention
from lib.weights.files import Weights

logger = logging.getLogger(__name__)


MAX_PREDICTORS = 64
"""MAX_PREDICTORS: devices and versions of weights that a model keeps a predictor of."""

MAX_LOOKS = 1024
"""MAX_LOOKS: clicks for which it is remembered what the image around them says of the scale."""


@dataclass(frozen=True)
class Caches:
    """The caches between requests, each bounded in bytes; all models of an app share them."""

    volumes: ByteCache[Volume]
    embeddings: ByteCache[ImageEmbedding]
    states: ByteCache[MaskState]
    initial_masks: ByteCache[BoxMask]


class FastSAM3DInfer(BasicInferTask):
    """An interactive model of type ``deepgrow``: each request has all prompts on its structures."""

    def __init__(
        self,
        weights: Weights,
        labels: Sequence[str],
        caches: Caches,
        *,
        spacing_mm: float = 1.5,
        auto_zoom: bool = False,
        attention: AttentionChoice = "stored",
        label_codes: Mapping[str, str] | None = None,
        device: str | None = None,
        description: str = "",
        current: Callable[[], Weights] | None = None,
    ) -> None:
        """Set up the task; a network goes to its device when it is first used there.

        weights: what to serve. labels: names that clients offer. label_codes: SNOMED CT codes of
        labels, by name. spacing_mm: distance of ROI
        voxels. auto_zoom: choose another distance for structures of another size. attention: the
        operator to compute with. device: a name
        for `find_device`; None offers all devices, the first by default. current: returns the
        weights to use now, if they can change while the server runs.
        """
        super().__init__(
            path=None,
            network=weights.network,
            type=InferType.DEEPGROW,
            labels=list(labels),
            dimension=3,
            description=description,
            config={"device": [device] if device else device_list()},
        )
        self._current = current or (lambda: weights)
        self._caches = caches
        self._spacing_mm = spacing_mm
        self._auto_zoom = auto_zoom
        self._attention = attention
        self._interactions = describe_interactions(labels, label_codes or {})
        self._looks: ByteCache[Look] = ByteCache(MAX_LOOKS, nbytes=lambda _: 1)
        self._roi_images = RoiImages()
        self._predictors: ByteCache[FastSAM3DPredictor] = ByteCache(
            MAX_PREDICTORS, nbytes=lambda _: 1
        )

    def info(self) -> dict[str, Any]:
        """Return the task's entry in ``/info``, with its weights, interactions and precisions."""
        weights = self._current()
        description = f"{self.description} ({weights.describe()})"
        return {
            **super().info(),
            "description": description,
            "weights": weights.info(),
            "attention": weights.network.config.with_attention(self._attention).operator,
            "interactions": self._interactions,
            "precision": {
                device: asdict(predictor.precision)
                for (_, device), predictor in self._predictors.items()
            },
        }

    def prepare(self) -> None:
        """Choose the precision for the default device, which the first click would wait for."""
        self._predictor(self._current(), requested_device(self._config["device"]))

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict]:
        """Return the path of a mask file and the reply's parameters; see `writer`.

        request: ``image``, a path; the clicks, see `parse_prompts`; the form of the reply, see
        `MaskForm`; ``device``. Raises InputError if the request or the image cannot be used.
        """
        check_reply_form(request)
        device = requested_device(request.get("device", self._config["device"]))
        return super().__call__({**request, "device": device}, callbacks)

    @property
    def network_id(self) -> str:
        """What identifies the weights that are served now."""
        return self._current().network_id

    def score(self, path: str) -> float:
        """Return how uncertain the model is on an image; see `score_image`.

        path: of the image. Raises InputError if it cannot be used.
        """
        volume = LoadVolumed(self._caches.volumes)({"image_path": path})["volume"]
        return score_image(
            volume, os.path.basename(path), lambda request: self._reply({"image": path, **request})
        )

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of the reply to a request, without writing a file."""
        return dict(self({**request, MASK: True})[1])

    def pre_transforms(self, data: dict[str, Any]) -> Transforms:
        """Return the steps from the request to the ROI; see the head of this file."""
        # the same version from here to the reply, even if another one is published meanwhile
        weights = data["weights"] = self._current()
        size = weights.network.config.roi_size
        scale = RoiScale(size, self._spacing_mm, self._auto_zoom, self._looks, self._roi_images)
        return [
            LoadVolumed(self._caches.volumes),
            ParsePromptsd(),
            ReadInitialMaskd(self._caches.initial_masks),
            PlaceRoisd(scale, weights.network.config.low_res_size),
        ]

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda"
    ) -> dict[str, Any]:
        """Compute the mask of each structure of ``structures`` on its ROI.

        device: "cpu" or "cuda:N", as `__call__` set it.
        """
        predictor = self._predictor(data["weights"], device)
        # stages that the caches skip stay 0
        stages = data["latencies"]["infer"] = Stopwatch(
            Crop=0, Wait=0, Encode=0, Decode=0, Outline=0, Correct=0
        )
        follows_image = data["weights"].network.policy.mask_edges == "image"
        for structure in data["structures"]:
            structure.state = self._replay(predictor, data, structure, structure.roi, stages)
            structure.mask = RoiMask(structure.roi, structure.state.margins)
            # published weights give exactly the masks that they were published with
            if follows_image and structure.start is None:
                self._go_on_beyond(predictor, data, structure, stages)
        return data

    def _replay(
        self,
        predictor: FastSAM3DPredictor,
        data: dict[str, Any],
        structure: RoiStructure,
        roi: Roi,
        stages: Stopwatch,
    ) -> MaskState:
        """Return the mask that a structure's prompts lead to on a ROI."""
        if structure.start is not None and not structure.prompts:
            return structure.start  # all prompts mark another part of the structure
        volume: Volume = data["volume"]
        embedding = predictor.encode(
            roi_key=(data["volume_key"], roi),
            make_roi_image=lambda: self._roi_images.crop(volume, data["volume_key"], roi),
            spacing_mm=roi.spacing_mm,
            stages=stages,
        )
        structure.is_adapted |= embedding.prepared.is_adapted
        prompts = prompts_in_roi(structure.prompts, roi)
        return predictor.replay(embedding, prompts, structure.start, stages)

    def _go_on_beyond(
        self,
        predictor: FastSAM3DPredictor,
        data: dict[str, Any],
        structure: RoiStructure,
        stages: Stopwatch,
    ) -> None:
        """Continue a mask that reaches the face of its ROI on a coarser one."""
        fine = structure.mask
        assert fine is not None
        roi = coarser_roi(fine.roi)
        if roi is None or not reaches_face(fine.margins, 0.0, fine.roi):
            return
        margins = self._replay(predictor, data, structure, roi, stages).margins
        if fits_inside(margins, 0.0, roi, fine.roi):
            margins, _ = join(fine.margins, 0.0, fine.roi, margins, 0.0, roi)
        structure.mask = RoiMask(roi, margins)

    def post_transforms(self, data: Any = None) -> Transforms:
        """Return the steps from the masks on the ROIs to the mask of the stored image."""
        return [PasteStructuresd(), MakeOutputsd()]

    def writer(
        self, data: dict[str, Any], extension: Any = None, dtype: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Write ``pred`` to a temporary file; return its path and the reply's parameters.

        The caller removes the file. If the request has the key MASK, there is no file: the path is
        None, and the parameters hold the mask itself.
        """
        params = {
            "warnings": data["warnings"],
            "weights": data["weights"].info(),
            "roi": _describe_roi(data["structures"][0]),
            "structures": {str(each.number): _describe(each) for each in data["structures"]},
            "expected_error": round(max(map(structure_error, data["structures"])), 4),
        }
        _log_click(data)
        outputs: Outputs = data["outputs_made"]
        params |= outputs.facts
        if data.get(MASK):
            return None, {**params, MASK: data["pred"], MAPS: outputs.maps}
        form = requested_form(data, data["image_path"])
        form = replace(form, extension=extension or form.extension, dtype=dtype or form.dtype)
        return write_temporary(data["pred"], form), params

    def _predictor(self, weights: Weights, device: str) -> FastSAM3DPredictor:
        """Return the predictor of weights on "cpu" or "cuda:N", making it if it is new.

        Choosing its precision takes seconds, for which only the requests for it wait.
        """

        def make() -> FastSAM3DPredictor:
            self._drop_others(weights.network_id)
            served: CapturedNetwork | AdaptedNetwork
            if weights.adaptation is None:
                (network,), precision = self._computed([weights.network], device)
                served = CapturedNetwork(network)
            else:
                (network, earlier), precision = self._computed(
                    [weights.network, weights.before_adaptation], device
                )
                adapted = earlier.with_decoder(network.mask_decoder)  # one encoder in memory
                likeness = weights.adaptation.likeness.to(torch.device(device))
                served = AdaptedNetwork(
                    CapturedNetwork(adapted), CapturedNetwork(earlier), likeness
                )
            return FastSAM3DPredictor(
                served,
                weights.network_id,
                torch.device(device),
                self._caches.embeddings,
                self._caches.states,
                precision,
            )

        return self._predictors.get_or_make((weights.network_id, device), make)

    def _computed(
        self, networks: list[FastSAM3D], device: str
    ) -> tuple[list[FastSAM3D], Precision]:
        """Return networks on a device, with the operator to compute with, and their precision."""
        networks = [with_attention(network, self._attention) for network in networks]
        if device != "cpu":
            networks = [copy.deepcopy(network) for network in networks]
        return choose(networks, torch.device(device))

    def _drop_others(self, network_id: str) -> None:
        """Drop the predictors of all other weights, and their cached results."""
        old = {each for (each, _), _ in self._predictors.items()} - {network_id}
        if old:
            self._predictors.drop(lambda key: key[0] in old)
            self._caches.embeddings.drop(lambda key: key[0] in old)
            self._caches.states.drop(lambda key: key[0][0][0] in old)


def _describe(structure: RoiStructure) -> dict[str, Any]:
    return {**_describe_roi(structure), "adapted": structure.is_adapted}


def _describe_roi(structure: RoiStructure) -> dict[str, Any]:
    return {"affine_mm": structure.roi.affine_mm.tolist(), "size": structure.roi.size}


def _log_click(data: dict[str, Any]) -> None:
    """Log prompts, result and times of a request, and its warnings."""
    foreground = [prompt.is_foreground for prompt in data["prompts"].items]
    stages = {k: v for stage in data["latencies"].values() for k, v in stage.items()}
    logger.info(
        "click on %s: %d foreground, %d background, %d voxels; %s",
        os.path.basename(data["image_path"]),
        sum(foreground),
        len(foreground) - sum(foreground),
        np.count_nonzero(data["pred"].values),
        ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in stages.items()),
    )
    for warning in data["warnings"]:
        logger.warning("%s: %s", os.path.basename(data["image_path"]), warning)
