"""The fit of the size estimate recovers a known relation and reads the pretraining's samples."""

import numpy as np
from training.data import ClickSamples, SampleOptions
from training.fit_scale import CLAMPED_SHARE, fit_ridge, simulate_clicks

from lib.infers.scale import COEFFICIENTS, DEVIATIONS, MEANS


def test_a_linear_relation_is_recovered() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (500, 4))
    expected = np.array([0.5, -1, 0, 2])
    targets = features @ expected + 7
    fit = fit_ridge(features, targets, ridge=1e-9)
    np.testing.assert_allclose(fit.coefficients / fit.deviations, expected, atol=1e-4)
    predicted = (features - fit.means) / fit.deviations @ fit.coefficients + fit.intercept
    np.testing.assert_allclose(predicted, targets, atol=1e-3)
    assert np.abs(fit_ridge(features, targets, ridge=10).coefficients).max() < 1


def test_samples_become_the_inputs_of_the_estimate(make_case) -> None:  # noqa: ANN001
    samples = ClickSamples([make_case()], SampleOptions(roi_size=64), seed=0)
    features, log_diameters = simulate_clicks(samples, 2)
    assert features.shape == (len(log_diameters), len(MEANS)) and len(log_diameters) > 0
    assert len(COEFFICIENTS) == len(DEVIATIONS) == len(MEANS)
    assert (log_diameters <= 0).all() and (log_diameters >= np.log(CLAMPED_SHARE)).all()
