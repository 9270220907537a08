"""How long a training will take: the time of each network here, times how often a run uses it.

The forward passes are timed when a client asks for a training (about a second on a CPU). The other
factors are constants, which were measured on two CPU cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib.networks import FastSAM3D

from .adapt_batches import PAINTED, pool_sizes
from .adapt_options import AdaptOptions
from .served_judge import SERIES
from .train_options import TrainOptions
from .validation import CLICKS

GRADIENT = 3.3
"""GRADIENT: time of a forward pass with its backward pass and the update, in forward passes."""

SERIES_CLICKS, GRADED_CLICKS = 6, 2
"""SERIES_CLICKS, GRADED_CLICKS: mean clicks of a series in stage 2, and those with a loss."""

ROI_SECONDS, SERVED_CLICK_SECONDS = 0.4, 0.12
"""ROI_SECONDS, SERVED_CLICK_SECONDS: cutting a ROI; a click on the served path beside decoding."""

STUDY_SECONDS = 2.0
"""STUDY_SECONDS: reading and examining a study of average size."""


@dataclass(frozen=True)
class Seconds:
    """The time of one ROI in each part of a network, in seconds."""

    encode: float
    decode: float


def measure_seconds(network: FastSAM3D) -> Seconds:
    """Time a network on its device, each part twice; the faster of both counts."""
    config, device = network.config, next(network.parameters()).device
    image = torch.zeros(1, 1, *(config.roi_size,) * 3, device=device)
    mask = torch.zeros(1, 1, *(config.low_res_size,) * 3, device=device)
    click, label = torch.zeros(1, 1, 3, device=device), torch.ones(1, 1, device=device)
    with torch.inference_mode():
        encode = _fastest(lambda: network.encode(image))
        prepared = network.prepare(network.encode(image))
        decode = _fastest(lambda: network.decode(prepared, click, label, mask))
    return Seconds(encode, decode)


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def distillation_seconds(
    options: TrainOptions, student: FastSAM3D, teacher: FastSAM3D | None, judged: int
) -> float | None:
    """Estimate the seconds of a distillation with these networks; None if it runs on a GPU.

    judged: number of studies to judge on.
    """
    if options.device != "cpu":
        return None
    of_student = measure_seconds(student)
    of_teacher = measure_seconds(teacher) if teacher is not None else Seconds(0.0, 0.0)
    rois = options.iterations_per_epoch * options.train_batch_size
    stage1 = options.stage1_epochs
    stage2 = options.max_epochs - stage1
    prepared = options.pool_size * (ROI_SECONDS + of_teacher.encode)
    blocks = stage1 * rois * GRADIENT * of_student.encode
    decodes = SERIES_CLICKS * (of_student.decode + of_teacher.decode)
    gradients = GRADIENT * (of_student.encode + GRADED_CLICKS * of_student.decode)
    masks = stage2 * rois * (decodes + gradients)
    clicks = max(CLICKS)
    validation = of_student.encode + clicks * of_student.decode
    validations = options.val_rois * (
        (options.max_epochs / options.val_interval + 3) * validation + of_teacher.encode
    )
    return prepared + blocks + masks + validations + judging_seconds(of_student, judged)


def judging_seconds(network: Seconds, studies: int) -> float:
    """Estimate the time to read and judge some studies with two networks."""
    clicks = max(CLICKS) * (network.decode + SERVED_CLICK_SECONDS)
    return studies * (STUDY_SECONDS + 2 * SERIES * (network.encode + clicks))


def adaptation_seconds(
    options: AdaptOptions, student: FastSAM3D, labelled: int, judged: int
) -> float | None:
    """Estimate the seconds of an adaptation with this student; None if it runs on a GPU.

    labelled, judged: number of studies with a label, and of those to judge on, which are some of
    them.
    """
    if options.device != "cpu":
        return None
    of_student = measure_seconds(student)
    clicks = (2 + options.clicks) / 2 + (GRADIENT - 1) * GRADED_CLICKS
    rois = options.train_batch_size + (2 * options.beside if options.rehearsal else 0)
    updates_of_all = 2 * options.updates_per_student
    update = rois * clicks * of_student.decode
    training = min(60 * options.max_minutes, updates_of_all * update)
    on_labels, beside = pool_sizes(options, labelled)
    used = min(beside, updates_of_all * options.beside) if options.rehearsal else 0
    prepared = (on_labels + used + PAINTED) * (ROI_SECONDS + of_student.encode)
    read = labelled * STUDY_SECONDS
    return read + prepared + training + judging_seconds(of_student, judged)
