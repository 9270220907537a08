"""Clicks of a series lie on the errors of the network or of another model; keys learn beside it."""

import dataclasses

import numpy as np
import pytest
import torch
from training.cell_pairs import draw_pairs
from training.interaction import KEYS_WEIGHT, ball_margins, interactive_loss

from lib.networks import FastSAM3D
from lib.networks.fastsam3d import build_untrained


def ball_batch(seed: int, targets: int = 4) -> dict[str, torch.Tensor]:
    """A bright ball that is each of the targets of one ROI, clicked at several places in it."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij"))
    ball = ((grid - 16) ** 2).sum(dim=0) < 64
    target = torch.nn.functional.avg_pool3d(ball[None, None].float(), 2)[0]
    noise = torch.randn(32, 32, 32, generator=draw)
    pairs = draw_pairs(ball[1::2, 1::2, 1::2].numpy().astype(np.uint8), np.random.default_rng(seed))
    return {
        "image": (3 * ball + 0.3 * noise)[None, None],
        "targets": target.expand(1, targets, -1, -1, -1),
        "clicks_roi": torch.randint(13, 19, (1, targets, 3), generator=draw).float(),
        **{name: x[None] for name, x in pairs.items()},
    }


def test_a_ball_is_where_the_nearest_click_is_foreground() -> None:
    points_roi = torch.tensor([[[8.0, 8, 8], [8, 8, 14]]]).expand(2, -1, -1)
    before = torch.full((2, 16, 16, 16), 7.0)
    chosen = torch.tensor([False, True])
    margins = ball_margins(points_roi, torch.tensor([[1, 0], [1, 0]]), before, chosen, cell=2)
    assert torch.equal(margins[0], before[0]) and (before == 7).all()
    ball = margins[1]
    assert set(ball.unique().tolist()) == {-1.0, 1.0}
    assert ball[4, 4, 4] == 1 and ball[4, 4, 1] == 1  # 5 voxels away
    assert ball[4, 4, 6] == -1  # nearer to the background click
    assert ball[4, 4, 13] == -1 and ball[10, 4, 4] == -1  # more than 10 voxels away


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clicks_on_another_model_lie_on_the_errors_of_balls(
    tiny_network: FastSAM3D, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr("training.interaction.OTHERS_SHARE", share)
    monkeypatch.setattr("training.interaction.BALL_RADIUS", 3.0)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    decode = tiny_network.decode
    monkeypatch.setattr(
        tiny_network,
        "decode",
        lambda prepared, points_roi, labels, *others: (
            seen.append((points_roi, labels)) or decode(prepared, points_roi, labels, *others)
        ),
    )
    lies_on_error = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        interactive_loss(tiny_network, ball_batch(seed), 2, {1}, generator)
        points_roi, labels = seen[-1]
        distance = torch.linalg.vector_norm(points_roi[:, 1] - points_roi[:, 0], dim=1)
        # the ball lies inside of the target: its errors are missed cells, whose centres are farther
        lies_on_error += ((distance > 2) & (labels[:, 1] == 1)).tolist()
    assert len(lies_on_error) == 16
    assert all(lies_on_error) == (share == 1.0)


def test_the_loss_of_the_keys_is_added(tiny_network: FastSAM3D) -> None:
    config = dataclasses.replace(tiny_network.config, detail_channels=4, key_channels=3)
    network = build_untrained(config, seed=0)
    batch = ball_batch(0)

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            loss, facts = interactive_loss(network, batch, 1, {0}, generator)
        return float(loss), facts

    whole, facts = loss_of(batch)
    unlabelled, without = loss_of({**batch, "is_same": torch.zeros_like(batch["is_same"])})
    assert 0 < float(facts["same"]) < 1 and float(without["same"]) == 0.5
    assert whole - unlabelled > 0.1 * KEYS_WEIGHT
