"""Fit the estimate of a structure's size: `python -m training.fit_scale --data DIR`.

The estimate chooses the ROI's voxel size from the image around the first click
(`lib/infers/scale.py`). This program simulates first clicks with the samples of the pretraining and
prints the constants of the ridge regression.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from lib.errors import AppError
from lib.infers.random_walker import make_guide
from lib.infers.scale import click_features

from .data import ClickSamples, SampleOptions
from .pretrain import ATLASES
from .sources import load_atlases, load_cases

RIDGE = 0.03
"""RIDGE: weight of the squared coefficients, relative to the number of clicks."""

SMALLEST_SHARE, CLAMPED_SHARE = 0.01, 0.02
"""SMALLEST_SHARE: structures with a smaller diameter, as a share of the ROI's side, are left out.
CLAMPED_SHARE: the targets of the regression are clamped to [CLAMPED_SHARE, 1]."""


class RidgeFit(NamedTuple):
    """The constants of `lib.infers.scale`: (F,), (F,), (F,), and one number."""

    means: np.ndarray
    deviations: np.ndarray
    coefficients: np.ndarray
    intercept: float


def simulate_clicks(samples: ClickSamples, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (N, F) and log diameters (N,) of the targets of `count` samples.

    A diameter is that of a ball with the target's volume, as a share of the ROI's side.
    """
    features, diameters = [], []
    for number in tqdm(range(count), unit="ROI", mininterval=5):
        sample = samples[number]
        image = sample["image"][0].numpy()
        guide = make_guide(image)
        for target, click in zip(sample["targets"], sample["clicks_roi"], strict=True):
            diameter = (6 / np.pi * float(target.mean())) ** (1 / 3)
            if diameter > SMALLEST_SHARE:
                features.append(click_features(guide, (click.numpy() + 0.5) / len(image)))
                diameters.append(np.clip(diameter, CLAMPED_SHARE, 1))
    return np.array(features), np.log(diameters)


def fit_ridge(features: np.ndarray, targets: np.ndarray, ridge: float = RIDGE) -> RidgeFit:
    """Fit targets (N,) = features (N, F), standardised, @ coefficients + intercept."""
    means, deviations = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = (features - means) / deviations
    intercept = float(targets.mean())
    gram = inputs.T @ inputs + ridge * len(inputs) * np.eye(inputs.shape[1])
    coefficients = np.linalg.solve(gram, inputs.T @ (targets - intercept))
    return RidgeFit(means, deviations, coefficients, intercept)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--atlases", type=Path, default=ATLASES, help="folder of mricron-data")
    parser.add_argument("--samples", type=int, default=1050, help="ROIs, of three structures each")
    parser.add_argument("--seed", type=int, default=78)
    options = parser.parse_args(arguments)
    try:
        cases = [*load_cases(options.data), *load_atlases(options.atlases)]
        samples = ClickSamples(cases, SampleOptions(), options.seed)
        fit = fit_ridge(*simulate_clicks(samples, options.samples))
    except AppError as error:
        sys.exit(str(error))
    for name, values in fit._asdict().items():
        print(f"{name.upper()} = {np.round(values, 4).tolist()}")


if __name__ == "__main__":
    main()
