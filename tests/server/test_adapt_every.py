"""The adaptation starts by itself after every N newly labelled images."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from lib.errors import ConflictError
from lib.server import train
from lib.server.new_labels import NewLabels


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the trainers that were started; the site wants an adaptation every two images."""
    names: list[str] = []
    monkeypatch.setattr(train, "app_instance", lambda: site(tmp_path, adapt_every=2))
    monkeypatch.setattr(train, "other_training", lambda: None)
    monkeypatch.setattr(train.AsyncTask, "run", lambda _, request, **__: start(names, request))
    return names


def site(folder: Path, adapt_every: int) -> SimpleNamespace:
    """Return a server that trains in a folder."""
    trainer = SimpleNamespace(shared_folder=folder / "fastsam3d", check=lambda *_: {})
    options = SimpleNamespace(adapt_every=adapt_every, device="")
    trainers = {"fastsam3d": trainer, "fastsam3d_adapt": trainer}
    return SimpleNamespace(options=options, trainers=trainers, datastore=lambda: None)


def start(names: list[str], request: dict) -> tuple[dict, None]:
    names.append(request["model"])
    return {}, None


def test_every_second_image_starts_it(started: list[str]) -> None:
    counts = []
    for image in ("a", "a", "b", "b", "c"):
        train.adapt_if_due(image)
        counts.append(len(started))
    assert counts == [0, 0, 1, 1, 2], "a label that is saved again counts once"
    assert set(started) == {"fastsam3d_adapt"}


def test_the_count_outlives_the_server_and_other_servers_share_it(
    started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train.adapt_if_due("a")
    monkeypatch.setattr(train, "app_instance", lambda: site(tmp_path, adapt_every=2))
    train.adapt_if_due("a")
    assert not started
    train.adapt_if_due("b")
    assert started == ["fastsam3d_adapt"]


def test_an_adaptation_by_hand_counts_anew_and_a_distillation_does_not(started: list[str]) -> None:
    train.adapt_if_due("a")
    train._launch("fastsam3d", {})
    train._launch("fastsam3d_adapt", {})
    train.adapt_if_due("b")
    assert started == ["fastsam3d", "fastsam3d_adapt"]
    train.adapt_if_due("c")
    train._launch("fastsam3d", {})
    train.adapt_if_due("c")
    assert started[2:] == ["fastsam3d_adapt", "fastsam3d"]


@pytest.mark.parametrize("content", ["", "{", "7", '"abc"', '{"a": 1}', "[1]", "[" * 50_000])
def test_a_damaged_count_begins_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "new_labels.json").write_text(content)
    assert NewLabels(tmp_path).add("a") == 1
    assert NewLabels(tmp_path).add("b") == 2


def test_it_waits_for_a_training_that_runs(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise ConflictError("a training is running")

    with monkeypatch.context() as patch:
        patch.setattr(train, "_launch", busy)
        train.adapt_if_due("a")
        train.adapt_if_due("b")
    assert not started
    train.adapt_if_due("b")
    assert started == ["fastsam3d_adapt"], "the next label tries again"


def test_a_saved_label_never_fails_because_the_adaptation_cannot_start(
    started: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "_launch", full)
        train.adapt_if_due("a")
        train.adapt_if_due("b")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no space left on device" in caplog.text
    train.adapt_if_due("b")
    assert started == ["fastsam3d_adapt"], "the next label tries again"


def test_a_folder_that_cannot_be_written_never_fails_a_label(
    started: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fastsam3d").write_text("a file in place of the folder")
    train.adapt_if_due("a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_lock_that_another_process_keeps_never_fails_a_label(
    started: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(_: NewLabels) -> FileLock:
        raise Timeout("new_labels.lock")

    monkeypatch.setattr(NewLabels, "_lock", locked)
    train.adapt_if_due("a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_by_default_nothing_starts_and_nothing_is_written(
    started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "app_instance", lambda: site(tmp_path, adapt_every=0))
    for image in "abcdef":
        train.adapt_if_due(image)
    assert not started
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"fastsam3d": {}}),
        ({"max_epochs": 3}, {"fastsam3d": {"max_epochs": 3}}),
        ({"fastsam3d_adapt": {"seed": 1}}, {"fastsam3d_adapt": {"seed": 1}}),
        ({"fastsam3d": {}}, {"fastsam3d": {}}),
    ],
)
def test_only_the_trainer_of_a_model_starts_without_its_name(
    monkeypatch: pytest.MonkeyPatch, params: dict, expected: dict
) -> None:
    names = ["fastsam3d", "fastsam3d_adapt"]
    app = SimpleNamespace(trainers=dict.fromkeys(names), configs={"fastsam3d": 0, "sam_med3d": 0})
    monkeypatch.setattr(train, "app_instance", lambda: app)
    monkeypatch.setattr(train, "_start", lambda name, options: (name, options))
    reply = train.train_all(user=None, params=params)  # type: ignore[arg-type]
    assert {name: each["result"][1] for name, each in reply.items()} == expected
