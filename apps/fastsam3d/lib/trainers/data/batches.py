"""Which ROIs each update is made of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from lib.errors import InputError

from ..train_options import TrainOptions


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
