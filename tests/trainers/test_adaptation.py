"""The adaptation to labels: three students, cross-validated, with the encoder untouched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_site import FolderDatastore, Killed, Site, judge_as

from lib.errors import InputError, StoppedError
from lib.imaging.volume import read_volume
from lib.trainers.adapt_batches import beside_label
from lib.trainers.adapt_options import AdaptOptions
from lib.trainers.adapt_run import AdaptRun, make_phases
from lib.trainers.data import Study
from lib.trainers.data.painted_rois import paint_roi
from lib.trainers.data.studies import examine, find_studies, read_label
from lib.trainers.decoder_autocast import decoder_autocast
from lib.trainers.run import Run

SHORT = {
    "max_epochs": 4,
    "iterations_per_epoch": 2,
    "train_batch_size": 2,
    "rois": 8,
    "lr": 1e-3,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("labelled"), count=5, labelled=4)


def adapt(site: Site, name: str, **options: object) -> dict:
    task = site.adaptation(name)
    task({**SHORT, **options}, site.datastore)
    return task.stats()


@pytest.fixture(scope="module")
def stats(labelled: Site) -> dict:
    return adapt(labelled, "undisturbed", min_gain=0.9)


def numbers(stats: dict) -> list[dict]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in stats["history"]]


def test_three_students_are_trained_and_two_are_judged(stats: dict) -> None:
    assert [row["student"] for row in stats["history"]] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [row["iteration"] for row in stats["history"]] == list(range(2, 17, 2))
    assert (stats["epoch"], stats["total_epochs"]) == (8, 8)
    assert stats["studies"] == {"train": 4, "labelled": 4, "judged": 4}
    assert set(stats["judged"]["dice"]) == {f"scan{n}" for n in range(4)}, "each study, once"
    assert all(row["kl"] >= 0 and row["dice"] > 0 for row in stats["history"])
    assert stats["published"] is False and "on 4 studies that took no part" in stats["reason"]
    assert stats["curves"] == "/train/fastsam3d_adapt/curves.png"


def test_no_student_is_judged_on_studies_that_trained_it() -> None:
    studies = [Study(f"s{n}", Path("x.nii.gz"), Path("y.nii.gz")) for n in range(7)]
    *halves, last = make_phases(studies, 0)  # type: ignore[arg-type]
    for phase in halves:
        assert not {x.name for x in phase.train} & {x.name for x in phase.judged}
    assert sorted(x.name for phase in halves for x in phase.judged) == [x.name for x in studies]
    assert last.train == studies and not last.judged
    assert [phase.judged for phase in make_phases(studies[:1], 0)] == [[]]  # type: ignore[arg-type]


def test_only_the_mask_decoder_changes(labelled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    assert adapt(labelled, "published")["published"]
    served = labelled.served("published")
    new, old = served().network.state_dict(), served.base.network.state_dict()
    changed = {name for name, x in new.items() if not torch.equal(x, old[name])}
    assert changed and all(name.startswith("mask_decoder.") for name in changed)
    assert "adapted to 4 labels of this site" in served().info()["description"]
    adaptation = served().adaptation
    assert adaptation is not None and served().info()["adapted"]
    before = served.base.network.mask_decoder.state_dict()
    assert all(torch.equal(x, before[name]) for name, x in adaptation.earlier.state_dict().items())
    served.published.rollback(None)
    assert served().network_id == served.base.network_id, "one call undoes it"


def test_adapting_again_keeps_the_decoder_before_the_first_time(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    adapt(labelled, "twice")
    first = labelled.served("twice")()
    adapt(labelled, "twice", seed=1)
    second = labelled.served("twice")()
    assert second.network_id != first.network_id
    assert first.adaptation is not None and second.adaptation is not None
    earlier = first.adaptation.earlier.state_dict()
    assert all(
        torch.equal(x, earlier[name]) for name, x in second.adaptation.earlier.state_dict().items()
    )


@pytest.mark.parametrize("update", [3, 7])
def test_a_killed_run_resumes(
    labelled: Site, stats: dict, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    step, name = AdaptRun._step, f"killed after {update}"

    def step_or_die(self: AdaptRun, batch: dict) -> None:
        if self.progress.update == update:
            raise Killed
        step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AdaptRun, "_step", step_or_die)
        adapt(labelled, name, min_gain=0.9)
    resumed = adapt(labelled, name, min_gain=0.9)
    assert resumed["resumed"].startswith("resumed after update")
    assert numbers(resumed) == numbers(stats) and resumed["judged"] == stats["judged"]


def test_three_labels_ask_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    site = Site(tmp_path, count=3, labelled=3)
    asked = adapt(site, "few")
    assert asked["asks"] and not asked["published"] and "accept true" in asked["reason"]

    def fail(*_: object) -> None:
        raise AssertionError("an update")

    monkeypatch.setattr(AdaptRun, "_step", fail)
    assert adapt(site, "few", accept=True)["published"]


def test_one_label_asks_too(tmp_path: Path) -> None:
    site = Site(tmp_path, count=1, labelled=1)
    asked = adapt(site, "one")
    assert asked["asks"] and "no study to judge on" in asked["reason"]
    assert adapt(site, "one", accept=True)["published"]


def test_a_distillation_starts_from_the_decoder_before_the_adaptation(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_as(monkeypatch, 0.6, 0.5)
    adapt(labelled, "then distilled")
    starts = []
    monkeypatch.setattr(Run, "train", lambda run: starts.append(run.student))
    with pytest.raises(StoppedError):
        labelled.train("then distilled", start="served")
    before = labelled.served("then distilled").base.network.state_dict()
    (student,) = starts
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())


def test_a_slow_machine_does_fewer_updates(labelled: Site) -> None:
    stats = adapt(
        labelled, "slow", max_epochs=8, iterations_per_epoch=5, max_minutes=1e-4, min_gain=0.9
    )
    assert stats["iteration"] == 10 + 10 + 20
    assert [row["student"] for row in stats["history"]] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert len(stats["judged"]["dice"]) == 4, "each student was judged at its end"


def test_a_machine_that_was_busy_at_first_catches_up(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = AdaptRun._plan

    def plan_with_a_slow_start(run: AdaptRun, phase: int) -> None:
        if phase == 0:
            run._step_seconds.extend([100.0] * 6)
        plan(run, phase)
        run._step_seconds.clear()

    monkeypatch.setattr(AdaptRun, "_plan", plan_with_a_slow_start)
    stats = adapt(labelled, "busy", max_epochs=8, iterations_per_epoch=5, min_gain=0.9)
    assert [row["student"] for row in stats["history"]] == [1] * 2 + [2] * 4 + [3] * 8


def test_places_beside_a_label_are_near_it_and_outside(labelled: Site) -> None:
    studies, _ = examine(find_studies(labelled.datastore)[0])
    study = next(each for each in studies if each.is_labelled)
    beside = beside_label(study)
    assert not beside.is_labelled and len(beside.body) > 100
    label = read_label(study.study.label, read_volume(study.study.image))  # type: ignore[arg-type]
    assert not label[tuple(beside.body.T)].any()
    ball = np.argwhere(label)
    extent, middle = np.ptp(ball, axis=0) + 1, ball.mean(axis=0)
    assert (np.abs(beside.body - middle) <= extent + 1).all()


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_is_used_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr("lib.trainers.decoder_autocast.multiplies_bfloat16", lambda: has_it)
    with decoder_autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has_it else torch.float32)


def test_no_labels(tmp_path: Path) -> None:
    site = Site(tmp_path, count=2, labelled=0)
    with pytest.raises(InputError, match="no labels to adapt to"):
        site.adaptation().check({}, site.datastore)
    with pytest.raises(InputError, match="no studies"):
        site.adaptation().check({}, FolderDatastore(tmp_path))


def test_a_folder_of_models_that_cannot_be_written_is_refused_at_once(
    labelled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # file modes do not stop the superuser, who may run the tests
    monkeypatch.setattr("lib.trainers.task.can_write", lambda folder: False)
    with pytest.raises(InputError, match=r"cannot be written.*--conf model_dir"):
        labelled.adaptation().check({}, labelled.datastore)


def test_the_clients_table() -> None:
    config = AdaptOptions.config()
    assert list(config) == ["device", "min_gain", "accept", "resume", "max_epochs", "max_minutes"]
    assert AdaptOptions.from_request(config) == AdaptOptions.from_request({})


def test_painted_rois_are_normalised_and_differ() -> None:
    image = paint_roi(32, 1)
    assert image.shape == (1, 32, 32, 32) and image.dtype == torch.float32
    assert torch.isfinite(image).all() and abs(float(image.mean())) < 1
    assert torch.equal(image, paint_roi(32, 1))
    other = paint_roi(32, 2)
    assert abs(np.corrcoef(image.flatten(), other.flatten())[0, 1]) < 0.5
