"""The predictor's caches never change a result, and save the work that they should save."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lib.cache import ByteCache, array_nbytes
from lib.infers.corrections import correct
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.device_queue import DeviceQueue
from lib.infers.mask_state import MaskState, RoiPrompt
from lib.infers.precision import lowered
from lib.infers.predictor import FastSAM3DPredictor
from lib.infers.random_walker import CELLS, make_guide, random_walk
from lib.infers.stopwatch import Stopwatch
from lib.networks import FastSAM3DConfig, MaskPolicy, build_untrained, mask_threshold

POINTS_ROI = np.array([[30.0, 20, 10], [12, 50, 33], [5, 6, 60], [40, 41, 42]])
LABELS = np.array([1, 1, 0, 0])
PROMPTS = [
    RoiPrompt("point", (tuple(point),), bool(label))
    for point, label in zip(POINTS_ROI.tolist(), LABELS, strict=True)
]


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
    return predictor.replay(embedding, PROMPTS[:count])


def low_res_of(predictor, *arguments, **options):
    return segment(predictor, *arguments, **options).low_res


def test_replay_equals_its_definition(network):
    """Each click is decoded with the low-resolution mask of the ones before it, at first zeros."""
    low_res = torch.zeros(1, 1, 16, 16, 16)
    with torch.no_grad():
        embedding = network.encode(torch.from_numpy(roi_image())[None, None])
        for count in range(1, 5):
            first = 0 if network.policy.click_history == "all" else count - 1
            points = torch.from_numpy(POINTS_ROI[None, first:count]).float()
            labels = torch.from_numpy(LABELS[None, first:count])
            low_res, _ = network.decode(embedding, points, labels, low_res)
    np.testing.assert_array_equal(low_res_of(predictor(network)), low_res[0, 0].numpy())


def test_masks_of_published_networks_are_their_logits_above_zero(network):
    segmenter = predictor(network)
    state = segment(segmenter)
    np.testing.assert_array_equal(state.margins, state.low_res)
    assert state.threshold == 0


def test_the_random_walker_is_used_if_the_weights_ask_for_it(network):
    network.policy = dataclasses.replace(
        network.policy, mask_threshold="expected_dice", mask_edges="image"
    )
    segmenter, stages = predictor(network), Stopwatch()
    embedding = segmenter.encode("roi", roi_image)
    np.testing.assert_array_equal(embedding.guide, make_guide(roi_image()))
    assert embedding.nbytes == embedding.prepared.nbytes + embedding.guide.nbytes
    state = segmenter.replay(embedding, PROMPTS[:1], stages=stages)
    # the thread of the queue may have another number of workers, and so round otherwise
    walk = (random_walk, state.low_res, embedding.guide, POINTS_ROI[:1], LABELS[:1], 64)
    expected = DeviceQueue.on(torch.device("cpu")).run(Stopwatch(), "Outline", *walk)
    threshold = float(mask_threshold(torch.from_numpy(expected)[None], "expected_dice"))
    np.testing.assert_array_equal(state.margins, expected - np.float32(threshold))
    assert state.threshold == threshold
    assert set(stages) == {"Wait", "Decode", "Outline", "Correct"}


def test_later_clicks_correct_the_mask_before_them(network):
    """The margins are those of `correct`, and a click that the mask satisfies changes nothing."""
    network.policy = dataclasses.replace(network.policy, mask_edges="image")
    segmenter = predictor(network)
    embedding = segmenter.encode("roi", roi_image)
    first = segmenter.replay(embedding, PROMPTS[:1])
    assert (first.margins > 0).any()
    inside = (np.argwhere(first.margins > 1)[0] + 0.5) * 64 / CELLS - 0.5
    satisfied = RoiPrompt("point", (tuple(inside),), True)
    stages = Stopwatch()
    same = segmenter.replay(embedding, [*PROMPTS[:1], satisfied], stages=stages)
    assert same is first and stages == {}
    opposed = RoiPrompt("point", (tuple(inside),), False)
    second = segmenter.replay(embedding, [*PROMPTS[:1], opposed])
    points_roi, labels = np.array([POINTS_ROI[0], inside]), np.array([1, 0])
    walk = (random_walk, second.low_res, embedding.guide, points_roi, labels, 64)
    answer = DeviceQueue.on(torch.device("cpu")).run(Stopwatch(), "Outline", *walk)
    expected = correct(first.margins, answer, inside, 0, 64)
    # a click on the background never adds
    np.testing.assert_array_equal(second.margins, np.minimum(expected, first.margins))
    assert (expected > first.margins).any()


def test_random_walks_run_one_at_a_time(network, monkeypatch):
    """Two walks at once would share the same cores; without a queue they meet at the barrier."""
    network.policy = dataclasses.replace(network.policy, mask_edges="image")
    segmenter = predictor(network)
    segmenter.encode("roi", roi_image)
    meeting, met = threading.Barrier(2), []

    def walk(logits, *_):
        try:
            meeting.wait(timeout=0.3)
        except threading.BrokenBarrierError:
            met.append(False)
        else:
            met.append(True)
        return logits

    monkeypatch.setattr("lib.infers.predictor.random_walk", walk)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda count: segment(segmenter, count), (1, 1)))
    assert met == [False] * 2


def test_results_do_not_depend_on_earlier_requests(network):
    cold = low_res_of(predictor(network))
    warm = predictor(network)
    for count in (1, 3, 4, 2, 4):
        segment(warm, count)
        segment(warm, count, key="other", seed=1)
    np.testing.assert_array_equal(low_res_of(warm), cold)
    np.testing.assert_array_equal(low_res_of(predictor(network, 0, 0)), cold)
    assert not np.array_equal(low_res_of(warm, key="other", seed=1), cold)


def test_a_further_click_costs_one_decoder_step(network):
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


def test_other_weights_give_other_masks(network):
    """Two predictors that share their caches do not mix up their masks."""
    other = build_untrained(network.config, seed=1)
    first = predictor(network, network_id="first")
    second = FastSAM3DPredictor(
        other, "second", torch.device("cpu"), first._embeddings, first._states
    )
    expected = low_res_of(predictor(other, network_id="second"))
    segment(first)
    np.testing.assert_array_equal(low_res_of(second), expected)


def test_threads_do_not_interfere(network):
    expected = {(n, s): low_res_of(predictor(network), n, seed=s) for n in (1, 4) for s in (0, 1)}
    shared = predictor(network)
    jobs = list(expected) * 6

    def run(job):
        count, seed = job
        return low_res_of(shared, count, key=seed, seed=seed)

    with ThreadPoolExecutor(6) as pool:
        for job, mask in zip(jobs, pool.map(run, jobs), strict=True):
            np.testing.assert_array_equal(mask, expected[job])


def test_a_network_of_lower_precision_is_served_as_it_is(network):
    """Its masks differ slightly from those of float32."""
    low = CapturedNetwork(lowered(network, "int8"))
    low_mask, expected = low_res_of(predictor(low)), low_res_of(predictor(network))
    assert not np.array_equal(low_mask, expected)
    np.testing.assert_allclose(low_mask, expected, atol=0.1 * np.abs(expected).max())


def test_an_earlier_state_costs_nothing(network):
    """Undo is a request with a shorter list."""
    segmenter = predictor(network)
    states = [segment(segmenter, count) for count in (1, 2, 3, 4)]
    for count in (3, 1, 2):
        stages = Stopwatch()
        embedding = segmenter.encode("roi", roi_image)
        assert segmenter.replay(embedding, PROMPTS[:count], stages=stages) is states[count - 1]
        assert stages == {}


def test_the_order_of_prompts_counts(network):
    segmenter = predictor(network)
    embedding = segmenter.encode("roi", roi_image)
    first = segmenter.replay(embedding, PROMPTS[:2]).low_res
    assert not np.array_equal(segmenter.replay(embedding, PROMPTS[1::-1]).low_res, first)


def test_a_given_mask_is_what_the_first_prompt_starts_from(network):
    given = np.random.default_rng(3).standard_normal((16, 16, 16)).astype(np.float32)
    start = MaskState(given, np.full((64, 64, 64), -1, np.float32), 0.0)
    segmenter = predictor(network)
    embedding = segmenter.encode("roi", roi_image)
    assert segmenter.replay(embedding, [], start) is start
    result = segmenter.replay(embedding, PROMPTS[:1], start).low_res
    with torch.no_grad():
        encoded = network.encode(torch.from_numpy(roi_image())[None, None])
        points = torch.from_numpy(POINTS_ROI[None, :1]).float()
        expected, _ = network.decode(
            encoded, points, torch.ones(1, 1, dtype=torch.long), torch.from_numpy(given)[None, None]
        )
    np.testing.assert_array_equal(result, expected[0, 0].numpy())
    assert not np.array_equal(result, segmenter.replay(embedding, PROMPTS[:1]).low_res)
