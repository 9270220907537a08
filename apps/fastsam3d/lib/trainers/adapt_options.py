"""The options of `fastsam3d_adapt`."""

from __future__ import annotations

from dataclasses import dataclass

from .request_options import RequestOptions, option


@dataclass(frozen=True)
class AdaptOptions(RequestOptions):
    """The options of the adaptation to labels, beside those of all trainers.

    Three students are trained: two for the verdict, each on one half of the studies and for half
    the epochs, and the one that is published, on all of them.
    """

    max_epochs: int = option(32, "epochs of the student that is published", in_table=True, least=1)
    iterations_per_epoch: int = option(5, "updates per epoch", least=1)
    max_minutes: float = option(
        7.0, "time for all updates; slower machines do fewer updates", in_table=True, above=0
    )
    train_batch_size: int = option(3, "labelled ROIs per update", least=1)
    beside: int = option(1, "ROIs beside the labels per update", least=1)
    rehearsal: float = option(
        1.0, "weight of the earlier decoder's masks beside the labels; 0: none", least=0
    )
    rois: int = option(64, "different ROIs for training, kept in memory as embeddings", least=1)
    clicks: int = option(3, "most clicks of a series", least=2)
    lr: float = option(5e-4, "Adam's learning rate", above=0)
    clip_norm: float = option(0.5, "largest norm of the gradients", above=0)

    @property
    def updates_per_student(self) -> int:
        return self.max_epochs * self.iterations_per_epoch
