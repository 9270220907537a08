"""Which thread uses a network, and who waits while a predictor is made."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lib.cache import ByteCache, array_nbytes
from lib.infers import Caches, FastSAM3DInfer
from lib.infers import fastsam3d as fastsam3d_module
from lib.infers.cuda_graphs import CapturedNetwork
from lib.infers.mask_state import RoiPrompt
from lib.infers.precision import Precision
from lib.infers.predictor import FastSAM3DPredictor
from lib.networks import FastSAM3DConfig, build_untrained
from lib.weights.files import Weights

CPU = torch.device("cpu")
SECONDS = 60  # longest wait of a test; nothing waits that long unless it is broken


@pytest.fixture(scope="module")
def network():
    config = FastSAM3DConfig(roi_size=64, width=24, depth=2, num_heads=3, out_channels=48)
    return build_untrained(config, seed=0)


@pytest.fixture
def caches():
    return Caches(*(ByteCache(10**8, array_nbytes) for _ in range(4)))


def test_a_network_is_used_in_the_thread_of_the_queue_only(network, caches, monkeypatch):
    """Graphs are captured there, too: capturing is a part of the first calls."""
    threads = set()

    def watched(method):
        def call(self, *arguments, **options):
            threads.add(threading.current_thread().name)
            return method(self, *arguments, **options)

        return call

    for name in ("encode", "prepare", "decode"):
        monkeypatch.setattr(CapturedNetwork, name, watched(getattr(CapturedNetwork, name)))
    captured = CapturedNetwork(network)
    predictor = FastSAM3DPredictor(captured, "a", CPU, caches.embeddings, caches.states)

    def segment(seed):
        image = np.random.default_rng(seed).standard_normal((64, 64, 64), dtype=np.float32)
        embedding = predictor.encode(seed, lambda: image)
        predictor.replay(embedding, [RoiPrompt("point", ((30.0, 20.0, 10.0 + seed),), True)])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(segment, range(3)))
    assert threads == {"queue-cpu_0"}


class SlowChoice:
    """Stands for `choose`: takes until it is released, for the first network only."""

    def __init__(self, slow):
        self.calls, self._slow = [], slow
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, networks, device):
        (network,) = networks
        self.calls.append(network)
        if network is self._slow:
            self.has_begun.set()
            assert self.may_end.wait(SECONDS)
        return networks, Precision("float32", "a test")


def test_only_requests_for_a_predictor_wait_for_its_precision(network, caches, monkeypatch):
    config = network.config
    other = build_untrained(config, seed=1)
    weights, others = (Weights(n, name, "file") for n, name in ((network, "a"), (other, "b")))
    task = FastSAM3DInfer(weights, ["liver"], caches, device="cpu")
    choice = SlowChoice(slow=network)
    monkeypatch.setattr(fastsam3d_module, "choose", choice)
    with ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(task._predictor, weights, "cpu") for _ in range(2)]
            assert choice.has_begun.wait(SECONDS)
            assert pool.submit(task.info).result(SECONDS)["precision"] == {}
            quick = pool.submit(task._predictor, others, "cpu")
            assert quick.result(SECONDS).precision.reason == "a test"
            assert not any(each.done() for each in waiting)
        finally:
            choice.may_end.set()
        first, second = (each.result(SECONDS) for each in waiting)
    assert first is second
    assert choice.calls == [network, other], "each choice is made once"
