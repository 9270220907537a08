"""The decoder learns from every click of several series; the image part stays as it is."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from training.click_series import (
    OpenSeries,
    SeriesLoss,
    ball_margins,
    decode_newest,
    new_series,
    padded_clicks,
)
from training.stage_loop import StageOptions, train

from lib.networks import FastSAM3D
from lib.networks.fastsam3d import build_untrained


class BallSamples(Dataset):
    """Two targets of a ROI: a bright ball, clicked inside, and nothing."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(number)
        centre = torch.randint(10, 22, (3,), generator=draw)
        grid = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij"))
        ball = (((grid - centre[:, None, None, None]) ** 2).sum(dim=0) < 36).float()
        noise = torch.randn(32, 32, 32, generator=draw)
        target = torch.nn.functional.avg_pool3d(ball[None, None], 2)[0]
        return {
            "image": (3 * ball + 0.3 * noise)[None],
            "targets": torch.cat([target, torch.zeros_like(target)]),
            "clicks_roi": torch.stack([centre + 2, centre]).float(),
        }


def batch_of(*numbers: int) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([BallSamples()[number] for number in numbers])


def series_of(network: FastSAM3D, *numbers: int) -> list[OpenSeries]:
    return list(new_series(network, batch_of(*numbers), 3, torch.Generator().manual_seed(0)))


@pytest.fixture(params=[0, 3], ids=["detail", "keys"])
def network(request: pytest.FixtureRequest, tiny_network: FastSAM3D) -> FastSAM3D:
    config = dataclasses.replace(tiny_network.config, detail_channels=4, key_channels=request.param)
    return build_untrained(config, seed=0)


def test_the_decoder_learns_and_the_image_part_stays(network: FastSAM3D, tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in network.state_dict().items()}
    options = StageOptions(
        minutes=1e9, max_steps=24, workers=0, warm_up=2, log_every=4, peak_rate=3e-4, rois=1
    )
    run, _ = train(network, BallSamples(), tmp_path, options, SeriesLoss(3))
    assert run.log[-1]["loss"] < 0.7 * run.log[0]["loss"]
    assert {"dice_1", "dice_2", "dice_3"} < set(run.log[-1])
    changed = {name for name, x in network.state_dict().items() if not torch.equal(before[name], x)}
    for part in ("prompt_encoder.", "mask_decoder.transformer.", "mask_decoder.refiner.merge."):
        assert any(name.startswith(part) for name in changed)
    kept = ("image_encoder.", "detail_stem.", "mask_decoder.refiner.cell_keys.")
    assert not [name for name in changed if name.startswith(kept) or "positional" in name]


def test_series_go_on_to_their_end_and_empty_targets_have_none(network: FastSAM3D) -> None:
    loss, generator = SeriesLoss(3), torch.Generator().manual_seed(0)
    loss.active = series_of(network, 0, 1, 2)
    assert len(loss.active) == 3
    planned = [series.left for series in loss.active]
    followed = list(loss.active)
    for step in range(3):
        loss(network, batch_of(5 + step), generator)
        for series, clicks in zip(followed, planned, strict=True):
            assert (series in loss.active) == (clicks > step + 1)
            assert len(series.labels) == min(step + 1, clicks) + 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clicks_on_another_model_lie_on_the_errors_of_balls(
    network: FastSAM3D, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr("training.click_series.OTHERS_SHARE", share)
    monkeypatch.setattr("training.click_series.BALL_RADIUS", 3.0)
    loss, generator = SeriesLoss(3), torch.Generator().manual_seed(0)
    lies_on_error = []
    for number in range(12):
        loss.active = []
        loss(network, batch_of(number), generator)
        for series in loss.active:
            first, second = series.points_roi
            in_ball = bool(torch.linalg.vector_norm(second - first) <= 3.0)
            lies_on_error.append(in_ball != bool(series.labels[1]))
    assert len(lies_on_error) >= 4
    assert (sum(lies_on_error) >= 0.8 * len(lies_on_error)) == (share == 1.0)


def test_a_ball_is_where_the_nearest_click_is_foreground() -> None:
    points_roi = torch.tensor([[8.0, 8, 8], [8, 8, 14]])
    margins = ball_margins(points_roi, torch.tensor([1, 0]), torch.zeros(16, 16, 16), cell=2)
    assert margins.shape == (16, 16, 16) and set(margins.unique().tolist()) == {-1.0, 1.0}
    assert margins[4, 4, 4] == 1 and margins[4, 4, 1] == 1  # 5 voxels away
    assert margins[4, 4, 6] == -1  # nearer to the background click
    assert margins[4, 4, 13] == -1 and margins[10, 4, 4] == -1  # more than 10 voxels away


def test_a_newest_click_is_decoded_as_the_network_decodes_a_series(
    network: FastSAM3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.trainers.decoder_autocast.multiplies_bfloat16", lambda: False)
    active = series_of(network, 0, 1)
    active[1].points_roi = torch.cat([active[1].points_roi, torch.tensor([[4.0, 5, 6]])])
    active[1].labels = torch.tensor([1, 0])
    active[1].low_res = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decode_newest(network, active)
        expected, _ = network.decode(
            network.encode(batch_of(1)["image"]),
            active[1].points_roi[None],
            active[1].labels[None],
            active[1].low_res[None, None],
        )
    torch.testing.assert_close(logits[1], expected[0], atol=1e-3, rtol=1e-3)


def test_clicks_of_several_series_are_padded(network: FastSAM3D) -> None:
    first, second = series_of(network, 0, 1)
    second.points_roi = torch.cat([second.points_roi, torch.tensor([[4.0, 5, 6]])])
    second.labels = torch.tensor([1, 0])
    points_roi, labels = padded_clicks([first, second])
    assert labels.tolist() == [[1, -1], [1, 0]] and points_roi.shape == (2, 2, 3)
    assert torch.equal(points_roi[0, :1], first.points_roi)
    assert torch.equal(points_roi[1], second.points_roi)


def test_harm_is_part_of_the_loss(network: FastSAM3D) -> None:
    def loss_with(low_res: torch.Tensor | None, clicks: int) -> float:
        loss, (series,) = SeriesLoss(3), series_of(network, 0)
        if low_res is not None:
            series.low_res = low_res
        series.points_roi = series.points_roi.repeat(clicks, 1)
        series.labels = torch.tensor([1, 0][:clicks])
        loss.active = [series]
        empty = batch_of(0) | {"targets": torch.zeros(1, 2, 16, 16, 16)}
        return float(loss(network, empty, torch.Generator().manual_seed(0))[0].detach())

    right = 8 * (2 * batch_of(0)["targets"][0, 0] - 1)
    assert loss_with(right, 2) > max(loss_with(right, 1), loss_with(None, 1)) + 0.1


def test_a_network_without_refiner_is_refused(tiny_network: FastSAM3D) -> None:
    with pytest.raises(ValueError, match="no mask refiner"):
        series_of(tiny_network, 0)
