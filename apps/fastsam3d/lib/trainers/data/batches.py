"""The ROIs of each update."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from lib.errors import InputError

from ..train_options import TrainOptions


class Batches(Sampler[list[int]]):
    """Yields the ROIs of each update until the end of the epoch; each process takes its share.

    The ROIs come from a sequence of passes over the pool, each in a random order of its own.
    position: number of the next update; set it to continue from there. Raise InputError if the
    batch cannot be shared evenly by the processes.
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
        """Return the ROIs of an update, for all processes together."""
        size = self._options.train_batch_size
        turns = (divmod(place, self._rois) for place in range(update * size, (update + 1) * size))
        return [int(_order(self._options.seed, turn, self._rois)[n]) for turn, n in turns]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """Return the order of the ROIs in one pass over the pool: (count,) integers."""
    return np.random.default_rng([seed, 2, turn]).permutation(count)
