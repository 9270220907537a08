"""The adaptation starts by itself after every N newly labelled images."""

from types import SimpleNamespace

import pytest

from lib.errors import ConflictError
from lib.server import train


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the trainers that were started; the site wants an adaptation every two images."""
    names: list[str] = []
    options = SimpleNamespace(adapt_every=2)
    monkeypatch.setattr(train, "app_instance", lambda: SimpleNamespace(options=options))
    monkeypatch.setattr(train, "_launch", lambda name, _: names.append(name))
    monkeypatch.setattr(train, "_newly_labelled", set())
    return names


def test_every_second_image_starts_it(started: list[str]) -> None:
    counts = []
    for image in ("a", "a", "b", "b", "c"):
        train.adapt_if_due(image)
        counts.append(len(started))
    assert counts == [0, 0, 1, 1, 2], "a label that is saved again counts once"
    assert set(started) == {"fastsam3d_adapt"}


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


def test_by_default_nothing_starts(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = SimpleNamespace(adapt_every=0)
    monkeypatch.setattr(train, "app_instance", lambda: SimpleNamespace(options=options))
    for image in "abcdef":
        train.adapt_if_due(image)
    assert not started


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
