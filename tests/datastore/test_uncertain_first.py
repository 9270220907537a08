"""*Next Sample* offers the most uncertain unlabelled image, and keeps its scores."""

import errno

import pytest

from lib.datastore import uncertain_first as module
from lib.datastore.uncertain_first import UncertainFirst
from lib.errors import InputError


class Store:
    """A datastore of unlabelled images with their info."""

    def __init__(self, names):
        self.infos = {name: {} for name in names}

    def get_unlabeled_images(self, tag, labels):
        return list(self.infos)

    def get_image_info(self, name):
        return self.infos[name]

    def get_image_uri(self, name):
        return f"/studies/{name}"

    def update_image_info(self, name, info):
        self.infos[name].update(info)


class Scorer:
    """Scores by name; records what it is asked for."""

    def __init__(self, **scores):
        self.scores = scores
        self.asked = []

    def __call__(self, path):
        self.asked.append(path)
        value = self.scores[path.rsplit("/", 1)[1]]
        if value is None:
            raise InputError("damaged")
        return value


@pytest.fixture
def store():
    return Store(["a", "b", "c"])


def test_the_most_uncertain_image_is_offered_and_scores_are_kept(store):
    scorer = Scorer(a=0.2, b=0.7, c=0.4)
    strategy = UncertainFirst(scorer, lambda: "w1")
    assert strategy({}, store) == {"id": "b", "score": 0.7, "scored": 3, "of": 3}
    assert strategy({}, store)["id"] == "b" and len(scorer.asked) == 3
    del store.infos["b"]  # it was labelled
    assert strategy({}, store)["id"] == "c"


def test_other_weights_score_anew(store):
    weights = ["w1"]
    scorer = Scorer(a=0.2, b=0.7, c=0.4)
    strategy = UncertainFirst(scorer, lambda: weights[0])
    strategy({}, store)
    weights[0], scorer.scores["a"] = "w2", 0.9
    assert strategy({}, store)["id"] == "a" and len(scorer.asked) == 6


def test_an_image_that_cannot_be_read_comes_last(store):
    scorer = Scorer(a=None, b=None, c=0.1)
    assert UncertainFirst(scorer, lambda: "w1")({}, store)["id"] == "c"


def test_a_request_takes_a_limited_time(store, monkeypatch):
    monkeypatch.setattr(module, "BUDGET_SECONDS", -1.0)
    scorer = Scorer(a=0.2, b=0.7, c=0.4)
    result = UncertainFirst(scorer, lambda: "w1")({}, store)
    assert result == {"id": "a", "score": None, "scored": 0, "of": 3} and not scorer.asked


def test_two_people_get_different_images(store):
    strategy = UncertainFirst(Scorer(a=0.2, b=0.7, c=0.4), lambda: "w1")
    now = module.time.time()
    store.infos["b"]["strategy"] = {"uncertainty": {"ts": now, "client_id": "one"}}
    assert strategy({"client_id": "two"}, store)["id"] == "c"
    assert strategy({"client_id": "one"}, store)["id"] == "b"
    store.infos["b"]["strategy"]["uncertainty"]["ts"] = now - 2 * module.OFFERED_SECONDS
    assert strategy({"client_id": "two"}, store)["id"] == "b"


def test_nothing_is_offered_when_all_are_labelled():
    assert UncertainFirst(Scorer(), lambda: "w1")({}, Store([])) is None


def test_a_full_disk_does_not_stop_next_sample(store, monkeypatch):
    """The score counts for this request; the next one computes it again."""

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(store, "update_image_info", no_space)
    strategy = UncertainFirst(Scorer(a=0.2, b=0.7, c=0.4), lambda: "w1")
    assert strategy({}, store)["id"] == "b"
