"""2D networks get each slice with its pixels and clicks in the right place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.protocols import Scan, make_protocol
from benchmarks.slicewise import Slicewise
from torch import Tensor

from lib.errors import InputError
from lib.imaging.volume import Volume

# AFFINE_MM: axis 0 of the array runs from head to foot
AFFINE_MM = np.array([[0, 0, 1.5, 0], [0, 2.0, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])


class Thresholding:
    """Returns the bright pixels if the first click lies on one."""

    size = 64

    def normalise(self, images: Tensor) -> Tensor:
        return images / 255 - 0.5

    def encode(self, images: Tensor) -> Tensor:
        assert images.shape == (1, 3, 64, 64)
        return images[:, :1]

    def decode(self, features, points, labels, mask=None) -> Tensor:
        x, y = points[0, 0].round().long().tolist()
        on_object = features[0, 0, y, x] > 0
        return torch.where(on_object, features, -torch.ones_like(features))


@pytest.fixture
def target() -> np.ndarray:
    mask = np.zeros((8, 24, 32), dtype=bool)  # half of the network's side: edges stay sharp
    mask[2:5, 4:14, 12:28] = True
    mask[5, 6:12, 16:22] = True
    return mask


@pytest.mark.parametrize("protocol", ["random", "cvpr2025"])
def test_each_slice_of_the_structure_gets_its_clicks(target: np.ndarray, protocol: str) -> None:
    scan = Scan(Path("a.nii"), Volume((100.0 * target).astype(np.float32), AFFINE_MM, False))
    series = Slicewise(Thresholding())(scan, target, make_protocol(protocol, (1, 2)), "a/1")
    assert series.dice == (1.0,) * len(series.dice)
    np.testing.assert_array_equal(series.mask, target)
    assert set(series.clicks_ijk[:, 0].tolist()) == {2, 3, 4, 5}
    first = [series.labels[series.clicks_ijk[:, 0] == n][0] for n in (2, 3, 4, 5)]
    assert first == [1, 1, 1, 1]


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="sam_med2d: "):
        Slicewise.load("sam_med2d", str(tmp_path / "x.pth"))
