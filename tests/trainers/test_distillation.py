"""The trainer as MONAI Label runs it: options, what it reports, and what it refuses."""

import dataclasses
import json
import sqlite3

import pytest
import torch
from small_site import SHORT, STUDENT, TEACHER, Site, numbers

from lib.errors import InputError
from lib.networks import build_untrained, load_checkpoint, save_checkpoint
from lib.trainers.data.batches import Batches
from lib.trainers.distillation import DistillationTask
from lib.trainers.schedule import Schedule, active_pairs
from lib.trainers.train_options import TrainOptions
from lib.trainers.updates import Updater, clip_updates
from lib.trainers.validation import judge
from lib.weights.files import file_weights, untrained_weights


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def stats(site):
    """Of a run of both stages."""
    (site.folder / "studies" / "cut.nii.gz").write_bytes(b"no scan")
    try:
        return site.train()
    finally:
        (site.folder / "studies" / "cut.nii.gz").unlink()


# --- options --------------------------------------------------------------------------------------


def test_every_option_is_listed_with_its_default():
    config = TrainOptions.config()
    names = (
        "max_epochs iterations_per_epoch stage1_fraction train_batch_size val_split lr device seed"
    )
    assert set(names.split()) <= set(config)
    assert (config["lr"], config["train_batch_size"]) == (0.005, 16)
    assert config["max_epochs"] * config["stage1_fraction"] == 36, "the paper's total"
    json.dumps(config)
    assert TrainOptions.from_request(config) == TrainOptions.from_request({}), "sent back as it is"


def test_values_as_clients_send_them():
    sent = {"max_epochs": "3", "lr": "1e-3", "amp": "false", "start": ["teacher", "auto"]}
    sent |= {"model": "fastsam3d", "client_id": "someone", "gpus": "all", "val_rois": 4.0}
    options = TrainOptions.from_request(sent)
    assert (options.max_epochs, options.lr, options.amp) == (3, 0.001, False)
    assert (options.start, options.val_rois) == ("teacher", 4)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"epochs": 3}, "unknown option 'epochs'; the options are max_epochs, "),
        ({"max_epochs": "many"}, "max_epochs is 'many'; give a whole number"),
        ({"max_epochs": 2.5}, "max_epochs is 2.5; give a whole number"),
        ({"max_epochs": 0}, "max_epochs is 0; it must be at least 1"),
        ({"max_epochs": True}, "max_epochs is True; give a whole number"),
        ({"lr": -1}, "lr is -1; it must be more than 0"),
        ({"lr": float("nan")}, "lr is nan; give a number"),
        ({"stage1_fraction": 1.5}, "stage1_fraction is 1.5; it must be at most 1"),
        ({"val_split": 1}, "val_split is 1; it must be less than 1"),
        ({"start": "cold"}, "start is 'cold'; choose one of auto, served, teacher"),
        ({"amp": "perhaps"}, "amp is 'perhaps'; give true or false"),
        ({"device": "tpu"}, "there is no device 'tpu' on this server; choose one of cpu"),
    ],
)
def test_options_that_cannot_be(request_, says):
    with pytest.raises(InputError, match=says):
        TrainOptions.from_request(request_)


# --- the schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_the_schedule_is_eq_2(unit):
    options = TrainOptions.from_request({"schedule_unit": unit, "max_epochs": 48})
    schedule = Schedule(options, pairs=6)
    per_epoch = options.iterations_per_epoch
    for epoch in range(36):
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch - 1
        assert schedule.stage(last) == 1
        assert schedule.k(last) == active_pairs(epoch + 1, 36, 6), "the same at an epoch's end"
        if unit == "epoch":
            assert schedule.k(first) == schedule.k(last)
    assert schedule.stage(36 * per_epoch) == 2
    assert [schedule.k(n * per_epoch - 1) for n in (1, 6, 7, 12, 30, 31, 36)] == [
        1, 1, 2, 2, 5, 6, 6,
    ]  # fmt: skip


