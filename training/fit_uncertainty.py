"""Fit the uncertainty: `python -m training.fit_uncertainty --data DIR --weights FILE`.

The Platt scaling of `lib/infers/uncertainty.py` turns margins, threshold and number of clicks into
the probability of foreground. This program simulates clicks on scans that may be trained on, with
the path of the server. It prints the constants of the regression and its calibration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F
from tqdm import tqdm

from lib.cache import ByteCache, array_nbytes
from lib.errors import AppError, InputError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi, crop_labels
from lib.infers.mask_state import MaskState, RoiPrompt
from lib.infers.predictor import FastSAM3DPredictor
from lib.infers.uncertainty import foreground_probability
from lib.networks import load_checkpoint

from .sources import Case, load_cases

BAND_CELLS = 5
"""BAND_CELLS: cells that count are those of the mask and those at most so many steps from it."""

CELLS_PER_CLICK = 400
"""CELLS_PER_CLICK: number of random cells of the band that are taken after each click."""

RIDGE = 1e-4
"""RIDGE: weight of the squared coefficients against the mean log loss."""

BINS = 15
"""BINS: equal bins of the probability in the expected calibration error."""


SPACINGS_MM = 0.75, 2.25
"""SPACINGS_MM: smallest and largest voxel of the ROIs; its logarithm is uniform between them."""


class CellSamples(NamedTuple):
    """Cells of the band.

    inputs: (N, F) of the regression. is_foreground: (N,) bool. probability: (N,), as served.
    """

    inputs: np.ndarray
    is_foreground: np.ndarray
    probability: np.ndarray


def draw_roi(
    cases: list[Case], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a ROI around a random voxel of a random structure: image and target, (S, S, S).

    cases: with images. The image is float32 and normalised, the target bool.
    """
    while True:
        case = cases[rng.integers(len(cases))]
        assert case.image is not None
        number = int(rng.choice(list(case.boxes)))
        voxels = np.argwhere(case.labels[case.boxes[number]] == number)
        start = [part.start for part in case.boxes[number]]
        spacing_mm = float(np.exp(rng.uniform(*np.log(SPACINGS_MM))))
        first_ijk = voxels[rng.integers(len(voxels))] + start
        roi = Roi.place(
            case.labels.shape, case.affine_mm, first_ijk[None], size=size, spacing_mm=spacing_mm
        )
        target = crop_labels(roi, case.labels) == number
        try:
            image = normalize(roi.crop(case.image), case.is_ct)
        except InputError:  # no contrast
            continue
        if target.any():
            return image, target


def simulate(
    predictor: FastSAM3DPredictor,
    image: np.ndarray,
    target: np.ndarray,
    clicks: int,
    rng: np.random.Generator,
) -> CellSamples:
    """Click on random voxels of the error, and return cells after each click.

    image: (S, S, S) float32, normalised. target: (S, S, S) bool, not empty.
    """
    embedding = predictor.encode(rng.bytes(16), lambda: image)
    mask = np.zeros_like(target)
    prompts: list[RoiPrompt] = []
    parts = []
    for _ in range(clicks):
        error = np.argwhere(mask != target)
        if not len(error):
            break
        voxel = error[rng.integers(len(error))]
        place = tuple(float(index) for index in voxel)
        prompts.append(RoiPrompt("point", (place,), bool(target[tuple(voxel)])))
        state = predictor.replay(embedding, prompts)
        upsampled = F.interpolate(
            torch.from_numpy(state.margins)[None, None], size=target.shape, mode="trilinear"
        )
        mask = upsampled[0, 0].numpy() > 0
        parts.append(_cells(state, len(prompts), target, rng))
    return CellSamples(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _cells(
    state: MaskState, clicks: int, target: np.ndarray, rng: np.random.Generator
) -> CellSamples:
    """Return random cells of the band around the mask."""
    margins, threshold = state.margins, state.threshold
    share = F.adaptive_avg_pool3d(torch.from_numpy(target)[None, None].float(), len(margins))
    near = ndimage.binary_dilation(margins > 0, iterations=BAND_CELLS)
    chosen = rng.permutation(np.flatnonzero(near))[:CELLS_PER_CLICK]
    constant = [np.full(len(chosen), value) for value in (threshold, np.log(clicks))]
    return CellSamples(
        np.stack([margins.ravel()[chosen], *constant], axis=1),
        share[0, 0].numpy().ravel()[chosen] >= 0.5,
        foreground_probability(margins, threshold, clicks).ravel()[chosen],
    )


def fit_logistic(
    inputs: np.ndarray, truth: np.ndarray, ridge: float = RIDGE
) -> tuple[np.ndarray, float]:
    """Return coefficients (F,) and intercept of the logistic regression, by Newton's method.

    inputs: (N, F). truth: (N,) bool. ridge: weight of the squared coefficients of the standardised
    inputs, against the mean log loss.
    """
    means, deviations = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    design = np.column_stack([(inputs - means) / deviations, np.ones(len(inputs))]).astype(float)
    penalty = np.diag([ridge] * inputs.shape[1] + [0.0])
    solution = np.zeros(design.shape[1])
    for _ in range(25):
        probability = 1 / (1 + np.exp(-design @ solution))
        gradient = design.T @ (probability - truth) / len(truth) + penalty @ solution
        variance = probability * (1 - probability)
        hessian = (design * variance[:, None]).T @ design / len(truth) + penalty
        solution -= np.linalg.solve(hessian + 1e-9 * np.eye(len(solution)), gradient)
    coefficients = solution[:-1] / deviations
    return coefficients, float(solution[-1] - coefficients @ means)


def calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean of |share true - mean probability|.

    probability, truth: (N,). The mean is over bins of equal width, weighted by their samples.
    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI
    2015.
    """
    number = np.minimum((probability * bins).astype(int), bins - 1)
    sums = np.bincount(number, probability - truth, minlength=bins)
    return float(np.abs(sums).sum() / len(truth))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--weights", type=Path, required=True, help="file of the network's weights")
    parser.add_argument("--samples", type=int, default=80, help="ROIs, one structure each")
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=15)
    options = parser.parse_args(arguments)
    try:
        cases = [case for case in load_cases(options.data) if case.image is not None]
        network = load_checkpoint(options.weights).eval()
    except AppError as error:
        sys.exit(str(error))
    predictor = FastSAM3DPredictor(
        network,
        options.weights.name,
        torch.device("cpu"),
        ByteCache(2**27, nbytes=lambda embedding: embedding.nbytes),
        ByteCache(2**25, nbytes=array_nbytes),
    )
    rng = np.random.default_rng(options.seed)
    parts = []
    for _ in tqdm(range(options.samples), unit="ROI", mininterval=5):
        image, target = draw_roi(cases, network.config.roi_size, rng)
        parts.append(simulate(predictor, image, target, options.clicks, rng))
    inputs, truth, served = (np.concatenate(values) for values in zip(*parts, strict=True))
    coefficients, intercept = fit_logistic(inputs, truth)
    fitted = 1 / (1 + np.exp(-(inputs @ coefficients + intercept)))
    print(f"COEFFICIENTS = {np.round(coefficients, 4).tolist()}\nINTERCEPT = {intercept:.4f}")
    print(f"calibration error: constants so far {calibration_error(served, truth):.3f}, ", end="")
    print(f"new ones {calibration_error(fitted, truth):.3f}")


if __name__ == "__main__":
    main()
