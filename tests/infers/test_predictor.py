"""The predictor's caches never change an answer, and save what they promise to save."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lib.cache import ByteCache, array_nbytes
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.precision import lowered
from lib.infers.predictor import FastSAM3DPredictor
from lib.infers.random_walker import guide_of, outline
from lib.infers.stopwatch import Stopwatch
from lib.networks import FastSAM3DConfig, MaskPolicy, build_untrained, mask_threshold

POINTS_ROI = np.array([[30.0, 20, 10], [12, 50, 33], [5, 6, 60], [40, 41, 42]])
LABELS = np.array([1, 1, 0, 0])


def roi_image(seed=0):
    return np.random.default_rng(seed).standard_normal((64, 64, 64), dtype=np.float32)


@pytest.fixture(params=["all", "newest"])
def network(request):
    config = FastSAM3DConfig(roi_size=64, width=24, depth=2, num_heads=3, out_channels=48)
    return build_untrained(config, seed=0, policy=MaskPolicy(click_history=request.param))


def predictor(network, embedding_bytes=10**8, mask_bytes=10**8, network_id="a"):
    caches = (ByteCache(embedding_bytes, array_nbytes), ByteCache(mask_bytes, array_nbytes))
    return FastSAM3DPredictor(network, network_id, torch.device("cpu"), *caches)


def segment(predictor, count=4, key="roi", seed=0):
    embedding = predictor.encode(key, lambda: roi_image(seed))
    return predictor.decode(embedding, POINTS_ROI[:count], LABELS[:count])


def test_replay_is_its_definition(network):
    """Each click is decoded with the low-resolution mask of those before it, zeros at first."""
    low_res = torch.zeros(1, 1, 16, 16, 16)
    with torch.no_grad():
        embedding = network.encode(torch.from_numpy(roi_image())[None, None])
        for count in range(1, 5):
            first = 0 if network.policy.click_history == "all" else count - 1
            points = torch.from_numpy(POINTS_ROI[None, first:count]).float()
            labels = torch.from_numpy(LABELS[None, first:count])
            low_res, _ = network.decode(embedding, points, labels, low_res)
    np.testing.assert_array_equal(segment(predictor(network)), low_res[0, 0].numpy())


def test_masks_of_published_networks_are_their_logits_above_0(network):
    ours = predictor(network)
    embedding = ours.encode("roi", roi_image)
    low_res = segment(ours)
    values, threshold = ours.cut(embedding, low_res, POINTS_ROI, LABELS)
    assert values is low_res and threshold == 0 and embedding.guide is None


def test_masks_are_cut_as_the_weights_ask_for(network):
    network.policy = dataclasses.replace(
        network.policy, mask_threshold="expected_dice", mask_edges="image"
    )
    ours = predictor(network)
    embedding = ours.encode("roi", roi_image)
    low_res, stages = segment(ours), Stopwatch()
    np.testing.assert_array_equal(embedding.guide, guide_of(roi_image()))
    assert embedding.nbytes == embedding.prepared.nbytes + embedding.guide.nbytes
    values, threshold = ours.cut(embedding, low_res, POINTS_ROI, LABELS, stages)
    expected = outline(low_res, embedding.guide, POINTS_ROI, LABELS, roi_size=64)
    # the queue's thread may sum with another number of threads than this one
    np.testing.assert_allclose(values, expected, atol=1e-4)
    cut = float(mask_threshold(torch.from_numpy(expected)[None], "expected_dice"))
    assert threshold == pytest.approx(cut, abs=1e-4)
    assert stages["Outline"] > 0


def test_masks_are_cut_one_at_a_time(network, monkeypatch):
    """Two walks at once would only share the same cores."""
    network.policy = dataclasses.replace(network.policy, mask_edges="image")
    ours = predictor(network)
    embedding, low_res = ours.encode("roi", roi_image), segment(ours)
    at_work, most = [], []

    def slow(logits, *_):
        at_work.append(1)
        time.sleep(0.02)
        most.append(len(at_work))
        at_work.pop()
        return logits

    monkeypatch.setattr("lib.infers.predictor.outline", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ours.cut(embedding, low_res, POINTS_ROI, LABELS), range(8)))
    assert most == [1] * 8


def test_answers_do_not_depend_on_what_was_asked_before(network):
    cold = segment(predictor(network))
    warm = predictor(network)
    for count in (1, 3, 4, 2, 4):
        segment(warm, count)
        segment(warm, count, key="other", seed=1)
    np.testing.assert_array_equal(segment(warm), cold)
    np.testing.assert_array_equal(segment(predictor(network, 0, 0)), cold)
    assert not np.array_equal(segment(warm, key="other", seed=1), cold)


def test_a_further_click_costs_one_step(network):
    calls = {"encode": 0, "decode": 0}
    counted = predictor(network)
    for name in calls:
        method = getattr(network, name)

        def count_calls(*args, name=name, method=method, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        setattr(network, name, count_calls)
    for count in (1, 2, 3, 3, 4):
        segment(counted, count)
    assert calls == {"encode": 1, "decode": 4}


def test_other_weights_are_other_answers(network):
    """Two predictors that share their caches do not mix up their weights."""
    other = build_untrained(network.config, seed=1)
    first = predictor(network, network_id="first")
    second = FastSAM3DPredictor(
        other, "second", torch.device("cpu"), first._embeddings, first._masks
    )
    expected = segment(predictor(other, network_id="second"))
    segment(first)
    np.testing.assert_array_equal(segment(second), expected)


def test_threads_do_not_disturb_each_other(network):
    expected = {(n, s): segment(predictor(network), n, seed=s) for n in (1, 4) for s in (0, 1)}
    shared = predictor(network)
    jobs = list(expected) * 6

    def run(job):
        count, seed = job
        return segment(shared, count, key=seed, seed=seed)

    with ThreadPoolExecutor(6) as pool:
        for job, answer in zip(jobs, pool.map(run, jobs), strict=True):
            np.testing.assert_array_equal(answer, expected[job])


def test_lower_precision_is_a_predictors_network(network):
    """What `choose` gives is served as it is, with masks of its own."""
    low = CapturedNetwork(lowered(network, "int8"))
    ours, expected = segment(predictor(low)), segment(predictor(network))
    assert not np.array_equal(ours, expected)
    np.testing.assert_allclose(ours, expected, atol=0.1 * np.abs(expected).max())
