"""The threshold of a mask."""

import pytest
import torch

from lib.networks import mask_threshold
from lib.networks.threshold import LEAST_PROBABILITY, _best_cuts


def expected_dice(probabilities: torch.Tensor, marked: torch.Tensor) -> float:
    """Estimate the expected Dice from sampled objects with these probabilities."""
    objects = torch.rand(4000, len(probabilities), generator=torch.Generator().manual_seed(0))
    objects = (objects < probabilities).float()
    both = (objects * marked).sum(dim=1)
    return float((2 * both / (objects.sum(dim=1) + marked.sum())).mean())


def test_no_other_threshold_gives_a_higher_expected_dice() -> None:
    generator = torch.Generator().manual_seed(1)
    for sharpness in (1, 2, 5):
        logits = sharpness * torch.randn(400, generator=generator) - 1
        chosen = float(mask_threshold(logits[None], "expected_dice"))
        estimate = expected_dice(logits.sigmoid(), (logits > chosen).float())
        others = [
            expected_dice(logits.sigmoid(), (logits > other).float())
            for other in torch.arange(-6, 4, 0.25)
        ]
        assert estimate > max(others) - 0.003


def test_threshold_is_low_for_vague_and_near_0_for_sure_logits() -> None:
    sure = torch.where(torch.arange(1000) < 100, 9.0, -9.0)
    vague = torch.where(torch.arange(1000) < 100, -0.5, -4.0)
    thresholds = mask_threshold(torch.stack([sure, vague]), "expected_dice")
    assert thresholds[0] == pytest.approx(0, abs=0.05)
    assert -2 < thresholds[1] < -1


def test_no_voxel_is_inside_if_none_is_likely() -> None:
    logits = torch.full((1, 8, 8, 8), -6.0)
    threshold = mask_threshold(logits, "expected_dice")
    assert threshold.sigmoid() == pytest.approx(LEAST_PROBABILITY)
    assert not (logits > threshold).any()


def test_equal_probabilities_give_half_of_the_expected_dice() -> None:
    """For n voxels of probability p, the expected Dice is 2 p n / (n + p n)."""
    logits = torch.full((1, 8, 8, 8), 0.15).logit()
    threshold = mask_threshold(logits, "expected_dice")
    assert threshold.sigmoid() == pytest.approx(0.15 / 1.15)
    assert (logits > threshold).all()


def test_masks_have_the_same_thresholds_with_all_voxels_sorted_at_once() -> None:
    """As a GPU sorts them."""
    spread = torch.tensor([0.1, 1.0, 4.0, 8.0])[:, None]
    logits = spread * torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) - 2
    probabilities = logits.sigmoid()
    at_once = _best_cuts(probabilities, probabilities.sum(dim=1)).logit()
    torch.testing.assert_close(at_once, mask_threshold(logits, "expected_dice"))


def test_the_threshold_of_published_networks_is_0() -> None:
    assert mask_threshold(torch.randn(3, 4, 4, 4), "zero").tolist() == [0, 0, 0]
