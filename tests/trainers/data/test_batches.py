"""Each ROI has its turn, processes share a batch, and a position continues the sequence."""

import pytest

from lib.errors import InputError
from lib.trainers.data import Batches
from lib.trainers.train_options import TrainOptions

OPTIONS = TrainOptions.from_request({"train_batch_size": 4, "iterations_per_epoch": 5})


def test_every_roi_has_its_turn_and_processes_share_a_batch() -> None:
    whole = list(Batches(10, OPTIONS)) + list(Batches(10, OPTIONS))
    assert len(whole[0]) == 4
    assert sorted(sum(whole[:5], [])) == sorted(list(range(10)) * 2), "two passes of ten"
    parts = [list(Batches(10, OPTIONS, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == [
        batch[::2] + batch[1::2] for batch in whole[:5]
    ]
    with pytest.raises(InputError, match="train_batch_size 4 cannot be shared evenly by 3"):
        Batches(10, OPTIONS, 0, 3)


def test_batches_continue_from_a_position() -> None:
    batches = Batches(10, OPTIONS)
    two_epochs = list(batches) + list(batches)
    later = Batches(10, OPTIONS)
    later.position = 3
    assert list(later) + list(later) == two_epochs[3:]
