"""An update changes the trained weights by a bounded amount, and nothing else."""

from pathlib import Path

import pytest
import tiny
import torch
from tiny import make_batch

from lib.errors import InputError
from lib.trainers.schedule import layer_pairs
from lib.trainers.student_start import start_student
from lib.trainers.teacher import TeacherFeatures
from lib.trainers.train_options import TrainOptions
from lib.trainers.updates import Updater, clip_updates

PAIRS = layer_pairs(4, 2)
SHORT = {"max_epochs": 4, "iterations_per_epoch": 2, "stage1_fraction": 0.5}


@pytest.fixture
def features(tmp_path: Path) -> TeacherFeatures:
    return TeacherFeatures(tmp_path, 1 << 30, tiny.teacher(), "abc", [block for block, _ in PAIRS])


def make_updater(features: TeacherFeatures, **options: object) -> Updater:
    student = tiny.student().requires_grad_(True)
    start_student(student, features.teacher)
    parsed = TrainOptions.from_request({**SHORT, "device": "cpu", **options})
    return Updater(student, features, PAIRS, parsed, torch.device("cpu"))


def changed_parts(updater: Updater, update: int) -> set[str]:
    """Run one update; return the top-level modules whose weights changed."""
    before = {name: x.clone() for name, x in updater.student.state_dict().items()}
    updater(make_batch(labelled=True), update)
    after = updater.student.state_dict()
    return {name.split(".")[0] for name, x in before.items() if not torch.equal(x, after[name])}


def test_stage_1_changes_the_encoder_alone(features: TeacherFeatures) -> None:
    updater = make_updater(features)
    assert changed_parts(updater, 2) == {"image_encoder"}
    assert {"image_encoder", "prompt_encoder", "mask_decoder"} <= changed_parts(updater, 4)


def test_stage_2_starts_with_fresh_moments(features: TeacherFeatures) -> None:
    """Adam's moments of stage 1 belong to another loss."""
    updater = make_updater(features)
    for update in range(4):
        updater(make_batch(), update)
    steps = {int(state["step"]) for state in updater.optimizer.state.values()}
    assert max(steps) == 4
    updater(make_batch(), 4)
    assert {int(state["step"]) for state in updater.optimizer.state.values()} == {1}


def test_parts_of_a_batch_give_the_gradient_of_the_whole(features: TeacherFeatures) -> None:
    """Gradient accumulation changes memory, not numbers."""
    whole, parts = make_updater(features), make_updater(features, accumulate=3)
    for update in (3, 4):  # one in each stage
        expected = whole(make_batch(labelled=True), update)
        losses = parts(make_batch(labelled=True), update)
        assert losses["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        for weight, whole_weight in zip(
            parts.student.parameters(), whole.student.parameters(), strict=True
        ):
            if whole_weight.grad is not None:
                torch.testing.assert_close(weight.grad, whole_weight.grad, rtol=1e-2, atol=1e-4)


def test_a_loss_that_is_not_finite_names_the_options(
    features: TeacherFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Updater._loss
    monkeypatch.setattr(
        Updater, "_loss", lambda *a: {**(losses := loss(*a)), "loss": losses["loss"] * float("inf")}
    )
    with pytest.raises(InputError, match=r"the loss is inf in update 3; lower lr \(now 0.005\)"):
        make_updater(features)(make_batch(), 2)


def test_the_change_of_a_tensor_is_clipped_relative_to_its_norm() -> None:
    large, small, bias = torch.ones(4, 4), torch.ones(4, 4), torch.zeros(4)
    before = [x.clone() for x in (large, small, bias)]
    large[0] += 3.0
    small += 0.01
    bias -= 1.0
    clip_updates([large, small, bias], before, largest=0.02)
    assert float((large - 1).norm()) == pytest.approx(0.02 * 4)
    assert large[1:].eq(1).all() and large[0].gt(1).all(), "the direction stays"
    torch.testing.assert_close(small, torch.full((4, 4), 1.01))
    assert bias.tolist() == pytest.approx([-0.02 * 0.1] * 4)
