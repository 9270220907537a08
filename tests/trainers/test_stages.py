"""Stage 1 lowers the error of every layer, stage 2 that of the masks; each trains its own parts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import make_batch
from torch import Tensor

from lib.errors import InputError
from lib.networks import FastSAM3D
from lib.trainers.clicks import ClickSeries, next_clicks, on_cells
from lib.trainers.losses import pair_losses
from lib.trainers.schedule import active_pairs, layer_pairs
from lib.trainers.stages import Batch, Stage1, Stage2, Stage2Options, step_seed
from lib.trainers.student_start import start_student
from lib.trainers.teacher import TeacherFeatures

PAIRS = layer_pairs(4, 2)


@pytest.fixture
def features(tmp_path: Path) -> TeacherFeatures:
    """Return the features of a teacher whose blocks change the tokens noticeably."""
    network = tiny.teacher()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "blocks" in name and name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(2)
    return TeacherFeatures(tmp_path, 1 << 30, network, "abc", [block for block, _ in PAIRS])


@pytest.fixture
def student(features: TeacherFeatures) -> FastSAM3D:
    network = tiny.student().requires_grad_(True)
    start_student(network, features.teacher)
    return network


def errors_of(student: FastSAM3D, features: TeacherFeatures, batch: Batch) -> Tensor:
    teacher_outputs, _ = features.get(batch["key"], batch["image"])
    with torch.no_grad():
        _, student_outputs = student.encode_intermediates(
            batch["image"], [block for _, block in PAIRS]
        )
    return pair_losses(
        [student_outputs[block] for _, block in PAIRS],
        [teacher_outputs[block] for block, _ in PAIRS],
    )


def train_stage_1(student: FastSAM3D, features: TeacherFeatures, steps: int) -> list[float]:
    stage = Stage1(student, features, PAIRS)
    optimizer = torch.optim.Adam(stage.trained(), lr=5e-3)
    losses = []
    for step in range(steps):
        batch = make_batch(seed=step % 12)
        parts = stage(batch, active_pairs(step + 1, steps, len(PAIRS)))
        optimizer.zero_grad()
        parts["loss"].backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimizer.step()
        losses.append(float(parts["loss"].detach()))
    return losses


def test_the_student_starts_with_all_but_the_teachers_blocks(features: TeacherFeatures) -> None:
    student, before = tiny.student(), tiny.student().state_dict()
    start_student(student, features.teacher)
    teacher = features.teacher.state_dict()
    for name, x in student.state_dict().items():
        source = before if name.startswith("image_encoder.blocks.") else teacher
        assert torch.equal(x, source[name]), name
    assert any("neck" in name for name in teacher) and any("pos_embed" in name for name in teacher)
    student.mask_decoder.mask_tokens.weight.data.add_(1)
    assert not torch.equal(
        student.state_dict()["mask_decoder.mask_tokens.weight"],
        teacher["mask_decoder.mask_tokens.weight"],
    )


def test_the_detail_stem_is_copied_too() -> None:
    config = dataclasses.replace(tiny.TEACHER, detail_channels=4)
    teacher = tiny.teacher(config=config)
    student = tiny.student(config=dataclasses.replace(tiny.STUDENT, detail_channels=4))
    start_student(student, teacher)
    assert torch.equal(student.detail_stem.proj.weight, teacher.detail_stem.proj.weight)


def test_another_width_is_refused(features: TeacherFeatures) -> None:
    wide = tiny.student(config=dataclasses.replace(tiny.STUDENT, width=48))
    with pytest.raises(InputError, match="teacher's width is 32 and the student's 48.*--conf"):
        start_student(wide, features.teacher)


def test_stage_1_lowers_the_error_of_every_pair_by_more_than_half(
    student: FastSAM3D, features: TeacherFeatures
) -> None:
    held_out = make_batch(6, seed=99)
    before = errors_of(student, features, held_out)
    train_stage_1(student, features, steps=240)
    after = errors_of(student, features, held_out)
    assert (after < before / 2).all(), (before, after)


def test_stage_1_takes_the_first_k_pairs_and_then_the_embedding(
    student: FastSAM3D, features: TeacherFeatures
) -> None:
    stage, batch = Stage1(student, features, PAIRS), make_batch()
    errors = errors_of(student, features, batch)
    first = stage(batch, 1)
    assert set(first) == {"loss", "pair_losses"}
    assert first["loss"].item() == pytest.approx(float(errors[0]), rel=1e-5)
    both = stage(batch, 2)
    torch.testing.assert_close(both["pair_losses"], errors, rtol=1e-5, atol=1e-6)
    expected = (errors.mean() + both["embedding_loss"]).item()
    assert both["loss"].item() == pytest.approx(expected, rel=1e-5)


def touched(network: FastSAM3D) -> set[str]:
    """Return the modules of the network in which a parameter has a gradient."""
    return {
        ".".join(name.split(".")[: 3 if "blocks" in name else 1])
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def test_gradients_reach_only_what_a_stage_trains(
    student: FastSAM3D, features: TeacherFeatures
) -> None:
    stage, batch = Stage1(student, features, PAIRS), make_batch()
    stage(batch, 1)["loss"].backward()
    assert touched(student) == {"image_encoder.blocks.0"}
    student.zero_grad()
    stage(batch, 2)["loss"].backward()
    assert touched(student) == {
        "image_encoder",  # the neck
        "image_encoder.blocks.0",
        "image_encoder.blocks.1",
    }
    assert student.image_encoder.patch_embed.proj.weight.grad is None
    student.zero_grad()
    Stage2(student, features)(batch, 0)["loss"].backward()
    assert {"prompt_encoder", "mask_decoder", "image_encoder.blocks.0"} <= touched(student)
    assert not any(parameter.grad is not None for parameter in features.teacher.parameters())


def test_a_stage_holds_the_student_alone(student: FastSAM3D, features: TeacherFeatures) -> None:
    for stage in (Stage1(student, features, PAIRS), Stage2(student, features)):
        expected = {f"student.{name}" for name in student.state_dict()}
        assert set(stage.state_dict()) == expected
    trained = {id(parameter) for parameter in Stage1(student, features, PAIRS).trained()}
    encoder = student.image_encoder
    assert trained == {
        id(parameter) for part in (encoder.blocks, encoder.neck) for parameter in part.parameters()
    }


def train_stage_2(
    stage: Stage2, batches: list[Batch], steps: int, lr: float = 2e-3
) -> list[dict[str, float]]:
    optimizer = torch.optim.Adam(stage.trained(), lr=lr)
    log = []
    for step in range(steps):
        parts = stage(batches[step % len(batches)], step_seed(0, step))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        log.append({name: float(x.detach()) for name, x in parts.items()})
    return log


def test_stage_2_brings_the_students_masks_to_the_teachers(
    student: FastSAM3D, features: TeacherFeatures
) -> None:
    train_stage_1(student, features, steps=40)
    log = train_stage_2(Stage2(student, features), [make_batch(seed=n) for n in range(3)], 50)
    first, last = log[:6], log[-6:]
    assert sum(x["kl"] for x in last) < 0.5 * sum(x["kl"] for x in first)
    assert all(x["dice"] == x["ce"] == 0 for x in log)


def test_users_click_on_errors_against_the_label_or_else_the_teacher(
    student: FastSAM3D, features: TeacherFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(labelled=True)
    batch["has_label"][1:] = False
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(logits: Tensor, goal: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        seen.append((logits, goal))
        return next_clicks(logits, goal, *others)

    monkeypatch.setattr("lib.trainers.clicks.next_clicks", watched)
    Stage2(student, features)(batch, 0)
    _, teacher_embedding = features.get(batch["key"], batch["image"])
    points_roi = batch["click_roi"][:, None]
    labels = torch.ones(4, 1, dtype=torch.long)
    with torch.no_grad():
        teacher_logits = ClickSeries(features.teacher, teacher_embedding).decode(points_roi, labels)
        series = ClickSeries(student, student.encode(batch["image"]))
        student_logits = series.decode(points_roi, labels)
    logits, goal = seen[0]
    torch.testing.assert_close(logits, on_cells(student_logits, 16))
    assert torch.equal(goal[0], batch["target"][0])
    torch.testing.assert_close(goal[1:], on_cells(teacher_logits, 16).sigmoid()[1:])


def test_a_roi_without_a_label_has_the_divergence_alone(
    student: FastSAM3D, features: TeacherFeatures
) -> None:
    mixed, labels = make_batch(), make_batch(labelled=True)
    mixed["has_label"][1] = True
    mixed["target"][1] = labels["target"][1]
    parts = Stage2(student, features)(mixed, 3)
    assert float(parts["dice"]) > 0 and float(parts["ce"]) > 0 and float(parts["kl"]) > 0
    total = (parts["kl"] + parts["dice"] + parts["ce"]).item()
    assert parts["loss"].item() == pytest.approx(total, rel=1e-6)


def test_without_a_teacher_the_student_learns_labels_alone(student: FastSAM3D) -> None:
    batch = make_batch(labelled=True)
    log = train_stage_2(Stage2(student, None), [batch], 50)
    assert all(x["kl"] == 0 for x in log)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    parts = Stage2(student, None)(make_batch(), 0)
    parts["loss"].backward()  # unlabelled ROIs alone: nothing to learn, and no error
    assert parts["loss"].item() == 0


def test_a_roi_counts_the_same_in_any_batch(student: FastSAM3D, features: TeacherFeatures) -> None:
    whole = make_batch(labelled=True)
    halves = [
        {name: x[part] for name, x in whole.items()} for part in (slice(0, 2), slice(2, None))
    ]
    stage = Stage2(student, features)
    with torch.no_grad():
        together = stage(whole, 5)
        apart = [stage(half, 5) for half in halves]
    for name in ("loss", "kl", "dice", "ce"):
        mean = float(apart[0][name] + apart[1][name]) / 2
        assert mean == pytest.approx(float(together[name]), rel=1e-4)


def test_the_first_click_and_some_later_ones_are_graded() -> None:
    stage = Stage2(tiny.student(), None, Stage2Options(clicks=5, graded=3))
    drawn = [stage._draw_series(seed) for seed in range(40)]
    assert {clicks for clicks, _ in drawn} == {2, 3, 4, 5}
    for clicks, graded in drawn:
        assert 0 in graded and len(graded) == min(3, clicks) and max(graded) < clicks


def test_the_same_seed_gives_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: str) -> list[float]:
        network = tiny.student().requires_grad_(True)
        features = TeacherFeatures(tmp_path / folder, 1 << 30, tiny.teacher(), "abc", [1, 3])
        start_student(network, features.teacher)
        losses = train_stage_1(network, features, 6)
        log = train_stage_2(Stage2(network, features), [make_batch(labelled=True)], 4)
        return losses + [x["loss"] for x in log]

    torch.rand(3)  # the global generator must not matter
    first = run("a")
    torch.rand(5)
    assert first == run("b") == run("a")  # the last run finds all features on disk
