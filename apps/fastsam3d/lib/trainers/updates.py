"""The updates of a run: which stage and pairs each belongs to, its learning rate, its batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Sampler

from lib.errors import InputError
from lib.networks import FastSAM3D

from .distillation import Batch, Stage1, Stage2, step_seed
from .options import TrainOptions
from .schedule import LayerPairs, active_pairs
from .teacher import TeacherFeatures

FALL = 0.25
"""Share of each stage at whose end the learning rate falls to 0."""


RMS_FLOOR = 0.1
"""Of weights that are smaller, in :func:`clip_updates`."""


class Schedule:
    """What happens in update 0, 1, … of a run; nothing else decides it, so a resumed run agrees."""

    def __init__(self, options: TrainOptions, pairs: int) -> None:
        self._options = options
        self._pairs = pairs
        self.per_epoch = options.iterations_per_epoch
        self.stage1_updates = options.stage1_epochs * self.per_epoch
        self.updates = options.max_epochs * self.per_epoch

    def stage(self, update: int) -> int:
        return 1 if update < self.stage1_updates else 2

    def k(self, update: int) -> int:
        """Pairs that take part: Eq. 2, counted in epochs or in updates of stage 1; all after it."""
        if self.stage(update) == 2:
            return self._pairs
        if self._options.schedule_unit == "iteration":
            return active_pairs(update + 1, self.stage1_updates, self._pairs)
        return active_pairs(update // self.per_epoch + 1, self._options.stage1_epochs, self._pairs)

    def rate(self, update: int) -> float:
        """The learning rate."""
        is_first = self.stage(update) == 1
        return (self._options.lr if is_first else self._options.lr_stage2) * self.share(update)

    def share(self, update: int) -> float:
        """Of the peak: rises over `warm_up` of its stage, stays, and falls over the last `FALL`."""
        if self.stage(update) == 1:
            place, length = update, self.stage1_updates
        else:
            place, length = update - self.stage1_updates, self.updates - self.stage1_updates
        rise = (place + 1) / max(1.0, self._options.warm_up * length)
        fall = (length - place) / max(1.0, FALL * length)
        return min(1.0, rise, fall)

    def is_validated(self, epoch: int) -> bool:
        """Epochs count from 1: every few, and the last one of each stage."""
        ends = (self._options.stage1_epochs, self._options.max_epochs)
        return epoch % self._options.val_interval == 0 or epoch in ends


class Batches(Sampler[list[int]]):
    """The ROIs of each update, of which every process takes its share; an epoch at a time.

    They are dealt from one sequence of passes over the pool, each in an order of its own.
    position: the next update; set it to go on elsewhere.
    """

    def __init__(self, rois: int, options: TrainOptions, rank: int = 0, world: int = 1) -> None:
        if options.train_batch_size % world:
            raise InputError(
                f"train_batch_size {options.train_batch_size} cannot be shared evenly by {world} "
                "processes; choose a multiple"
            )
        self.position = 0
        self._rois, self._options, self._rank, self._world = rois, options, rank, world

    def __len__(self) -> int:
        return self._options.iterations_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        end = (self.position // len(self) + 1) * len(self)
        for update in range(self.position, end):
            self.position = update + 1
            yield self.batch(update)[self._rank :: self._world]

    def batch(self, update: int) -> list[int]:
        """Of all processes together."""
        size = self._options.train_batch_size
        places = (divmod(place, self._rois) for place in range(update * size, (update + 1) * size))
        return [int(_order(self._options.seed, turn, self._rois)[n]) for turn, n in places]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, turn]).permutation(count)


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