def test_learning_rates_rise_stay_and_fall_in_each_stage():
    schedule = Schedule(TrainOptions.from_request({"warm_up": 0.1}), pairs=6)
    rates = [schedule.rate(update) for update in range(schedule.updates)]
    first, second = rates[: schedule.stage1_updates], rates[schedule.stage1_updates :]
    for stage, peak in ((first, 5e-3), (second, 5e-5)):
        assert max(stage) == pytest.approx(peak)
        assert 0 < stage[0] < peak and 0 < stage[-1] < peak / 4
        assert sum(rate == pytest.approx(peak) for rate in stage) > len(stage) / 2


def test_no_update_changes_a_tensor_by_more_than_it_can_bear():
    large, small, bias = torch.ones(4, 4), torch.ones(4, 4), torch.zeros(4)
    before = [x.clone() for x in (large, small, bias)]
    large[0] += 3.0
    small += 0.01
    bias -= 1.0
    clip_updates([large, small, bias], before, largest=0.02)
    assert float((large - 1).norm()) == pytest.approx(0.02 * 4)
    assert large[1:].eq(1).all() and large[0].gt(1).all(), "shortened, not turned"
    torch.testing.assert_close(small, torch.full((4, 4), 1.01))
    assert bias.tolist() == pytest.approx([-0.02 * 0.1] * 4)


