"""The click path: a request with clicks on an image becomes a mask on the grid of that image.

MONAI Label's `BasicInferTask` calls these methods of `FastSAM3DInfer` in this order, with one
dictionary `data` per request:

`__call__`         check the request and choose the device      request.py
`pre_transforms`   read the volume (cached)                     transforms.py, lib/imaging/volume.py
                   parse clicks and box                         prompts.py
                   place the ROI around the clicks              lib/imaging/roi.py
`run_inferer`      crop and normalise the ROI, encode (cached)  predictor.py
                   decode click after click (cached)            predictor.py
                   give the mask its edges                      random_walker.py
`post_transforms`  paste the mask into the stored image         transforms.py, lib/imaging/roi.py
                   give clicked voxels their label              transforms.py
`writer`           return the mask, or write its file           lib/imaging/mask_file.py
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.utils.others.generic import device_list

from lib.cache import ByteCache
from lib.imaging.intensity import normalize
from lib.imaging.mask_file import write_temporary
from lib.imaging.volume import Volume
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.precision import choose
from lib.infers.predictor import FastSAM3DPredictor, ImageEmbedding
from lib.infers.request import MASK, check_reply_form, requested_device, requested_form
from lib.infers.stopwatch import Stopwatch
from lib.infers.transforms import (
    LabelClickedVoxelsd,
    LoadVolumed,
    ParsePromptsd,
    PasteRoid,
    PlaceRoid,
    Transforms,
)
from lib.weights.files import Weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caches:
    """The caches between requests, each bounded in bytes; all models of an app share them."""

    volumes: ByteCache[Volume]
    embeddings: ByteCache[ImageEmbedding]
    masks: ByteCache[np.ndarray]


class FastSAM3DInfer(BasicInferTask):
    """An interactive model of type ``deepgrow``: each request has all clicks on one structure."""

    def __init__(
        self,
        weights: Weights,
        labels: Sequence[str],
        caches: Caches,
        *,
        spacing_mm: float = 1.5,
        device: str | None = None,
        description: str = "",
        current: Callable[[], Weights] | None = None,
    ) -> None:
        """Set up the task; a network goes to its device when it is first used there.

        weights: what to serve. labels: names that clients offer. spacing_mm: distance of ROI
        voxels. device: a name for `find_device`; None offers all devices, the first by default.
        current: returns the weights to use now, if they can change while the server runs.
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
        self._predictors: dict[tuple[str, str], FastSAM3DPredictor] = {}
        self._predictors_lock = threading.Lock()

    def info(self) -> dict[str, Any]:
        """Return the task's entry in ``/info``, with its weights and their precision by device."""
        weights = self._current()
        description = f"{self.description} ({weights.describe()})"
        return {
            **super().info(),
            "description": description,
            "weights": weights.info(),
            "precision": {
                device: asdict(predictor.precision)
                for (_, device), predictor in list(self._predictors.items())
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

    def pre_transforms(self, data: dict[str, Any]) -> Transforms:
        """Return the steps from the request to the ROI; see the head of this file."""
        # the same version from here to the reply, even if another one is published meanwhile
        weights = data["weights"] = self._current()
        size = weights.network.config.roi_size
        return [
            LoadVolumed(self._caches.volumes),
            ParsePromptsd(),
            PlaceRoid(size, self._spacing_mm),
        ]

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda"
    ) -> dict[str, Any]:
        """Compute ``values`` on the ROI, and ``threshold``, from volume, prompts and ROI.

        device: "cpu" or "cuda:N", as `__call__` set it.
        """
        volume, prompts, roi = data["volume"], data["prompts"], data["roi_cube"]
        predictor = self._predictor(data["weights"], device)
        # stages that the caches skip stay 0
        stages = data["latencies"]["infer"] = Stopwatch(Crop=0, Wait=0, Encode=0, Decode=0)
        embedding = predictor.encode(
            roi_key=(data["volume_key"], roi),
            make_roi_image=lambda: normalize(roi.crop(volume.array), volume.is_ct),
            stages=stages,
        )
        points_roi = roi.to_roi(prompts.points_ijk)
        low_res = predictor.decode(embedding, points_roi, prompts.labels, stages)
        data["values"], data["threshold"] = predictor.delineate(
            embedding, low_res, points_roi, prompts.labels, stages
        )
        return data

    def post_transforms(self, data: Any = None) -> Transforms:
        """Return the steps from the network's values to the mask of the stored image."""
        return [PasteRoid(), LabelClickedVoxelsd()]

    def writer(
        self, data: dict[str, Any], extension: Any = None, dtype: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Write ``pred`` to a temporary file; return its path and the reply's parameters.

        The caller removes the file. If the request has the key MASK, there is no file: the path is
        None, and the parameters hold the mask itself.
        """
        roi = data["roi_cube"]
        params = {
            "warnings": data["warnings"],
            "weights": data["weights"].info(),
            "roi": {"affine_mm": roi.affine_mm.tolist(), "size": roi.size},
        }
        _log_click(data)
        if data.get(MASK):
            return None, {**params, MASK: data["pred"]}
        form = requested_form(data, data["image_path"])
        form = replace(form, extension=extension or form.extension, dtype=dtype or form.dtype)
        return write_temporary(data["pred"], form), params

    def _predictor(self, weights: Weights, device: str) -> FastSAM3DPredictor:
        """Return the predictor of weights on "cpu" or "cuda:N", making it if it is new."""
        with self._predictors_lock:
            if (weights.network_id, device) not in self._predictors:
                self._drop_others(weights.network_id)
                network = weights.network if device == "cpu" else copy.deepcopy(weights.network)
                network, precision = choose(network, torch.device(device))
                self._predictors[weights.network_id, device] = FastSAM3DPredictor(
                    CapturedNetwork(network),
                    weights.network_id,
                    torch.device(device),
                    self._caches.embeddings,
                    self._caches.masks,
                    precision,
                )
            return self._predictors[weights.network_id, device]

    def _drop_others(self, network_id: str) -> None:
        """Drop the predictors of all other weights, and their cached results."""
        old = {each for each, _ in self._predictors} - {network_id}
        for key in [key for key in self._predictors if key[0] in old]:
            del self._predictors[key]
        if old:
            self._caches.embeddings.drop(lambda key: key[0] in old)
            self._caches.masks.drop(lambda key: key[0][0] in old)


def _log_click(data: dict[str, Any]) -> None:
    """Log clicks, result and times of a request, and its warnings."""
    labels = data["prompts"].labels
    stages = {k: v for stage in data["latencies"].values() for k, v in stage.items()}
    logger.info(
        "click on %s: %d foreground, %d background, %d voxels; %s",
        os.path.basename(data["image_path"]),
        (labels == 1).sum(),
        (labels == 0).sum(),
        np.count_nonzero(data["pred"].values),
        ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in stages.items()),
    )
    for warning in data["warnings"]:
        logger.warning("%s: %s", os.path.basename(data["image_path"]), warning)
