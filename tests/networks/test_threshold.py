"""Where masks are cut out of their logits."""

import pytest
import torch

from lib.networks import mask_threshold
from lib.networks.threshold import LEAST_PROBABILITY


def expected_dice(probabilities: torch.Tensor, marked: torch.Tensor) -> float:
    """By sampling objects with these probabilities, voxel by voxel."""
    objects = torch.rand(4000, len(probabilities), generator=torch.Generator().manual_seed(0))
    objects = (objects < probabilities).float()
    both = (objects * marked).sum(dim=1)
    return float((2 * both / (objects.sum(dim=1) + marked.sum())).mean())


def test_no_other_threshold_gives_a_higher_expected_dice() -> None:
    generator = torch.Generator().manual_seed(1)
    for sharpness in (1, 2, 5):
        logits = sharpness * torch.randn(400, generator=generator) - 1
        chosen = float(mask_threshold(logits[None], "expected_dice"))
        ours = expected_dice(logits.sigmoid(), (logits > chosen).float())
        others = [
            expected_dice(logits.sigmoid(), (logits > other).float())
            for other in torch.arange(-6, 4, 0.25)
        ]
        assert ours > max(others) - 0.003


def test_threshold_is_low_where_little_is_sure_and_near_0_where_all_is() -> None:
    sure = torch.where(torch.arange(1000) < 100, 9.0, -9.0)
    vague = torch.where(torch.arange(1000) < 100, -0.5, -4.0)
    thresholds = mask_threshold(torch.stack([sure, vague]), "expected_dice")
    assert thresholds[0] == pytest.approx(0, abs=0.05)
    assert -2 < thresholds[1] < -1


def test_nothing_is_marked_where_nothing_is_likely() -> None:
    logits = torch.full((1, 8, 8, 8), -6.0)
    threshold = mask_threshold(logits, "expected_dice")
    assert threshold.sigmoid() == pytest.approx(LEAST_PROBABILITY)
    assert not (logits > threshold).any()


def test_all_that_can_be_inside_counts() -> None:
    """Of n voxels with probability p each, the expected Dice is 2 p n / (n + p n)."""
    logits = torch.full((1, 8, 8, 8), 0.15).logit()
    threshold = mask_threshold(logits, "expected_dice")
    assert threshold.sigmoid() == pytest.approx(0.15 / 1.15)
    assert (logits > threshold).all()


def test_published_networks_are_cut_at_0() -> None:
    assert mask_threshold(torch.randn(3, 4, 4, 4), "zero").tolist() == [0, 0, 0]
