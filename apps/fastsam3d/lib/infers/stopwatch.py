"""Measuring the stages of a click."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch(dict[str, float]):
    """The seconds spent in each stage; times of the same stage add up."""

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self[stage] = self.get(stage, 0.0) + seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the duration of a ``with`` block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)
