"""The updates of a run: the student and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lib.errors import InputError
from lib.networks import FastSAM3D

from .schedule import LayerPairs, Schedule
from .stages import Batch, Stage1, Stage2, step_seed
from .teacher import TeacherFeatures
from .train_options import TrainOptions

RMS_FLOOR = 0.1
"""Of weights that are smaller, in :func:`clip_updates`."""


class Updates:
    """The student and its optimiser."""

    def __init__(
        self,
        student: FastSAM3D,
        features: TeacherFeatures | None,
        pairs: LayerPairs,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.schedule = Schedule(options, len(pairs))
        self.student = student
        self.optimizer = torch.optim.Adam(student.parameters(), lr=options.lr)
        self._stage1 = Stage1(student, features, pairs) if features else None
        self._stage2 = Stage2(student, features)
        self._options = options
        self._device = device
        is_mixed = options.amp and device.type == "cuda"
        self._half = torch.float16
        if is_mixed and torch.cuda.is_bf16_supported():
            self._half = torch.bfloat16
        self._is_mixed = is_mixed
        self.scaler = torch.amp.GradScaler("cuda", enabled=is_mixed and self._half == torch.float16)

    def __call__(self, batch: Batch, update: int) -> dict[str, Any]:
        """Change the student once; -> the loss and its parts, means over all processes.

        batch: this process's share, on the device. Raises InputError where the loss explodes.
        """
        stage = self._stage(update)
        if update == self.schedule.stage1_updates:
            self.optimizer.state.clear()  # moments of another loss
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(update)
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, torch.Tensor] = {}
        for part, share in split_batch(batch, self._options.accumulate):
            with torch.autocast(self._device.type, self._half, enabled=self._is_mixed):
                parts = self._loss(stage, part, update)
            self.scaler.scale(parts["loss"] * share).backward()
            for name, value in parts.items():
                total[name] = total.get(name, 0) + value.detach().float() * share
        trained = [x for x in stage.trained() if x.grad is not None]
        average([x.grad for x in trained])
        average(list(total.values()))
        loss = float(total["loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in update {update + 1}; lower lr (now {self._options.lr:g}) "
                f"or lr_stage2 (now {self._options.lr_stage2:g})"
            )
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(trained, self._options.clip_norm)
        before = [x.detach().clone() for x in trained]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        clip_updates(trained, before, self._options.clip_update * self.schedule.share(update))
        return {name: value.tolist() for name, value in total.items()}

    def _stage(self, update: int) -> Stage1 | Stage2:
        if self.schedule.stage(update) == 1 and self._stage1 is not None:
            return self._stage1
        return self._stage2

    def _loss(self, stage: Stage1 | Stage2, batch: Batch, update: int) -> dict[str, torch.Tensor]:
        if isinstance(stage, Stage1):
            return stage(batch, self.schedule.k(update))
        return stage(batch, step_seed(self._options.seed, update))


@torch.no_grad()
def clip_updates(weights: list[torch.Tensor], before: list[torch.Tensor], largest: float) -> None:
    """Shorten the change of each tensor to `largest` of its norm before.

    Adam moves each weight by the learning rate, however small the gradient is clipped. At 5e-3 that
    is a seventh of what the matrices of a block of width 256 begin with. As in LARS (arXiv
    1708.03888), what a tensor can bear is taken relative to its norm; tensors near 0, as biases
    are, count as of RMS_FLOOR.
    """
    for weight, old in zip(weights, before, strict=True):
        change = weight - old
        bearable = largest * max(float(old.norm()), RMS_FLOOR * old.numel() ** 0.5)
        length = float(change.norm())
        if length > bearable:
            weight.copy_(old + change * (bearable / length))


def split_batch(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """At most so many parts of a batch, each with its share of the ROIs."""
    count = len(batch["key"])
    size = -(-count // parts)
    for first in range(0, count, size):
        part = {name: x[first : first + size] for name, x in batch.items()}
        yield part, len(part["key"]) / count


def average(tensors: list[torch.Tensor]) -> None:
    """Replace tensors by their means over all processes, in one message."""
    if not (dist.is_available() and dist.is_initialized() and tensors):
        return
    flat = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for x, mean in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(mean.view_as(x))
