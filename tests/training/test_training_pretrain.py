"""Training lowers the loss, and a resumed run ends like an uninterrupted one."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from training.data import ClickSamples, SampleOptions
from training.initialisation import (
    CONTENT,
    GROUND_LOGIT,
    click_balls,
    clip_each,
    initialise,
    learn_to_mark_clicks,
    lowest_frequencies,
    spread_keys,
    take_weights,
)
from training.interaction import IOU_WEIGHT, interactive_loss, loss_of_best, loss_of_harm
from training.pretrain import PretrainOptions, click_loss, pretrain
from training.pretrain import main as pretrain_main
from training.sources import Case
from training.stage_loop import StageOptions, make_optimizer, train
from training.state import AveragedWeights, RunState, learning_rate

from lib.errors import InputError, WeightsError
from lib.networks import FastSAM3D, FastSAM3DConfig
from lib.networks.fastsam3d import build_untrained
from lib.weights import save_weights
from training import painted_studies, student

ENDLESS = 1e9
"""ENDLESS: minutes with which the learning rate depends on the step alone."""


class BallSamples(Dataset):
    """A bright ball at the click; sample n is a pure function of n."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(number)
        click = torch.randint(8, 24, (3,), generator=draw)
        grid = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij"))
        ball = ((grid - click[:, None, None, None]) ** 2).sum(dim=0) < 36
        noise = torch.randn(32, 32, 32, generator=draw)
        target = torch.nn.functional.avg_pool3d(ball[None, None].float(), 2)[0]
        return {
            "image": (3 * ball + 0.3 * noise)[None],
            "targets": target,
            "clicks_roi": click[None].float(),
        }


def batch_of(*numbers: int) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([BallSamples()[number] for number in numbers])


def options(**changes: object) -> StageOptions:
    fast = {"minutes": ENDLESS, "workers": 0, "warm_up": 2, "save_every": 3, "log_every": 2}
    return StageOptions(**{**fast, **changes})


LOSS = partial(click_loss, clicks=3)


def test_training_lowers_the_loss(tiny_network: FastSAM3D, tmp_path: Path) -> None:
    stage = options(max_steps=12, peak_rate=3e-3)
    run, _ = train(tiny_network, BallSamples(), tmp_path, stage, LOSS)
    assert run.log[-1]["loss"] < run.log[0]["loss"]
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "log.csv", "curves.png"}


def test_the_decoder_learns_clicks_and_the_encoder_stays(tiny_network: FastSAM3D) -> None:
    images = batch_of(0, 1)["image"]
    initialise(tiny_network, images)
    encoder = [p.detach().clone() for p in tiny_network.image_encoder.parameters()]
    early = learn_to_mark_clicks(tiny_network, images, steps=1, seed=0)
    learn_to_mark_clicks(tiny_network, images, steps=12, seed=1)
    late = learn_to_mark_clicks(tiny_network, images, steps=1, seed=0)  # the same prompts again
    assert late < early
    for before, after in zip(encoder, tiny_network.image_encoder.parameters(), strict=True):
        assert torch.equal(before, after)


def test_learning_clicks_leaves_the_image_detail_alone(tiny_network: FastSAM3D) -> None:
    config = dataclasses.replace(tiny_network.config, detail_channels=4)
    network = build_untrained(config, seed=0)
    learn_to_mark_clicks(network, batch_of(0, 1)["image"], steps=1, seed=0)
    assert all(weight.grad is None for weight in network.detail_stem.parameters())
    assert network.mask_decoder.mask_tokens.weight.grad is not None


def test_balls_lie_at_positive_clicks_and_later_clicks_overwrite_them(
    tiny_network: FastSAM3D,
) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = []
    for _ in range(12):
        points_roi, labels, masks = click_balls(tiny_network, generator)
        assert masks.shape == (8, 16, 16, 16) and (labels[:, 0] == 1).all()
        last = (points_roi[:, -1] / 2).long()  # 2 voxels a cell
        at_last = masks[torch.arange(8), last[:, 0], last[:, 1], last[:, 2]]
        assert torch.equal(at_last, labels[:, -1].float())
        if points_roi.shape[1] == 1:
            wanted += (masks.sum(dim=(1, 2, 3)) * 2**3).tolist()
    assert sum(wanted) / len(wanted) == pytest.approx(4 / 3 * math.pi * 8**3, rel=0.15)


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    tiny_network: FastSAM3D, tmp_path: Path
) -> None:
    def states_of(folder: str, *stops: int) -> list[dict[str, torch.Tensor]]:
        states = []
        for stop in stops:
            network = build_untrained(tiny_network.config, seed=0)
            stage = options(max_steps=stop)
            run, average = train(network, BallSamples(), tmp_path / folder, stage, LOSS)
            assert run.step == stop
            means = {f"mean {name}": x for name, x in average.weights.items()}
            states.append({**network.state_dict(), **means})
        return states

    (through,) = states_of("through", 3)
    interrupted, resumed = states_of("resumed", 2, 3)
    for name, expected in through.items():
        torch.testing.assert_close(resumed[name], expected, msg=name)
    assert any(not torch.equal(interrupted[name], x) for name, x in through.items())


