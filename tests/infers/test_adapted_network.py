"""An adapted student: images like the labels have its decoder, others the one before."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.errors import WeightsError
from lib.infers.fastsam3d import FastSAM3DInfer
from lib.infers.predictor import FastSAM3DPredictor
from lib.infers.request import MASK
from lib.infers.served_masks import small_caches
from lib.networks import (
    Adaptation,
    FastSAM3DConfig,
    ImageLikeness,
    build_untrained,
    image_features,
)
from lib.networks.earlier_decoder import EARLIER, LIKENESS
from lib.weights import Weights, file_weights, save_weights

CONFIG = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=24,
    depth=2,
    num_heads=2,
    out_channels=16,
    decoder_heads=2,
    decoder_mlp_width=16,
    iou_head_width=8,
    mask_channels=4,
    detail_channels=4,
    position_bias="none",
    swap_dense_axes=False,
)
CLICK = [12, 14, 16]


def write(path: Path, brightness: float) -> Path:
    image = np.random.default_rng(0).normal(0, 1, (30, 30, 30))
    image[5:20, 8:20, 10:22] += brightness
    nib.save(nib.Nifti1Image((100 * image).astype(np.int16), np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    return write(folder / "like.nii.gz", 3.0), write(folder / "unlike.nii.gz", -30.0)


@pytest.fixture(scope="module")
def before() -> Weights:
    return Weights(build_untrained(CONFIG, 1), "before", "before.safetensors")


def answer(weights: Weights, image: Path, **options: Any) -> tuple[bool, np.ndarray]:
    """Return whether the adapted decoder made the mask, and the mask."""
    task = FastSAM3DInfer(
        weights, ["organ"], small_caches(), spacing_mm=2.0, device="cpu", **options
    )
    params: Mapping[str, Any] = task({"image": str(image), "foreground": [CLICK], MASK: True})[1]
    return params["structures"]["1"]["adapted"], params[MASK].whole(bool)


@pytest.fixture(scope="module")
def adapted(before: Weights, images: tuple[Path, Path]) -> Weights:
    """Weights whose decoder changed, which were adapted to the first image."""
    features, encode = [], FastSAM3DPredictor._encode

    def record(predictor: FastSAM3DPredictor, key: Any, roi_image: np.ndarray, mm: float) -> Any:
        embedding = before.network.encode(torch.from_numpy(roi_image)[None, None])
        features.append(image_features(embedding, CONFIG))
        return encode(predictor, key, roi_image, mm)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(FastSAM3DPredictor, "_encode", record)
        for image in images:
            answer(before, image)
    known, other = (x.clone() for x in features)
    limit = torch.dist(known, other) / 2
    likeness = ImageLikeness(torch.zeros_like(known[0]), torch.ones_like(known[0]), known, limit)
    decoder = build_untrained(CONFIG, 2).mask_decoder
    network = copy.deepcopy(before.network).with_decoder(decoder)
    adaptation = Adaptation(before.network.mask_decoder, likeness)
    return Weights(network, "adapted", "adapted.safetensors", adaptation=adaptation)


@pytest.mark.parametrize("attention", ["stored", "sparse"])
def test_the_image_chooses_the_decoder(
    before: Weights, adapted: Weights, images: tuple[Path, Path], attention: str
) -> None:
    like, unlike = images
    always = replace(adapted, network_id="always", adaptation=None)
    is_adapted, mask = answer(adapted, like, attention=attention)
    assert is_adapted and np.array_equal(mask, answer(always, like, attention=attention)[1])
    is_adapted, mask = answer(adapted, unlike, attention=attention)
    assert not is_adapted and np.array_equal(mask, answer(before, unlike, attention=attention)[1])
    for image in images:
        assert not np.array_equal(answer(always, image)[1], answer(before, image)[1])


def test_a_file_keeps_both_decoders(
    adapted: Weights, images: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "adapted.safetensors"
    save_weights(adapted.network, path, adaptation=adapted.adaptation)
    read = file_weights(path)
    assert read.info()["adapted"]
    for image in images:
        (chosen, mask), (expected, same) = answer(read, image), answer(adapted, image)
        assert chosen == expected and np.array_equal(mask, same)
    assert read.adaptation is not None
    assert not any(x.requires_grad for x in read.adaptation.earlier.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{EARLIER}mask_tokens.weight", "earlier mask decoder does not fit"),
        (f"{LIKENESS}known", "images to compare with"),
    ],
)
def test_a_file_that_lacks_a_part_is_refused(
    adapted: Weights, tmp_path: Path, name: str, message: str
) -> None:
    path = tmp_path / "adapted.safetensors"
    save_weights(adapted.network, path, adaptation=adapted.adaptation)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({key: x for key, x in load_file(path).items() if key != name}, path, metadata)
    with pytest.raises(WeightsError, match=message):
        file_weights(path)
