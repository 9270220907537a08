"""Losses have the value of their definition, are 0 for equal masks, and count small targets."""

import pytest
import torch

from lib.trainers.losses import (
    cross_entropy,
    dice_loss,
    distillation_loss,
    mask_loss,
    overlaps,
    pair_losses,
)


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(3, 6, 7, 8, generator=torch.Generator().manual_seed(seed)) * 3


def test_pair_losses_are_the_norm_per_token_over_the_root_of_the_width() -> None:
    teacher = [logits_of(n)[..., None].repeat(1, 1, 1, 1, 16) for n in range(2)]
    student = [x.clone() for x in teacher]
    student[0] += 3  # √(16 · 9) / √16 = 3 at each token
    student[1][:, :3] += 4  # 4 at half of the tokens
    errors = pair_losses(student, teacher)
    assert errors.tolist() == pytest.approx([3, 2], rel=1e-5)
    student[1] = teacher[1].clone()
    student[1][..., 0] += 4  # √16 / √16 = 1 for one channel of 16
    assert pair_losses(student, teacher)[1].item() == pytest.approx(1, rel=1e-5)


def test_pair_losses_have_a_finite_gradient_at_agreement_and_take_half_precision() -> None:
    teacher = logits_of(0)
    student = teacher.clone().requires_grad_()
    pair_losses([student], [teacher]).sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert pair_losses([teacher.bfloat16()], [teacher]).dtype == torch.float32


def test_student_and_teacher_must_have_equally_many_outputs() -> None:
    with pytest.raises(ValueError, match="zip"):
        pair_losses([logits_of(0)], [logits_of(0), logits_of(1)])


def test_distillation_is_the_binary_divergence_over_the_teachers_volume() -> None:
    student, teacher = logits_of(1), logits_of(2)
    p, q = teacher.double().sigmoid(), student.double().sigmoid()
    cells = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    volume = p.flatten(1).sum(dim=1) + 0.05 * p[0].numel()
    expected = cells.flatten(1).sum(dim=1) / volume
    assert distillation_loss(student, teacher).tolist() == pytest.approx(
        expected.tolist(), rel=1e-4
    )
    assert distillation_loss(teacher, teacher).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_distillation_has_the_gradient_of_the_cross_entropy_to_the_teacher() -> None:
    student, teacher = logits_of(1).requires_grad_(), logits_of(2)
    (divergence,) = torch.autograd.grad(distillation_loss(student, teacher).sum(), student)
    (entropy,) = torch.autograd.grad(cross_entropy(student, teacher.sigmoid()).sum(), student)
    torch.testing.assert_close(divergence, entropy, rtol=1e-4, atol=1e-7)


def test_distillation_is_finite_for_certain_masks() -> None:
    logits = torch.full((1, 4, 4, 4), 80.0)
    assert torch.isfinite(distillation_loss(logits, -2 * logits)).all()


def test_mask_loss_is_dice_and_cross_entropy() -> None:
    logits, target = logits_of(1), (logits_of(2) > 1).float()
    parts = dice_loss(logits, target) + cross_entropy(logits, target)
    assert torch.equal(mask_loss(logits, target), parts)


def target_of(side: int) -> torch.Tensor:
    target = torch.zeros(1, 12, 14, 16)
    target[:, 2 : 2 + side, 3 : 3 + side, 4 : 4 + side] = 1
    return target


def test_a_certain_correct_mask_has_no_loss() -> None:
    target = target_of(4)
    assert float(mask_loss((target - 0.5) * 200, target)) == pytest.approx(0, abs=1e-4)


def test_dice_part_has_the_value_of_its_definition() -> None:
    target = target_of(4)
    shifted = torch.roll(target, 2, dims=1)  # half of 64 cells shared
    dice_alone = mask_loss((shifted - 0.5) * 2e3, target) - mask_loss(
        (shifted - 0.5) * 1e3, target
    )  # only the cross-entropy grows with the logits: by 500 for each of 64 wrong cells
    volume = 64 + 0.05 * target[0].numel()
    assert float(dice_alone) == pytest.approx(64 * 500 / volume, rel=1e-4)
    total = float(mask_loss((shifted - 0.5) * 1e3, target))
    assert total - 64 * 500 / volume == pytest.approx(1 - (2 * 32 + 1) / (128 + 1), rel=1e-3)


@pytest.mark.parametrize("side", [1, 9])
def test_gradient_points_to_the_target(side: int) -> None:
    target = target_of(side)
    logits = torch.zeros_like(target, requires_grad=True)
    mask_loss(logits, target).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[target == 1] < 0).all()
    assert (logits.grad[target == 0] > 0).all()


def test_overlaps_of_known_masks() -> None:
    target = target_of(4)
    iou, dice = overlaps(torch.roll(target, 2, dims=1) - 0.5, target)
    assert float(iou) == pytest.approx(32 / 96)
    assert float(dice) == pytest.approx(0.5)


def test_two_empty_masks_overlap_fully() -> None:
    logits, target = torch.full((2, 4, 4, 4), -1.0), torch.zeros(2, 4, 4, 4)
    target[1, 0, 0, 0] = 1
    for overlap in overlaps(logits, target):
        assert overlap.tolist() == [1, 0]
