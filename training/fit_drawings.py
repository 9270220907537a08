"""Fit the priors of drawings: `python -m training.fit_drawings --data DIR --part train`.

A prior is the probability that a cell of the ROI belongs to the structure of a drawing
(`lib/infers/drawing_prior.py`). This program draws on labelled scans with
`benchmarks/simulated_prompts.py` and prints the coefficients of the logistic regressions.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarks.datasets import find_cases, read_case, targets
from benchmarks.protocols import MIN_MM3
from benchmarks.simulated_prompts import DRAWINGS
from nibabel.affines import voxel_sizes
from scipy.special import expit
from torch.nn import functional as F
from tqdm import tqdm

from lib.errors import AppError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.drawing_prior import NETWORK_KINDS, regression_terms
from lib.infers.drawings import describe, roi_rule
from lib.infers.random_walker import CELLS, make_guide
from lib.networks import FastSAM3D
from lib.weights.files import file_weights

SAMPLED_CELLS = 4000
"""SAMPLED_CELLS: cells of each structure that the regression sees."""

RIDGE, ITERATIONS = 1e-6, 30
"""RIDGE, ITERATIONS: weight of the squared coefficients, and steps of Newton's method."""

Structure = tuple[str, str, Volume, np.ndarray]
"""Structure: source, name, image and mask (I, J, K) bool."""


def structures(
    data: Path, part: str, per_source: int, left_out: Sequence[str] = ()
) -> Iterator[Structure]:
    """Yield up to `per_source` structures of each source, of as many scans as there are.

    left_out: sources that are not used.
    """
    generator = np.random.default_rng(0)
    cases = [case for case in find_cases(data, part) if case.source not in left_out]
    for source in sorted({case.source for case in cases}):
        scans = [case for case in cases if case.source == source]
        per_scan = -(-per_source // len(scans))
        left = per_source
        for number in generator.permutation(len(scans)):
            case = scans[number]
            image, labels = read_case(case)
            masks = list(targets(case, labels, MIN_MM3))
            for index in generator.permutation(len(masks))[: min(per_scan, left)]:
                name, mask = masks[index]
                left -= 1
                yield source, f"{case.name}/{name}", image, mask


@torch.inference_mode()
def network_logits(network: FastSAM3D, roi_image: np.ndarray, clicks_roi: np.ndarray) -> np.ndarray:
    """Return the low-resolution logits (s, s, s) for positive clicks (N, 3) and no mask."""
    prepared = network.prepare(network.encode(torch.from_numpy(roi_image)[None, None]))
    points = torch.tensor(clicks_roi, dtype=torch.float32)[None]
    labels = torch.ones(points.shape[:2], dtype=torch.long)
    previous = torch.zeros((1, 1, *(network.config.low_res_size,) * 3))
    logits, _ = network.decode(prepared, points=points, labels=labels, mask=previous)
    return np.asarray(logits[0, 0].numpy())


def sample(kind: str, structure: Structure, network: FastSAM3D) -> tuple[np.ndarray, np.ndarray]:
    """Draw on a structure; return inputs (N, 1 + terms) and the structure's share (N,) of cells.

    kind: a name in DRAWINGS.
    """
    _, name, image, mask = structure
    voxel_mm = voxel_sizes(image.affine_mm)
    generator = np.random.default_rng([list(DRAWINGS).index(kind), zlib.crc32(name.encode())])
    path_ijk = DRAWINGS[kind](mask, voxel_mm.tolist(), generator)
    subtype = kind if kind in ("lasso", "scribble") else "bounding_box"
    size = network.config.roi_size
    centre, spacing_mm = roi_rule(subtype, path_ijk, voxel_mm, size)
    roi = Roi.place(
        image.shape_ijk, image.affine_mm, centre[None], size=size, spacing_mm=spacing_mm
    )
    roi_image = normalize(roi.crop(image.array), image.is_ct)
    drawing = describe(subtype, roi.to_roi(path_ijk), size)
    logits = None
    if drawing.kind in NETWORK_KINDS:
        logits = network_logits(network, roi_image, drawing.clicks_roi)
    terms = regression_terms(drawing, make_guide(roi_image), logits)
    target = torch.from_numpy(roi.crop(mask.astype(np.float32)))[None, None]
    shares = F.adaptive_avg_pool3d(target, CELLS)[0, 0].numpy()[drawing.near]
    inputs = np.stack([np.ones_like(shares), *(term[drawing.near] for term in terms)], axis=1)
    chosen = generator.permutation(len(shares))[:SAMPLED_CELLS]
    return inputs[chosen].astype(np.float64), shares[chosen]


def fit_logistic(inputs: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients (F,) of the largest weighted likelihood, by Newton's method.

    inputs: (N, F). shares: (N,), the probabilities to fit. weights: (N,).
    """
    coefficients = np.zeros(inputs.shape[1])
    for _ in range(ITERATIONS):
        expected = expit(inputs @ coefficients)
        curvature = (inputs * (weights * expected * (1 - expected))[:, None]).T @ inputs
        gradient = inputs.T @ (weights * (shares - expected)) - RIDGE * coefficients
        coefficients += np.linalg.solve(curvature + RIDGE * np.eye(len(coefficients)), gradient)
    return coefficients


def fit(kind: str, found: Sequence[Structure], network: FastSAM3D) -> np.ndarray:
    """Return the coefficients of a kind of drawing; each source has the same weight."""
    count = Counter(source for source, *_ in found)
    samples = [sample(kind, structure, network) for structure in tqdm(found, desc=kind)]
    weights = [
        np.full(len(shares), 1 / len(shares) / count[source] / len(count))
        for (source, *_), (_, shares) in zip(found, samples, strict=True)
    ]
    inputs, shares = zip(*samples, strict=True)
    return fit_logistic(np.concatenate(inputs), np.concatenate(shares), np.concatenate(weights))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--part", default="train", help="part of the data")
    parser.add_argument("--weights", type=Path, required=True, help="weights of the network")
    parser.add_argument("--per-source", type=int, default=10, help="structures of each source")
    parser.add_argument("--leave-out", nargs="*", default=[], help="sources that are not used")
    options = parser.parse_args(arguments)
    try:
        network = file_weights(options.weights).network.eval()
        found = list(structures(options.data, options.part, options.per_source, options.leave_out))
        for kind in DRAWINGS:
            print(kind, np.round(fit(kind, found, network), 2).tolist())
    except AppError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
