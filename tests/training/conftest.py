"""Fixtures of the tests of `training`."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from training.sources import Case

from lib.networks import FastSAM3D, FastSAM3DConfig
from lib.networks.fastsam3d import build_untrained

TINY = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=24,
    depth=2,
    num_heads=2,
    out_channels=64,
    attention_free_blocks=(0,),
    residual="normed",
    position_bias="textbook",
    decoder_mlp_width=32,
    iou_head_width=16,
    swap_dense_axes=False,
)


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Undo what the pretraining sets for its process; property-based tests elsewhere draw them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def tiny_network() -> FastSAM3D:
    """A whole network for ROIs of 32³ voxels, with masks of 16³ logits."""
    return build_untrained(TINY, seed=0)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Make a case with two touching boxes, 5 and 9, on a flipped, permuted, anisotropic grid."""

    def make(with_image: bool = True) -> Case:
        labels = np.zeros((30, 24, 18), dtype=np.int16)
        labels[6:20, 5:17, 4:10] = 5
        labels[6:20, 5:17, 10:14] = 9
        affine_mm = np.array([[0, 2.0, 0, -7], [-1.5, 0, 0, 4], [0, 0, 3.0, 11], [0, 0, 0, 1]])
        image = (labels * 100 + 50).astype(np.float32) if with_image else None
        return Case.from_labels("two boxes", labels, affine_mm, image)

    return make
