"""Cells as bright as the mask become likelier, others less likely."""

import numpy as np
import pytest
import torch

from lib.infers.intensity_likelihood import (
    LARGEST_WEIGHT,
    likelihood_weight,
    with_intensities,
)

SHAPE = (20, 24, 16)
STRUCTURE = (slice(5, 15), slice(6, 18), slice(4, 12))
FOUND = (slice(5, 15), slice(6, 12), slice(4, 12))
BRIGHTEST = 4.0


def prior_of_half() -> torch.Tensor:
    """A network that finds one half of the structure, and a wide border of doubt."""
    prior = torch.full(SHAPE, 0.05)
    prior[STRUCTURE] = 0.2
    prior[FOUND] = 0.8
    return prior


def guide(contrast: float) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(0, 0.3, SHAPE).astype(np.float32)
    image = torch.from_numpy(noise).clamp(-3, 3)
    image[STRUCTURE] += contrast
    return image.clamp(-BRIGHTEST, BRIGHTEST)


@pytest.mark.parametrize("contrast", [2.0, -2.0])
def test_the_missed_half_is_found_by_its_intensity(contrast: float) -> None:
    prior = prior_of_half()
    posterior = with_intensities(prior, guide(contrast), BRIGHTEST, weight=1.0)
    missed = torch.zeros(SHAPE, dtype=torch.bool)
    missed[STRUCTURE], outside = True, torch.ones(SHAPE, dtype=torch.bool)
    outside[STRUCTURE] = False
    missed[FOUND] = False
    assert posterior[missed].mean() > 0.4 > 2 * prior[missed].mean() - 0.01
    assert posterior[outside].mean() < 0.5 * prior[outside].mean()


def test_without_contrast_the_prior_stays() -> None:
    prior = prior_of_half()
    posterior = with_intensities(prior, guide(0.0), BRIGHTEST, weight=1.0)
    assert (posterior - prior).abs().mean() < 0.03


def test_weight_zero_and_too_few_cells_return_the_prior() -> None:
    prior = prior_of_half()
    assert torch.equal(with_intensities(prior, guide(2.0), BRIGHTEST, 0.0), prior)
    nothing = torch.full(SHAPE, 0.001)
    nothing[:2, :2, :2] = 0.9
    assert torch.equal(with_intensities(nothing, guide(2.0), BRIGHTEST, 1.0), nothing)


def test_values_at_the_limits_of_the_image_are_counted() -> None:
    image = guide(2.0)
    image[0], image[-1] = BRIGHTEST, -BRIGHTEST
    posterior = with_intensities(prior_of_half(), image, BRIGHTEST, 4.0)
    assert posterior.isfinite().all() and posterior.min() > 0 and posterior.max() < 1


def test_the_weight_grows_with_clicks_in_coarse_rois_alone() -> None:
    weights = [likelihood_weight(clicks, 2.0) for clicks in (0, 1, 2, 5)]
    assert weights[0] == weights[1] < weights[2] < weights[3]
    assert likelihood_weight(1, 3.0) == 1.5 * weights[1]
    assert likelihood_weight(100, 2.0) == LARGEST_WEIGHT
    assert likelihood_weight(100, 1.9) == 0
