"""The regression of the drawings' priors finds the coefficients that made the data."""

import numpy as np
from scipy.special import expit
from training.fit_drawings import fit_logistic


def test_the_regression_recovers_coefficients() -> None:
    generator = np.random.default_rng(0)
    inputs = np.c_[np.ones(5000), generator.normal(size=(5000, 2))]
    truth = np.array([0.5, -2, 1])
    weights = generator.uniform(0.5, 1.5, 5000) / 5000
    found = fit_logistic(inputs, expit(inputs @ truth), weights)
    np.testing.assert_allclose(found, truth, atol=0.01)


def test_cells_without_weight_do_not_count() -> None:
    generator = np.random.default_rng(1)
    inputs = np.c_[np.ones(400), generator.normal(size=400)]
    shares = expit(inputs @ [0.0, 1.5])
    shares[200:] = 1 - shares[200:]
    weights = np.r_[np.full(200, 1 / 200), np.zeros(200)]
    np.testing.assert_allclose(fit_logistic(inputs, shares, weights), [0, 1.5], atol=0.01)