def test_every_roi_has_its_turn_and_processes_share():
    options = TrainOptions.from_request({"train_batch_size": 4, "iterations_per_epoch": 5})
    whole = list(Batches(10, options)) + list(Batches(10, options))
    assert len(whole[0]) == 4
    assert sorted(sum(whole[:5], [])) == sorted(list(range(10)) * 2), "two passes of ten"
    parts = [list(Batches(10, options, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == [
        batch[::2] + batch[1::2] for batch in whole[:5]
    ]
    with pytest.raises(InputError, match="train_batch_size 4 cannot be shared evenly by 3"):
        Batches(10, options, 0, 3)


def test_batches_go_on_where_they_are_told():
    options = TrainOptions.from_request({"train_batch_size": 4, "iterations_per_epoch": 5})
    batches = Batches(10, options)
    two_epochs = list(batches) + list(batches)
    later = Batches(10, options)
    later.position = 3
    assert list(later) + list(later) == two_epochs[3:]


# --- what it reports ------------------------------------------------------------------------------


def test_history_has_an_entry_per_epoch(stats):
    history = stats["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["stage"] for row in history] == [1, 1, 2, 2]
    assert [row["iteration"] for row in history] == [3, 6, 9, 12]
    assert [row["k"] for row in history] == [3, 6, 6, 6]
    for row in history:
        losses = row["pair_losses"]
        assert len(losses) == 6
        assert [loss is not None for loss in losses] == [n < row["k"] for n in range(6)]
        assert row["loss"] > 0
    assert "embedding_loss" in history[1] and "embedding_loss" not in history[0]
    assert all(name in history[2] for name in ("kl", "dice", "ce"))


def test_validations_are_in_the_history(stats):
    validated = [row["epoch"] for row in stats["history"] if "dice_student" in row]
    assert validated == [2, 4]
    for row in (stats["history"][1], stats["history"][3]):
        for who in ("student", "teacher"):
            assert list(row[f"dice_{who}"]) == ["1", "3", "5", "10"]
            assert all(0 <= value <= 1 for value in row[f"dice_{who}"].values())
    assert stats["history"][1]["dice_teacher"] == stats["history"][3]["dice_teacher"]


def test_clients_find_what_they_read(stats):
    assert (stats["epoch"], stats["total_epochs"]) == (4, 4)
    means = [
        sum(row["dice_student"].values()) / 4 for row in stats["history"] if "dice_student" in row
    ]
    assert stats["best_metric"] == pytest.approx(max(means))
    assert stats["total_time"].count(":") == 2
    assert isinstance(stats["published"], bool) and "mean Dice" in stats["reason"]
    assert stats["studies"] == {"train": 2, "held_out": 2, "labelled": 2}
    assert list(stats["skipped"]) == ["cut"] and "cannot be read" in stats["skipped"]["cut"]
    assert stats["skipped_count"] == 1
    json.dumps(stats, allow_nan=False)


def test_pair_errors_are_measured_on_held_out_rois(stats):
    assert set(stats["pair_errors"]) == {"initial", "stage1", "final"}
    assert all(len(errors) == 6 for errors in stats["pair_errors"].values())


def test_files_of_a_run(site, stats):
    folder = site.folder / "model" / "fastsam3d" / "run"
    assert site.task().curves.read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "events").glob("events*")), "TensorBoard's"
    assert not (folder / "state.pt").exists(), "the next training begins anew"
    assert site.task().stats() == stats


def test_stage_1_leaves_the_decoder_alone(site, tmp_path):
    """It starts as the teacher's, and only stage 2 changes it."""
    task = DistillationTask(
        tmp_path, site.task()._served, file_weights(site.teacher), spacing_mm=8.0
    )
    options = {**SHORT, "max_epochs": 2, "stage1_fraction": 1, "start": "teacher"}
    task(options, site.datastore)
    theirs = file_weights(site.teacher).network.state_dict()
    trained = task._run.student.state_dict()
    for name, x in trained.items():
        if not name.startswith("image_encoder."):
            torch.testing.assert_close(x, theirs[name], rtol=0, atol=0)
    assert any(
        not torch.equal(x, theirs[name])
        for name, x in trained.items()
        if name.startswith("image_encoder.neck")
    )


def test_labels_alone(site):
    stats = site.train("labels alone", teacher="none", max_epochs=2)
    assert [row["stage"] for row in stats["history"]] == [2, 2]
    assert stats["studies"] == {"train": 1, "held_out": 1, "labelled": 2}
    assert stats["history"][-1]["dice_teacher"] is None
    assert stats["history"][-1]["kl"] == 0 and stats["teacher"] is None
    assert stats["start"] == "served"


def test_a_run_is_repeatable(site):
    first, second = site.train("once"), site.train("again")
    assert numbers(first) == numbers(second)
    assert numbers(site.train("seeded", seed=1)) != numbers(first)


def test_parts_of_a_batch_give_the_whole(site):
    """Gradient accumulation changes memory, not numbers."""
    whole, parts = (
        site.train("whole", max_epochs=2),
        site.train("parts", max_epochs=2, accumulate=3),
    )
    for one, other in zip(whole["history"], parts["history"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_mlflow_with_a_database(site, tmp_path):
    path = tmp_path / "runs.db"
    site.train("tracked", max_epochs=1, tracking="mlflow", tracking_uri=f"sqlite:///{path}")
    with sqlite3.connect(path) as database:
        names = {name for (name,) in database.execute("select distinct key from metrics")}
    assert {"loss", "k", "dice_student_10"} <= names


# --- publishing -----------------------------------------------------------------------------------


def test_a_student_is_published_only_if_it_is_measurably_better():
    served = torch.rand(16, 4, generator=torch.Generator().manual_seed(0)) / 2
    assert judge(served + 0.1, served, 0.005).is_better
    assert not judge(served, served, 0.005).is_better
    assert "but 0.005 is needed" in judge(served + 0.004, served, 0.005).reason
    assert not judge(served - 0.1, served, 0).is_better
    lucky = served.clone()
    lucky[0] += 0.4
    verdict = judge(lucky, served, 0.005)
    assert not verdict.is_better and "may be chance" in verdict.reason


def test_a_worse_student_is_not_published(site):
    """What is served agrees with the teacher wholly, as it is the teacher's equal."""
    folder = site.folder / "worse"
    task = site.task("worse")
    worse = {**SHORT, "lr": 0.5, "lr_stage2": 0.5, "clip_norm": 100.0, "min_gain": 0.9}
    result = task(worse, site.datastore)
    assert result["published"] is False and "but 0.9 is needed" in result["reason"]
    assert task.stats()["published"] is False
    assert not list(folder.rglob("published/*/*.safetensors"))


def test_what_was_trained_replaces_what_never_was(site, monkeypatch):
    """However well the parts do that an untrained student has from its teacher."""
    untrained = site.folder / "untrained.safetensors"
    save_checkpoint(load_checkpoint(site.student), untrained, {"trained": "false"})
    monkeypatch.setattr(site, "student", untrained)
    task = site.task("untrained")
    result = task({**SHORT, "max_epochs": 1, "min_gain": 0.9}, site.datastore)
    assert result["published"] and result["version"] == 1
    assert "but 0.9 is needed; published, as that one was never trained" in result["reason"]
    assert task._served().info()["trained"]


def test_what_is_published_says_where_it_comes_from(site, monkeypatch):
    monkeypatch.setattr(
        "lib.trainers.run.judge", lambda *_: judge(torch.ones(2, 4), torch.zeros(2, 4), 0)
    )
    task = site.task("published")
    result = task({**SHORT, "max_epochs": 1}, site.datastore)
    assert result["published"] and result["version"] == 1
    info = task._served().info()
    assert info["description"] == "distilled from teacher.safetensors on 2 studies of this site"
    assert "after 1/3/5/10 clicks" in info["dice"]
    metadata = task._served().metadata
    assert metadata["teacher_sha256"] == file_weights(site.teacher).network_id
    assert metadata["parent_sha256"] == file_weights(site.student).network_id
    assert "'max_epochs': 1" in metadata["options"]


# --- what it refuses ------------------------------------------------------------------------------


def refused(task, site, **options):
    with pytest.raises(InputError) as error:
        task({**SHORT, **options}, site.datastore)
    return str(error.value)


def test_no_teacher(site, tmp_path):
    task = DistillationTask(tmp_path, site.task()._served, untrained_weights("sam_med3d_small"))
    assert "there is no teacher: start the server with --conf teacher_weights" in refused(
        task, site
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 32}, "the teacher's width is 32 and the student's 16"),
        ({"depth": 11}, "the teacher has 11 blocks and the student 6"),
    ],
)
def test_teachers_that_do_not_fit(site, tmp_path, change, says):
    config = dataclasses.replace(TEACHER, **change)
    save_checkpoint(build_untrained(config, 0), tmp_path / "other.safetensors")
    teacher = file_weights(tmp_path / "other.safetensors")
    task = DistillationTask(tmp_path, site.task()._served, teacher, spacing_mm=8.0)
    assert says in refused(task, site)


def test_no_studies(site, tmp_path):
    (tmp_path / "labels").mkdir()
    site.datastore.folder, kept = tmp_path, site.datastore.folder
    try:
        assert "there are no studies to train on" in refused(site.task(), site)
    finally:
        site.datastore.folder = kept


def test_no_study_that_can_be_used(tmp_path):
    site = Site(tmp_path, count=1, labelled=0)
    (tmp_path / "studies" / "scan0.nii.gz").write_bytes(b"no scan")
    said = refused(site.task(), site)
    assert "none of the studies can be used (scan0: " in said
    assert site.task().stats()["error"] == said, "clients see it"


def test_no_labels(tmp_path):
    site = Site(tmp_path, count=2, labelled=0)
    assert "there are no labels to train on" in refused(site.task(), site, teacher="none")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_option(site, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Updater, "__call__", fail)
    says = "out of memory on cpu: lower train_batch_size \\(now 4\\), or raise accumulate"
    with pytest.raises(InputError, match=says):
        site.train("memory")
    assert "train_batch_size" in site.task("memory").stats()["error"]


def test_an_exploding_loss_is_told(site, monkeypatch):
    loss = Updater._loss
    monkeypatch.setattr(
        Updater, "_loss", lambda *a: {**(parts := loss(*a)), "loss": parts["loss"] * float("inf")}
    )
    assert "lower lr (now 0.005)" in refused(site.task("exploding"), site)


def test_one_run_at_a_time(site):
    from lib.trainers import processes as launch

    task = site.task("busy")
    with launch.only_run(task._folder.folder):
        assert "another training of this model is running" in refused(task, site)


def test_student_and_teacher_of_the_tests_are_as_published():
    assert (TEACHER.depth, STUDENT.depth) == (12, 6)
