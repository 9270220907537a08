"""The click path: a request with clicks on an image becomes a mask on that image's own grid."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.utils.others.generic import device_list, name_to_device

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.intensity import normalize
from lib.imaging.mask_file import DTYPES, EXTENSIONS, MaskForm, write_temporary
from lib.imaging.volume import Volume
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.precision import choose
from lib.infers.predictor import FastSAM3DPredictor, ImageEmbedding
from lib.infers.stopwatch import Stopwatch
from lib.infers.transforms import (
    HonourClicksd,
    LoadVolumed,
    ParsePromptsd,
    PasteRoid,
    PlaceRoid,
    Transforms,
)
from lib.weights.files import Weights

logger = logging.getLogger(__name__)

# what a client may set: the clicks, the form of the reply, and what Slicer and OHIF send besides
CLICKS = ("foreground", "background", "roi")
REPLY = ("result_extension", "result_dtype", "result_compress", "restore_label_idx")
CLIENT = ("device", "label", "label_info", "client_id", "reset_state")
OPTIONS = (*CLICKS, *REPLY, *CLIENT)

MASK = "mask"
"""Set in a request of the server's own, it makes the reply hold the mask itself, and no file."""


@dataclass(frozen=True)
class Caches:
    """What is kept between requests, each bounded in bytes; the models of an app share them."""

    volumes: ByteCache[Volume]
    embeddings: ByteCache[ImageEmbedding]
    masks: ByteCache[np.ndarray]


class FastSAM3DInfer(BasicInferTask):
    """An interactive model of type ``deepgrow``: each request has all clicks of one structure."""

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
        """current: gives the weights to use now, where they can change while the server runs."""
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
        """Do what the first click would otherwise wait for: choose the precision for the device."""
        self._predictor(self._current(), name_to_device(self._config["device"][0]))

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict]:
        """Raises InputError for anything in the request or the image that cannot be used."""
        check_request(request)
        return super().__call__(request, callbacks)

    def pre_transforms(self, data: dict[str, Any]) -> Transforms:
        # one version from here to the reply, whatever is published meanwhile
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
        """``volume``, ``prompts``, ``roi_cube`` -> ``values`` on the ROI, and ``threshold``."""
        volume, prompts, roi = data["volume"], data["prompts"], data["roi_cube"]
        predictor = self._predictor(data["weights"], device)
        # what is known already takes no time
        stages = data["latencies"]["infer"] = Stopwatch(Crop=0, Wait=0, Encode=0, Decode=0)
        embedding = predictor.encode(
            roi_key=(data["volume_key"], roi),
            make_roi_image=lambda: normalize(roi.crop(volume.array), volume.is_ct),
            stages=stages,
        )
        points_roi = roi.to_roi(prompts.points_ijk)
        low_res = predictor.decode(embedding, points_roi, prompts.labels, stages)
        data["values"], data["threshold"] = predictor.cut(
            embedding, low_res, points_roi, prompts.labels, stages
        )
        return data

    def post_transforms(self, data: Any = None) -> Transforms:
        return [PasteRoid(), HonourClicksd()]

    def writer(
        self, data: dict[str, Any], extension: Any = None, dtype: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Write ``pred`` with the image's geometry; -> file and what is said beside the mask.

        Our own route takes the mask itself, under ``mask``, and there is no file. Whoever else asks
        removes the file.
        """
        roi = data["roi_cube"]
        said = {
            "warnings": data["warnings"],
            "weights": data["weights"].info(),
            "roi": {"affine_mm": roi.affine_mm.tolist(), "size": roi.size},
        }
        self._log_click(data)
        if data.get(MASK):
            return None, {**said, MASK: data["pred"]}
        form = MaskForm.of(data, data["image_path"])
        form = replace(form, extension=extension or form.extension, dtype=dtype or form.dtype)
        return write_temporary(data["pred"], form), said

    def _predictor(self, weights: Weights, device: str) -> FastSAM3DPredictor:
        with self._predictors_lock:
            if (weights.network_id, device) not in self._predictors:
                self._forget_others(weights.network_id)
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

    def _forget_others(self, network_id: str) -> None:
        """Other weights than these are served no more; what they computed goes with them."""
        old = {known for known, _ in self._predictors} - {network_id}
        for key in [key for key in self._predictors if key[0] in old]:
            del self._predictors[key]
        if old:
            self._caches.embeddings.drop(lambda key: key[0] in old)
            self._caches.masks.drop(lambda key: key[0][0] in old)

    def _log_click(self, data: Mapping[str, Any]) -> None:
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


def check_options(params: Mapping[str, Any]) -> None:
    """Refuse what a client may not set; raises InputError."""
    unknown = sorted(set(params) - set(OPTIONS))
    if unknown:
        raise InputError(
            f"unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(OPTIONS)}"
        )


def check_request(request: Mapping[str, Any]) -> None:
    """Check the form of the reply and the device that a request asks for; raises InputError."""
    for key, choices in (("result_extension", EXTENSIONS), ("result_dtype", DTYPES)):
        value = request.get(key)
        if value is not None and value not in choices:
            raise InputError(f"{key} is {value!r}; choose one of {', '.join(choices)}")
    if request.get("result_compress") not in (None, True, False):
        raise InputError(f"result_compress is {request['result_compress']!r}; send true or false")
    device = request.get("device")
    if device is not None and not _is_device(device):
        choices = ", ".join(device_list())
        raise InputError(f"there is no device {device!r} on this server; choose one of {choices}")


def _is_device(device: Any) -> bool:
    """``cuda`` is taken for the best there is, as MONAI Label does."""
    name = device[0] if isinstance(device, list) and device else device
    if not isinstance(name, str):
        return False
    return name in ("", "cpu", "cuda") or name in _known_devices()


def _known_devices() -> set[str]:
    return {known for name in device_list() for known in (name, name_to_device(name))}
