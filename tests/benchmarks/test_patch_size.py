"""The comparison of patch sizes: its networks, its clicks, its table."""

import dataclasses

import pytest
import torch
from benchmarks.patch_size import NETWORKS, dice_after_clicks, on_cube, stage_times, to_markdown

from lib.networks.fastsam3d import build_untrained

SMALL = {"width": 32, "num_heads": 2, "out_channels": 48, "decoder_mlp_width": 32, "depth": 2}


class Balls(torch.utils.data.Dataset):
    """Three bright balls in a cube of 64 voxels, clicked at their centres."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        clicks = torch.tensor([[12.0, 12, 12], [40, 16, 44], [44, 48, 20]]) + number
        grid = torch.stack(torch.meshgrid(*[torch.arange(64)] * 3, indexing="ij"))
        balls = ((grid - clicks[:, :, None, None, None]) ** 2).sum(dim=1) < 64
        targets = torch.nn.functional.avg_pool3d(balls.float()[:, None], 2)[:, 0]
        return {"image": 3.0 * balls.any(dim=0)[None], "targets": targets, "clicks_roi": clicks}


def test_the_networks_differ_in_what_is_compared() -> None:
    plain, patches8 = NETWORKS.values()
    assert (plain.grid_size, patches8.grid_size) == (8, 16)
    assert (plain.low_res_size, patches8.low_res_size) == (32, 64)
    assert plain.sparsity == "dense" and patches8.sparsity == "lattice"


@pytest.mark.parametrize("name", NETWORKS)
def test_each_is_clicked_and_measured(name: str) -> None:
    config = dataclasses.replace(on_cube(NETWORKS[name]), **SMALL)
    assert config.roi_size == 64
    dice = dice_after_clicks(build_untrained(config, seed=0), Balls(), count=2, seed=0)
    assert dice.shape == (5,) and ((dice >= 0) & (dice <= 1)).all()
    times = stage_times(config, runs=1)
    assert set(times) == {"encode", "decode"}


def test_right_answers_get_the_best_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(on_cube(NETWORKS["16³ patches"]), **SMALL)
    network = build_untrained(config, seed=0)
    wanted = torch.cat([Balls()[n]["targets"] for n in range(2)])
    right = 20 * torch.nn.functional.avg_pool3d(wanted[:, None], 2) - 10
    monkeypatch.setattr(network, "decode", lambda *_: (right, None))
    assert float(dice_after_clicks(network, Balls(), count=2, seed=0).min()) > 0.8


def test_the_table_has_a_row_for_each_network() -> None:
    row = {
        "network": "16³ patches",
        "tokens": 512,
        "cell_mm": 6.0,
        "times_ms": {"encode": 53.0, "decode": 37.0},
        "steps": 100,
        "dice": [0.1, 0.2, 0.3, 0.4, 0.5],
    }
    machine = {"threads": 2, "device_name": "a processor", "torch": "2"}
    result = {"minutes": 5.0, "samples": 48, "seed": 0, "machine": machine, "rows": [row]}
    table = to_markdown(result)
    assert "| 16³ patches | 512 | 6.0 | 53.0 | 37.0 | 100 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |" in table
    assert "5 minutes of one core each, 48 held-out ROIs" in table and "a processor" in table
