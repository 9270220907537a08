"""The loss is 0 for certainty, falls towards the target, and counts small targets too."""

import pytest
import torch
from training.losses import INTENSITIES, intensity_loss, mask_loss, overlaps


def target_of(side: int) -> torch.Tensor:
    target = torch.zeros(1, 12, 14, 16)
    target[:, 2 : 2 + side, 3 : 3 + side, 4 : 4 + side] = 1
    return target


def test_certainty_costs_nothing() -> None:
    target = target_of(4)
    assert float(mask_loss((target - 0.5) * 200, target)) == pytest.approx(0, abs=1e-4)


def test_dice_part_has_the_value_of_its_definition() -> None:
    target = target_of(4)
    shifted = torch.roll(target, 2, dims=1)  # half of 64 cells shared
    dice_alone = mask_loss((shifted - 0.5) * 2e3, target) - mask_loss(
        (shifted - 0.5) * 1e3, target
    )  # what grows with the logits is cross-entropy: 64 wrong cells, 500 more each
    volume = 64 + 0.05 * target[0].numel()
    assert float(dice_alone) == pytest.approx(64 * 500 / volume, rel=1e-4)
    total = float(mask_loss((shifted - 0.5) * 1e3, target))
    assert total - 64 * 500 / volume == pytest.approx(1 - (2 * 32 + 1) / (128 + 1), rel=1e-3)


@pytest.mark.parametrize("side", [1, 9])
def test_gradient_points_to_the_target(side: int) -> None:
    target = target_of(side)
    logits = torch.zeros_like(target, requires_grad=True)
    mask_loss(logits, target).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[target == 1] < 0).all()
    assert (logits.grad[target == 0] > 0).all()


def test_overlaps_of_known_masks() -> None:
    target = target_of(4)
    iou, dice = overlaps(torch.roll(target, 2, dims=1) - 0.5, target)
    assert float(iou) == pytest.approx(32 / 96)
    assert float(dice) == pytest.approx(0.5)
    assert [float(x) for x in overlaps(-torch.ones_like(target), target * 0)] == [0, 0]


def test_intensity_channels_are_wanted_at_their_intensity() -> None:
    image = torch.full((1, 1, 8, 8, 8), INTENSITIES[2])
    image[..., 4:] = (INTENSITIES[4] + INTENSITIES[5]) / 2
    upscaled = torch.zeros(1, 12, 4, 4, 4)
    upscaled[:, 0] = upscaled[:, 9:] = 7  # other channels are free
    upscaled[:, 3, ..., :2] = 1
    upscaled[:, 5:7, ..., 2:] = 0.5
    assert float(intensity_loss(upscaled, image)) == pytest.approx(0, abs=1e-10)
    assert float(intensity_loss(upscaled.flip(1), image)) > 0.1


def test_intensities_beyond_the_scale_count_as_its_ends() -> None:
    upscaled = torch.zeros(1, 9, 4, 4, 4)
    upscaled[:, len(INTENSITIES)] = 1
    image = torch.full((1, 1, 8, 8, 8), 50.0)
    assert float(intensity_loss(upscaled, image)) == pytest.approx(0, abs=1e-10)


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="7 upscaled channels"):
        intensity_loss(torch.zeros(1, 7, 4, 4, 4), torch.zeros(1, 1, 8, 8, 8))
