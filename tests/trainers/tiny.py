"""Networks, studies and batches small enough to train with in a test."""

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from lib.networks import FastSAM3D, FastSAM3DConfig, MaskPolicy, build_untrained
from lib.trainers.data import Study
from lib.trainers.stages import Batch

STUDENT = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=32,
    depth=2,
    num_heads=2,
    out_channels=32,
    attention_free_blocks=(0,),
    residual="normed",
    position_bias="textbook",
    decoder_heads=2,
    decoder_mlp_width=32,
    iou_head_width=16,
    swap_dense_axes=False,
)
TEACHER = dataclasses.replace(STUDENT, depth=4, attention_free_blocks=(), residual="pre_norm")

AFFINE_MM = np.array([[0, 2.0, 0, -7], [-1.5, 0, 0, 4], [0, 0, 3.0, 11], [0, 0, 0, 1]])
SHAPE = (44, 36, 22)


def student(
    seed: int = 1, config: FastSAM3DConfig = STUDENT, policy: MaskPolicy | None = None
) -> FastSAM3D:
    return build_untrained(config, seed, policy)


def teacher(seed: int = 0, config: FastSAM3DConfig = TEACHER) -> FastSAM3D:
    return build_untrained(config, seed)


def make_study(folder: Path, name: str, seed: int = 0, labelled: bool = True) -> Study:
    """Write a body in air with two bright boxes, labelled 2 and 5, on a turned and flipped grid."""
    generator = np.random.default_rng(seed)
    image = np.full(SHAPE, 5.0)
    image[8:36, 6:30, 3:19] = 100
    label = np.zeros(SHAPE, dtype=np.uint8)
    for value, low in ((2, 11), (5, 24)):
        start = generator.integers(low, low + 3), generator.integers(8, 12), 5
        box = tuple(slice(a, a + n) for a, n in zip(start, (8, 12, 9), strict=True))
        image[box] = 100 + 40 * value
        label[box] = value
    image += generator.normal(0, 3, SHAPE)
    path, label_path = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), AFFINE_MM), path)
    if labelled:
        nibabel.save(nibabel.Nifti1Image(label, AFFINE_MM), label_path)
    return Study(name, path, label_path if labelled else None)


def smooth(count: int, seed: int) -> Tensor:
    """Return images (count, 1, 32, 32, 32) of random blobs, in which neighbours are alike."""
    coarse = torch.randn(count, 1, 6, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(32, 32, 32), mode="trilinear") * 1.5


def make_batch(count: int = 4, seed: int = 0, labelled: bool = False) -> Batch:
    """Return a batch as a DataLoader over a RoiPool makes it, without reading studies."""
    image = smooth(count, seed)
    target = torch.nn.functional.avg_pool3d((image > 1).float(), 2)[:, 0]
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": image,
        "target": target if labelled else torch.zeros_like(target),
        "has_label": torch.full((count,), labelled),
        "click_roi": torch.rand(count, 3, generator=generator) * 31,
        "key": [f"{seed}-{number}" for number in range(count)],
    }
