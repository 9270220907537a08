"""Masks on finer cells: where, from what, and that nothing else changes."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from lib.networks import (
    FastSAM3D,
    FastSAM3DConfig,
    build_untrained,
    load_checkpoint,
    save_checkpoint,
)
from lib.networks.finer import Box, box_around
from lib.precision import lowered

CONFIG = FastSAM3DConfig(
    roi_size=64,
    patch_size=8,
    width=24,
    depth=1,
    num_heads=2,
    out_channels=48,
    decoder_heads=2,
    decoder_mlp_width=32,
    position_bias="none",
    swap_dense_axes=False,
    detail_channels=5,
    finer_channels=4,
)
POINTS, LABELS = torch.tensor([[[20.0, 33.0, 40.0], [60.0, 2.0, 5.0]]]), torch.tensor([[1, 0]])


@pytest.fixture(scope="module")
def network() -> FastSAM3D:
    """With an output that is not zero, as it is before training."""
    network = build_untrained(CONFIG, seed=3)
    torch.nn.init.normal_(network.finer_mask.out.weight, generator=torch.Generator().manual_seed(0))
    return network


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))


def answer(start: tuple[int, int, int], stop: tuple[int, int, int]) -> torch.Tensor:
    """Logits [1, 1, 32, 32, 32] that are sure of a box of cells."""
    logits = torch.full((1, 1, 32, 32, 32), -9.0)
    Box(start, stop).of(logits, 1).fill_(4.0)
    return logits


def sharpen(
    network: FastSAM3D, volume: torch.Tensor, low_res: torch.Tensor, points=POINTS, labels=LABELS
) -> torch.Tensor:
    with torch.no_grad():
        prepared = network.prepare(network.encode(volume))
        return network.sharpen(low_res, volume, prepared, points, labels)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        ((10, 10, 10), (12, 12, 12), Box((2, 2, 2), (20, 20, 20))),
        ((6, 9, 20), (25, 20, 21), Box((4, 6, 12), (28, 22, 28))),
        ((0, 0, 31), (1, 32, 32), Box((0, 0, 16), (16, 32, 32))),
    ],
)
def test_the_box_holds_the_object_and_a_margin(start, stop, expected) -> None:
    assert box_around(answer(start, stop)[0, 0]) == expected


def test_where_nothing_is_likely_there_is_no_box(network, volume) -> None:
    low_res = torch.full((1, 1, 32, 32, 32), -9.0)
    assert box_around(low_res[0, 0]) is None
    expected = F.interpolate(low_res, scale_factor=2, mode="trilinear")
    assert torch.equal(sharpen(network, volume, low_res), expected)


def test_untrained_it_is_an_interpolation(volume) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    expected = F.interpolate(low_res, scale_factor=2, mode="trilinear")
    got = sharpen(build_untrained(CONFIG, seed=1), volume, low_res)
    # the box ends where the mask is flat, so interpolating the box alone gives the same
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_only_the_box_is_refined(network, volume) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    box = box_around(low_res[0, 0])
    changed = sharpen(network, volume, low_res) != F.interpolate(
        low_res, scale_factor=2, mode="trilinear"
    )
    inside = torch.zeros_like(changed)
    box.of(inside, 2).fill_(True)
    assert changed[inside].float().mean() > 0.99 and not changed[~inside].any()


def test_it_sees_the_image_at_its_place_and_not_beyond_the_box(network, volume) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    before = sharpen(network, volume, low_res)
    with torch.no_grad():
        prepared = network.prepare(network.encode(volume))

    def difference(ijk: tuple[int, int, int]) -> torch.Tensor:
        other = volume.clone()
        other[0, 0, ijk[0], ijk[1], ijk[2]] += 3
        with torch.no_grad():  # only this level sees the change
            after = network.sharpen(low_res, other, prepared, POINTS, LABELS)
        return (after - before).abs()[0, 0]

    assert not difference((60, 60, 60)).any()
    seen = difference((21, 35, 39))
    strongest = torch.unravel_index(seen.argmax(), seen.shape)
    assert [int(x) for x in strongest] == pytest.approx([21, 35, 39], abs=3)


def test_it_sees_the_detail_around(network, volume) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    with torch.no_grad():
        prepared = network.prepare(network.encode(volume))
        before = network.sharpen(low_res, volume, prepared, POINTS, LABELS)
        other = prepared.detail.clone()
        other[:, :, 10, 17, 19] += 3
        prepared = dataclasses.replace(prepared, detail=other)
        after = network.sharpen(low_res, volume, prepared, POINTS, LABELS)
    seen = (after - before).abs()[0, 0]
    strongest = torch.unravel_index(seen.argmax(), seen.shape)
    assert [int(x) // 2 for x in strongest] == pytest.approx([10, 17, 19], abs=2)


def test_clicks_move_with_the_box(network, volume) -> None:
    """A mask, its image and its clicks 8 voxels further give the same, 8 voxels further."""
    low_res = answer((8, 14, 16), (12, 20, 22))
    there = sharpen(network, volume, low_res)
    moved = [x.roll((n, n, n), dims=(2, 3, 4)) for x, n in ((volume, 8), (low_res, 4))]
    with torch.no_grad():
        prepared = network.prepare(network.encode(moved[0]))
        detail = network.prepare(network.encode(volume)).detail
        # the stem's borders do not move
        prepared = dataclasses.replace(prepared, detail=detail.roll((4, 4, 4), dims=(2, 3, 4)))
        here = network.sharpen(moved[1], moved[0], prepared, POINTS + 8, LABELS)
    first, second = Box((6, 12, 14), (14, 22, 24)), Box((10, 16, 18), (18, 26, 28))
    torch.testing.assert_close(second.of(here, 2), first.of(there, 2), atol=1e-5, rtol=0)
    elsewhere = sharpen(network, volume, low_res, POINTS + 4)
    assert (elsewhere - there).abs().max() > 1e-3


def test_clicks_outside_of_the_box_change_nothing(network, volume) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    alone = sharpen(network, volume, low_res, POINTS[:, :1], LABELS[:, :1])
    both = sharpen(network, volume, low_res)
    torch.testing.assert_close(alone, both, atol=1e-5, rtol=0)
    negative = sharpen(network, volume, low_res, POINTS[:, :1], 1 - LABELS[:, :1])
    assert (negative - alone).abs().max() > 1e-3


def test_boxes_of_a_batch_are_those_of_each(network, volume) -> None:
    boxes = [Box((2, 4, 6), (10, 12, 14)), Box((20, 8, 0), (28, 16, 8))]
    volumes = torch.cat([volume, volume.flip(2)])
    with torch.no_grad():
        detail = network.prepare(network.encode(volumes)).detail
        low_res = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
        points, labels = POINTS.expand(2, -1, -1), LABELS.expand(2, -1)
        together = network.sharpen_boxes(boxes, low_res, volumes, detail, points, labels)
        for n in range(2):
            one = slice(n, n + 1)
            alone = network.sharpen_boxes(
                boxes[one], low_res[one], volumes[one], detail[one], points[one], labels[one]
            )
            torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)
    assert together.shape == (2, 1, 16, 16, 16)


def test_it_is_kept_in_a_file_and_lowered(network, volume, tmp_path) -> None:
    low_res = answer((8, 14, 16), (12, 20, 22))
    save_checkpoint(network, tmp_path / "n.safetensors", {})
    again = load_checkpoint(tmp_path / "n.safetensors")
    assert again.config == CONFIG
    expected = sharpen(network, volume, low_res)
    assert torch.equal(sharpen(again, volume, low_res), expected)
    got = sharpen(lowered(network, "bfloat16"), volume, low_res)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=0.2, rtol=0.05)


def test_it_needs_detail() -> None:
    with pytest.raises(ValueError, match="finer_channels 4 need detail_channels, not 0"):
        dataclasses.replace(CONFIG, detail_channels=0)
