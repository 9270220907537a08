"""The fit of the uncertainty recovers known constants, and calibration is measured."""

import numpy as np
import pytest
import torch
from training.fit_uncertainty import calibration_error, draw_roi, fit_logistic, simulate

from lib.cache import ByteCache, array_nbytes
from lib.infers.predictor import FastSAM3DPredictor
from lib.infers.uncertainty import COEFFICIENTS


def test_known_constants_are_recovered() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(2, 3, (40_000, 3))
    expected = np.array([0.5, -0.3, 0.0])
    truth = rng.random(len(inputs)) < 1 / (1 + np.exp(-(inputs @ expected + 0.7)))
    coefficients, intercept = fit_logistic(inputs, truth)
    np.testing.assert_allclose(coefficients, expected, atol=0.03)
    assert intercept == pytest.approx(0.7, abs=0.1)
    strict, _ = fit_logistic(inputs, truth, ridge=1.0)
    assert np.abs(strict).max() < 0.5 * np.abs(coefficients).max()


def test_calibration_error() -> None:
    truth = np.array([True, True, False, False])
    assert calibration_error(np.full(4, 0.5), truth) == pytest.approx(0)
    assert calibration_error(np.full(4, 0.9), truth) == pytest.approx(0.4)
    # over in one bin and under in another do not cancel
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), ~truth) == pytest.approx(0.9)


def test_simulated_clicks_become_inputs(make_case, tiny_network) -> None:  # noqa: ANN001
    rng = np.random.default_rng(3)
    image, target = draw_roi([make_case()], tiny_network.config.roi_size, rng)
    assert image.shape == target.shape == (32, 32, 32)
    assert target[16, 16, 16]
    predictor = FastSAM3DPredictor(
        tiny_network.eval(),
        "tiny",
        torch.device("cpu"),
        ByteCache(2**25, nbytes=lambda embedding: embedding.nbytes),
        ByteCache(2**25, nbytes=array_nbytes),
    )
    samples = simulate(predictor, image, target, 3, rng)
    assert samples.inputs.shape == (len(samples.is_foreground), len(COEFFICIENTS))
    assert 0 < samples.is_foreground.mean() < 1
    assert ((samples.probability >= 0) & (samples.probability <= 1)).all()
