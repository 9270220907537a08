"""Dice is measured against labels or the teacher, with the same random numbers for all networks."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from lib.trainers.data import RoiOptions, RoiPool, examine
from lib.trainers.schedule import layer_pairs
from lib.trainers.student_start import start_student
from lib.trainers.teacher import TeacherFeatures
from lib.trainers.validation import CLICKS, pair_errors, validate

PAIRS = layer_pairs(4, 2)


def pool_of(folder: Path, labelled: tuple[bool, ...], count: int = 6) -> RoiPool:
    studies = [tiny.make_study(folder, f"s{n}", n, kind) for n, kind in enumerate(labelled)]
    usable, _ = examine(studies)
    return RoiPool(usable, count, tiny.STUDENT, RoiOptions.plain(2.0), seed=5)


@pytest.fixture
def features(tmp_path: Path) -> TeacherFeatures:
    return TeacherFeatures(tmp_path / "cache", 1 << 30, tiny.teacher(), "abc", [1, 3])


def test_labelled_rois_need_no_teacher(tmp_path: Path) -> None:
    result = validate(tiny.student(), pool_of(tmp_path, (True,)))
    assert tuple(result.dice) == CLICKS and result.per_roi.shape == (6, 4)
    assert result.labelled == result.rois == 6
    assert result.mean == pytest.approx(sum(result.dice.values()) / 4, abs=1e-6)
    assert result.dice[3] == pytest.approx(float(result.per_roi[:, 1].mean()), abs=1e-6)
    with pytest.raises(ValueError, match="without a label"):
        validate(tiny.student(), pool_of(tmp_path, (False,)))


def test_a_perfect_network_scores_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(tmp_path, (True,))
    targets = torch.stack([pool[n]["target"] for n in range(len(pool))])
    batches = iter(targets.split(4))

    def decode(embedding: Tensor, points: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        if points.shape[1] == 1:
            decode.target = next(batches)
        return (decode.target[:, None] - 0.49), torch.zeros(len(points), 1)

    network = tiny.student()
    monkeypatch.setattr(network, "decode", decode)
    assert validate(network, pool).mean == 1


def test_results_do_not_depend_on_batches_or_other_networks(
    tmp_path: Path, features: TeacherFeatures
) -> None:
    pool = pool_of(tmp_path, (True, False))
    student = tiny.student()
    one = validate(student, pool, features, batch_size=1)
    validate(features.teacher, pool, features)
    four = validate(student, pool, features, batch_size=4)
    torch.testing.assert_close(one.per_roi, four.per_roi, atol=0.02, rtol=0)
    assert torch.equal(four.per_roi, validate(student, pool, features, batch_size=4).per_roi)
    assert one.labelled == 3
    other = validate(student, pool, features, seed=1).per_roi
    assert torch.equal(other[:, 0], four.per_roi[:, 0])  # the first click is the ROI's own
    assert not torch.equal(other, four.per_roi)


def test_the_teacher_scores_one_against_itself(tmp_path: Path, features: TeacherFeatures) -> None:
    pool = pool_of(tmp_path, (False,))
    assert validate(features.teacher, pool, features).mean == 1
    copy = tiny.teacher()
    assert validate(copy, pool, features).mean > 0.95  # its embedding is not rounded
    student = tiny.student()
    start_student(student, features.teacher)
    assert validate(student, pool, features).mean < 0.95


def test_the_teacher_sees_each_roi_once(tmp_path: Path, features: TeacherFeatures) -> None:
    pool = pool_of(tmp_path, (True, False))
    validate(tiny.student(), pool, features)
    validate(features.teacher, pool, features)
    pair_errors(tiny.student(), features, PAIRS, pool)
    assert features.computed == len(pool)


def test_pair_errors_are_means_over_the_rois(tmp_path: Path, features: TeacherFeatures) -> None:
    pool, student = pool_of(tmp_path, (True,), count=5), tiny.student()
    by_four = pair_errors(student, features, PAIRS, pool, batch_size=4)
    by_one = pair_errors(student, features, PAIRS, pool, batch_size=1)
    assert by_four == pytest.approx(by_one, rel=1e-4)
    assert len(by_four) == 2 and min(by_four) > 0