def test_the_state_of_another_network_is_refused(tiny_network: FastSAM3D, tmp_path: Path) -> None:
    train(tiny_network, BallSamples(), tmp_path, options(max_steps=1), LOSS)
    wider = build_untrained(dataclasses.replace(tiny_network.config, width=48), seed=0)
    with pytest.raises(InputError, match="another network"):
        train(wider, BallSamples(), tmp_path, options(max_steps=2), LOSS)


def test_only_graded_clicks_have_a_gradient(
    tiny_network: FastSAM3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in bfloat16 gradients differ by more than the tolerance
    monkeypatch.setattr("lib.trainers.decoder_autocast.multiplies_bfloat16", lambda: False)

    def gradient(graded: set[int]) -> torch.Tensor:
        tiny_network.zero_grad()
        loss, facts = interactive_loss(
            tiny_network, batch_of(0, 1), 3, graded, torch.Generator().manual_seed(0)
        )
        loss.backward()
        names = {name for name in facts if name.startswith("dice")}
        assert names == {"dice_1", "dice_2", "dice_3"}
        assert ("multimask_1" in facts) == (0 in graded) and ("harm" in facts) == (2 in graded)
        parameters = (tiny_network.image_encoder, tiny_network.mask_decoder)
        # the heads of masks that are not requested have no gradient
        parameters = [p for part in parameters for p in part.parameters()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([each.flatten() for each in gradients])

    first, third, both = gradient({0}), gradient({2}), gradient({0, 2})
    assert first.abs().sum() > 0
    assert not torch.allclose(first, third)
    # the first click counts twice: for the single mask and for the three masks
    torch.testing.assert_close(both, (2 * first + third) / 3, atol=1e-5, rtol=1e-3)


def test_the_best_of_several_masks_has_the_largest_gradient() -> None:
    targets = torch.zeros(1, 8, 8, 8)
    targets[:, 2:5, 2:5, 2:5] = 1
    masks = torch.full((1, 3, 8, 8, 8), -1.0)
    masks[:, 1, 2:5, 2:5, 1:4] = 1.0  # overlaps
    masks[:, 2] = 1.0
    masks.requires_grad_()
    loss, dice = loss_of_best(masks, torch.tensor([[0.1, 0.5, 0.2]]), targets)
    loss.backward()
    learnt = masks.grad.abs().sum(dim=(0, 2, 3, 4))
    assert learnt[1] > 3 * learnt[0] > 0 and learnt[1] > 3 * learnt[2] > 0
    assert dice == pytest.approx(2 * 18 / 54)


def test_a_click_that_lowers_the_dice_costs_the_loss_of_dice() -> None:
    targets = torch.zeros(2, 8, 8, 8)
    targets[:, 2:6, 2:6, 2:6] = 1
    right = (targets * 20 - 10).requires_grad_()
    worse = right.detach().clone()
    worse[0, 4:6] = -10  # half of one target is lost, the other mask stays
    worse.requires_grad_()
    harm = loss_of_harm(right, worse, targets)
    harm.backward()
    assert float(harm.detach()) == pytest.approx((1 - 2 / 3) / 2, abs=0.01)
    assert right.grad is None and worse.grad[0].any() and not worse.grad[1].any()
    assert float(loss_of_harm(worse, right, targets).detach()) == 0


def test_the_loss_contains_the_expected_iou_of_each_mask() -> None:
    targets = torch.zeros(1, 4, 4, 4)
    targets[:, :2] = 1
    masks = torch.stack([targets, 1 - targets], dim=1) * 20 - 10
    right, wrong = (
        loss_of_best(masks, torch.tensor([iou]), targets)[0] for iou in ([1.0, 0.0], [0.0, 1.0])
    )
    assert wrong - right == pytest.approx(IOU_WEIGHT, rel=1e-4)


def test_frequencies_are_orthonormal_and_start_with_the_mean() -> None:
    waves = lowest_frequencies(6, 50).flatten(1)
    torch.testing.assert_close(waves @ waves.T, torch.eye(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(waves[0], torch.full((216,), 216**-0.5))
    with pytest.raises(ValueError, match="216 frequencies"):
        lowest_frequencies(6, 217)


def test_initial_weights_predict_background_and_attend_to_the_click(
    tiny_network: FastSAM3D,
) -> None:
    batch = batch_of(0, 1)
    initialise(tiny_network, batch["image"])
    with torch.no_grad():
        embedding = tiny_network.encode(batch["image"])
        assert float((embedding - embedding.mean(dim=(0, 2, 3, 4), keepdim=True)).std()) == (
            pytest.approx(CONTENT, rel=0.01)
        )
        labels = torch.ones(2, 1, dtype=torch.long)
        logits, _ = tiny_network.decode(embedding, batch["clicks_roi"], labels)
    assert float(logits.mean()) == pytest.approx(GROUND_LOGIT, abs=1)
    crossing = tiny_network.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    torch.testing.assert_close(crossing.q_proj.weight, crossing.k_proj.weight)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step / 100, step, peak=2.0, warm_up=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.05) and rates.index(max(rates)) == 9
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates[-1] == pytest.approx(0.02)


def test_the_average_follows_the_weights(tiny_network: FastSAM3D) -> None:
    average = AveragedWeights(tiny_network, decay=0.9)
    name, parameter = next(iter(tiny_network.named_parameters()))
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter += 1
    average.update(tiny_network, step=10_000)
    torch.testing.assert_close(average.weights[name], before + 0.1)
    average.update(tiny_network, step=0)
    assert math.isclose(
        float((average.weights[name] - before).mean()), 0.1 + 0.9 * 0.9, rel_tol=1e-3
    )


def test_norms_biases_and_tokens_do_not_decay(tiny_network: FastSAM3D) -> None:
    decayed, free = make_optimizer(tiny_network, options()).param_groups
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    names = {id(p): name for name, p in tiny_network.named_parameters()}
    assert {id(p) for group in (decayed, free) for p in group["params"]} == set(names)
    kept = {names[id(p)] for p in free["params"]}
    assert all(p.ndim >= 2 for p in decayed["params"])
    for name in ("image_encoder.pos_embed", "mask_decoder.mask_tokens.weight"):
        assert name in kept
    assert "image_encoder.blocks.1.attn.qkv.weight" not in kept
    assert any("rel_pos" in name for name in kept)


def test_the_refiner_starts_with_the_prompt_as_mask(tiny_network: FastSAM3D) -> None:
    config = dataclasses.replace(tiny_network.config, detail_channels=4)
    network = build_untrained(config, seed=0)
    batch = batch_of(0, 1)
    initialise(network, batch["image"])
    points = torch.tensor([[[9.0, 21.0, 13.0]], [[20.0, 9.0, 9.0]]])
    with torch.no_grad():
        embedding = network.encode(batch["image"])
        blank = torch.zeros(2, 1, 16, 16, 16)
        logits, _ = network.decode(embedding, points, torch.ones(2, 1), blank)
        against, _ = network.decode(embedding, points, torch.zeros(2, 1), blank)
    for n, cell in enumerate(((4, 10, 6), (10, 4, 4))):
        lift = logits[n, 0] - against[n, 0]
        assert float(lift[cell]) > 2 * float(lift.abs().mean())


def test_each_gradient_is_clipped_alone() -> None:
    large, small = torch.zeros(3), torch.zeros(2)
    large.grad, small.grad = torch.tensor([30.0, 40.0, 0.0]), torch.tensor([0.1, 0.2])
    assert clip_each([large, small, torch.zeros(1)], norm=0.5) == pytest.approx(50)
    assert large.grad.norm() == pytest.approx(0.5, abs=1e-5)
    torch.testing.assert_close(small.grad, torch.tensor([0.1, 0.2]))


DETAILED = FastSAM3DConfig(
    roi_size=32,
    patch_size=8,
    width=24,
    depth=2,
    num_heads=2,
    out_channels=48,
    decoder_heads=2,
    position_bias="none",
    detail_channels=5,
)


def test_weights_of_an_earlier_network_are_copied() -> None:
    earlier = FastSAM3D(DETAILED).state_dict()
    merge = "mask_decoder.refiner.merge.weight"
    earlier[merge] = earlier[merge][:, :-2]
    del earlier["mask_decoder.refiner.key.bias"]
    network = FastSAM3D(DETAILED)
    assert take_weights(network, earlier) == ["mask_decoder.refiner.key.bias"]
    taken = network.state_dict()
    assert torch.equal(taken[merge][:, :-2], earlier[merge]) and not taken[merge][:, -2:].any()
    assert all(torch.equal(taken[name], x) for name, x in earlier.items() if name != merge)


def test_weights_of_another_width_are_refused() -> None:
    wider = FastSAM3D(dataclasses.replace(DETAILED, width=32)).state_dict()
    with pytest.raises(WeightsError, match=r"image_encoder\.pos_embed is \(1, 4, 4, 4, 32\)"):
        take_weights(FastSAM3D(DETAILED), wider)


def test_keys_are_spread_over_the_images() -> None:
    network = FastSAM3D(DETAILED)
    images = 5 * torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    spread_keys(network, images)
    with torch.no_grad():
        keys = network.mask_decoder.refiner.key(network.detail_stem(images))
    torch.testing.assert_close(keys.std(dim=(0, 2, 3, 4)), torch.full((8,), 0.7))


KEYED = dataclasses.replace(DETAILED, key_channels=3)


def run_stages(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch, **changes: object
) -> tuple[FastSAM3D, dict[str, str]]:
    monkeypatch.setattr("training.pretrain.TEACHER", KEYED)
    short = {"max_steps": 2, "workers": 0, "clicks": 2, "click_steps": 1, **changes}
    samples = ClickSamples([case], SampleOptions(roi_size=32, scenes=2), seed=0)
    start = short.pop("start", None)
    return pretrain(samples, folder, PretrainOptions(**short), start)


def test_the_stages_follow_each_other_and_resume(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = make_case()
    network, facts = run_stages(tmp_path, case, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "clicks"}
    assert {facts[f"{name}_steps"] for name in ("cells", "clicks")} == {"2"}
    again, _ = run_stages(tmp_path, case, monkeypatch)  # both stages have their steps already
    for name, x in network.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    _, facts = run_stages(tmp_path / "other", case, monkeypatch, cell_minutes=0)
    assert "cells_steps" not in facts
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["clicks"]


@pytest.mark.parametrize(
    ("cells", "key_channels", "is_copied"), [(0.0, 0, True), (1.0, 0, False), (1.0, 3, True)]
)
def test_a_first_stage_goes_on_with_an_encoder_that_has_keys(
    make_case: Callable[..., Case],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cells: float,
    key_channels: int,
    is_copied: bool,
) -> None:
    """Any other encoder learned to serve the refiner, and the first stage begins anew."""
    earlier = build_untrained(dataclasses.replace(KEYED, key_channels=key_channels), seed=7)
    save_weights(earlier, tmp_path / "earlier.safetensors", {})
    taken: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(
        "training.pretrain.train",
        lambda network, *others: (
            taken.append({name: x.clone() for name, x in network.state_dict().items()})
            or (RunState(), AveragedWeights(network, 0.9))
        ),
    )
    start = tmp_path / "earlier.safetensors"
    run_stages(tmp_path, make_case(), monkeypatch, cell_minutes=cells, start=start)
    name = "image_encoder.neck.0.weight"
    assert torch.equal(taken[0][name], earlier.state_dict()[name]) == is_copied
    if key_channels:
        name = "mask_decoder.refiner.cell_keys.out.weight"
        assert torch.equal(taken[0][name], earlier.state_dict()[name])
    name = "mask_decoder.refiner.key.weight"
    assert torch.equal(taken[0][name], earlier.state_dict()[name])


def test_a_refiner_of_other_channels_begins_anew(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier = build_untrained(dataclasses.replace(KEYED, refiner_channels=(6, 96)), seed=7)
    start = tmp_path / "earlier.safetensors"
    save_weights(earlier, start, {})
    network, _ = run_stages(
        tmp_path, make_case(), monkeypatch, cell_minutes=0, minutes=0, start=start
    )
    taken, given = network.state_dict(), earlier.state_dict()
    coarser = "mask_decoder.refiner.coarser."
    assert not taken[f"{coarser}up.weight"].any()  # as in a new network
    for name in ("mask_decoder.refiner.merge.weight", "image_encoder.neck.0.weight"):
        assert torch.equal(taken[name], given[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nonexist"], r"/nonexist/manifest\.csv does not exist"),
        (["--data", "/nonexist", "--device", "tpu"], "there is no device 'tpu'"),
    ],
)
def test_invalid_options_end_with_one_sentence(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"^pretrain: {message}"):
        pretrain_main([*arguments, "--out", str(tmp_path)])


def test_a_start_without_weights_ends_with_one_sentence(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("training.pretrain.load_cases", lambda folder: [make_case()])
    monkeypatch.setattr("training.pretrain.TEACHER", DETAILED)
    monkeypatch.setattr("training.pretrain.initialise", lambda network, images: None)
    readme = tmp_path / "README.md"
    readme.write_text("no weights")
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path), "--start", str(readme)]
    with pytest.raises(SystemExit, match=r"^pretrain: .*README\.md: "):
        pretrain_main(arguments)


def test_a_teacher_without_weights_ends_with_one_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pth")
    with pytest.raises(SystemExit, match=r"^student: .*missing\.pth: there is no such file"):
        student.main(["--teacher", missing, "--out", str(tmp_path / "student.safetensors")])


def test_painted_studies_without_data_end_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^painted_studies: .*manifest\.csv does not exist"):
        painted_studies.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
