"""One update of the student: loss, gradients, optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib.errors import InputError
from lib.networks import FastSAM3D

from .schedule import LayerPairs, Schedule
from .stages import Batch, Stage1, Stage2, step_seed
from .teacher import TeacherFeatures
from .train_options import TrainOptions

RMS_FLOOR = 0.1
"""RMS_FLOOR: smallest root mean square that `clip_updates` assumes for a weight tensor."""


class Updater:
    """Changes the student, once per call, with Adam and the loss of the current stage.

    pairs: pairs of blocks for stage 1; empty for a run without it. features: of the teacher; None
    for training on labels alone.
    """

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
        self._is_mixed = options.amp and device.type == "cuda"
        self._half = torch.float16
        if self._is_mixed and torch.cuda.is_bf16_supported():
            self._half = torch.bfloat16
        self.scaler = torch.amp.GradScaler(
            "cuda", enabled=self._is_mixed and self._half == torch.float16
        )

    def __call__(self, batch: Batch, update: int) -> dict[str, Any]:
        """Change the student once; return the loss and its parts, means over all processes.

        batch: this process's share, on the device. update: number of the update, from 0. Raise
        InputError if the loss is not finite.
        """
        stage = self._stage(update)
        if update == self.schedule.stage1_updates:
            self.optimizer.state.clear()  # Adam's moments belong to stage 1's loss
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(update)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(stage, batch, update)
        trained = [weight for weight in stage.trained() if weight.grad is not None]
        average([weight.grad for weight in trained if weight.grad is not None])
        average(list(losses.values()))
        self._check_finite(float(losses["loss"]), update)
        self._step(trained, self._options.clip_update * self.schedule.share(update))
        return {name: value.tolist() for name, value in losses.items()}

    def _stage(self, update: int) -> Stage1 | Stage2:
        if self.schedule.stage(update) == 1 and self._stage1 is not None:
            return self._stage1
        return self._stage2

    def _backward(self, stage: Stage1 | Stage2, batch: Batch, update: int) -> dict[str, Tensor]:
        """Add up the gradients of the batch, part by part; return the losses of the batch."""
        losses: dict[str, Tensor] = {}
        for part, share in split_batch(batch, self._options.accumulate):
            with torch.autocast(self._device.type, self._half, enabled=self._is_mixed):
                parts = self._loss(stage, part, update)
            self.scaler.scale(parts["loss"] * share).backward()
            for name, value in parts.items():
                losses[name] = losses.get(name, 0) + value.detach().float() * share
        return losses

    def _loss(self, stage: Stage1 | Stage2, batch: Batch, update: int) -> dict[str, Tensor]:
        if isinstance(stage, Stage1):
            return stage(batch, self.schedule.k(update))
        return stage(batch, step_seed(self._options.seed, update))

    def _check_finite(self, loss: float, update: int) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in update {update + 1}; lower lr (now {self._options.lr:g}) "
                f"or lr_stage2 (now {self._options.lr_stage2:g})"
            )

    def _step(self, trained: list[nn.Parameter], largest_change: float) -> None:
        """Step the optimizer, with clipped gradients and clipped changes."""
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(trained, self._options.clip_norm)
        before = [weight.detach().clone() for weight in trained]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        clip_updates(trained, before, largest_change)


@torch.no_grad()
def clip_updates(weights: Sequence[Tensor], before: Sequence[Tensor], largest: float) -> None:
    """Shorten the change of each tensor to at most `largest` times its norm before the update.

    Adam moves each weight by the learning rate, however small the clipped gradient is. At 5e-3 that
    is a seventh of the initial weights in a block of width 256. The limit is relative to the norm
    of a tensor, as in LARS (arXiv 1708.03888). Tensors near 0, such as biases, count as if their
    root mean square were RMS_FLOOR.
    """
    for weight, old in zip(weights, before, strict=True):
        change = weight - old
        limit = largest * max(float(old.norm()), RMS_FLOOR * old.numel() ** 0.5)
        length = float(change.norm())
        if length > limit:
            weight.copy_(old + change * (limit / length))


def split_batch(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """Yield at most `parts` parts of a batch, each with its share of the ROIs."""
    count = len(batch["key"])
    size = -(-count // parts)
    for first in range(0, count, size):
        part = {name: x[first : first + size] for name, x in batch.items()}
        yield part, len(part["key"]) / count


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all processes, in one message."""
    if not (dist.is_available() and dist.is_initialized() and tensors):
        return
    flat = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for x, mean in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(mean.view_as(x))
