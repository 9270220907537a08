"""The encoder learns which cells belong together, from all labels of a ROI at once."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate
from training.cell_pairs import ANCHORS, SAME, draw_pairs, pair_loss
from training.cells import REUSE, CellRois, cell_loss
from training.data import ClickSamples, SampleOptions
from training.sources import Case
from training.stage_loop import StageOptions, train

from lib.networks import FastSAM3D
from lib.networks.fastsam3d import build_untrained


class TwoBalls(Dataset):
    """Two balls of different brightness in noise, labelled 1 and 2; 2 voxels a cell."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(number)
        grid = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij"))
        labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
        for label, low in ((1, 6), (2, 20)):
            centre = low + torch.randint(0, 6, (3,), generator=draw)
            labels[((grid - centre[:, None, None, None]) ** 2).sum(dim=0) < 25] = label
        noise = 0.3 * torch.randn(32, 32, 32, generator=draw)
        pairs = draw_pairs(labels[1::2, 1::2, 1::2].numpy(), np.random.default_rng(number))
        return {"image": (2.0 * labels + noise)[None], **pairs}


@pytest.fixture
def keyed_network(tiny_network: FastSAM3D) -> FastSAM3D:
    config = dataclasses.replace(tiny_network.config, detail_channels=4, key_channels=3)
    return build_untrained(config, seed=0)


def test_the_encoder_learns_which_cells_belong_together(
    keyed_network: FastSAM3D, tmp_path: Path
) -> None:
    before = {name: x.clone() for name, x in keyed_network.state_dict().items()}
    options = StageOptions(
        minutes=1e9, max_steps=40, workers=0, warm_up=2, log_every=5, peak_rate=3e-3
    )
    run, _ = train(keyed_network, TwoBalls(), tmp_path, options, cell_loss)
    assert run.log[-1]["loss"] < 0.8 * run.log[0]["loss"]
    assert run.log[-1]["same"] > 0.8
    after = keyed_network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("image_encoder.", "mask_decoder.refiner.cell_keys.")
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    assert all(name.startswith(parts) for name in changed)


def test_pairs_are_right_where_keys_of_one_structure_are_near() -> None:
    places = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.5, 0.0], [9.0, 0.5], [0.0, 9.0]])
    keys = places.T.reshape(1, 2, 1, 1, 5)
    pairs = {"anchors": torch.tensor([[0, 1]]), "others": torch.tensor([[2, 3, 4]])}
    is_same = torch.tensor([[[True, False, False], [False, True, False]]])
    loss, right = pair_loss(keys, {**pairs, "is_same": is_same})
    assert float(right) == pytest.approx(1) and float(loss) < 0.15
    swapped, wrong = pair_loss(keys, {**pairs, "is_same": ~is_same})
    assert float(wrong) == pytest.approx(0, abs=1e-6) and float(swapped) > 10
    # at the limit a pair is as likely of one structure as not
    keys = torch.tensor([[0.0, SAME**0.5], [0.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    one = {name: torch.tensor([[n]]) for n, name in enumerate(("anchors", "others"))}
    at_limit, _ = pair_loss(keys, {**one, "is_same": torch.tensor([[[True]]])})
    assert float(at_limit) == pytest.approx(np.log(2), rel=1e-3)


def test_structures_have_the_same_share_of_the_anchors_whatever_their_size() -> None:
    cells = np.zeros((16, 16, 16), np.uint8)
    cells[:8, :8, :8], cells[12, 12, 12] = 3, 7
    pairs = draw_pairs(cells, np.random.default_rng(0))
    labels, anchors, others = cells.ravel(), pairs["anchors"].numpy(), pairs["others"].numpy()
    assert len(anchors) == ANCHORS and len(others) == 2 * ANCHORS
    assert (labels[anchors] == 7).mean() == pytest.approx(0.5, abs=0.1)
    assert (labels[others] == 0).sum() == ANCHORS
    np.testing.assert_array_equal(pairs["is_same"], labels[anchors][:, None] == labels[others])
    unlabelled = np.argwhere(cells == 0)
    rim = {tuple(x) for x in unlabelled if (x <= 9).all() or (abs(x - 12) <= 2).all()}
    drawn = zip(*np.unravel_index(others, cells.shape), strict=True)
    near = [place for place in drawn if cells[place] == 0 and place in rim]
    assert len(near) > 0.45 * ANCHORS


def test_pairs_are_drawn_where_everything_or_nothing_is_labelled() -> None:
    full = draw_pairs(np.ones((4, 4, 4), np.uint8), np.random.default_rng(0))
    assert full["is_same"].all() and len(full["others"]) == 2 * ANCHORS
    empty = draw_pairs(np.zeros((4, 4, 4), np.uint8), np.random.default_rng(0))
    assert not empty["is_same"].any() and len(empty["others"]) == 2 * ANCHORS


def test_rois_without_labels_have_no_loss(keyed_network: FastSAM3D) -> None:
    draw = np.random.default_rng(0)
    batch = {
        "image": torch.randn(2, 1, 32, 32, 32),
        **default_collate([draw_pairs(np.zeros((16, 16, 16), np.uint8), draw)] * 2),
    }
    loss, facts = cell_loss(keyed_network, batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert float(loss.detach()) == 0 and facts == {"same": 0.5}


def test_samples_are_a_pure_function_of_their_number(make_case: Callable[..., Case]) -> None:
    def samples() -> CellRois:
        return CellRois(ClickSamples([make_case()], SampleOptions(roi_size=32), seed=3))

    first, second = samples(), samples()
    numbers = [0, REUSE, 5 * REUSE]
    for number in numbers:
        first[number]
    for number in reversed(numbers):
        for name, x in second[number].items():
            assert torch.equal(x, first[number][name])
    sample = first[0]
    assert sample["image"].shape == (1, 32, 32, 32) and sample["image"].dtype == torch.float32
    assert int(sample["anchors"].max()) < 8**3 and sample["is_same"].any()


def test_image_and_cells_are_turned_alike(make_case: Callable[..., Case]) -> None:
    samples = CellRois(ClickSamples([make_case()], SampleOptions(roi_size=32), seed=3))
    image, cells = np.zeros((32, 32, 32), np.float16), np.zeros((8, 8, 8), np.uint8)
    image[20:24, 4:8, 28:32], cells[5, 1, 7] = 9, 4
    samples._roi = lambda number: (image, cells)
    places = set()
    for number in range(12):
        sample = samples[number]
        place = np.unravel_index(int(sample["anchors"][0]), (8, 8, 8))  # of the only cell
        i, j, k = (4 * int(n) for n in place)
        bright = sample["image"][0, i : i + 4, j : j + 4, k : k + 4]
        assert float(bright.min()) > float(sample["image"].quantile(0.9)) + 3
        places.add(place)
    assert len(places) > 4
