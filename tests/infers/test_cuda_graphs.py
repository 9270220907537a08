"""Calls that are replayed from a graph return what the calls themselves return."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib.infers import cuda_graphs
from lib.infers.cuda_graphs import CapturedFunction, CapturedNetwork
from lib.networks import CONFIGS, PreparedImage, build_untrained

TINY = replace(
    CONFIGS["fastsam3d"],
    roi_size=64,
    width=48,
    depth=3,
    num_heads=3,
    out_channels=48,
    decoder_mlp_width=64,
    iou_head_width=32,
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.mark.parametrize(("detail", "keys"), [(0, 0), (4, 0), (4, 3)])
def test_prepared_image_is_restored_from_its_tensors(detail, keys):
    network = build_untrained(replace(TINY, detail_channels=detail, key_channels=keys), seed=0)
    with torch.inference_mode():
        prepared = network.prepare(network.encode(torch.randn(1, 1, 64, 64, 64)))
    again = PreparedImage.of(prepared.tensors())
    assert len(prepared.tensors()) == 7 + bool(detail) + bool(keys)
    assert (again.detail is None, again.keys is None) == (not detail, not keys)
    for a, b in zip(again.tensors(), prepared.tensors(), strict=True):
        assert a is b


@pytest.mark.parametrize(("detail", "keys"), [(0, 0), (4, 0), (4, 3)])
def test_replayed_network_equals_the_network(device, detail, keys):
    """With several images and numbers of clicks, the first number once more at the end."""
    config = replace(TINY, detail_channels=detail, key_channels=keys)
    network = build_untrained(config, seed=0).to(device)
    captured = CapturedNetwork(network)
    generator = torch.Generator().manual_seed(0)
    results = []
    for clicks in (1, 3, 1):
        volume = torch.randn(1, 1, 64, 64, 64, generator=generator).to(device)
        points = 60 * torch.rand(1, clicks, 3, generator=generator).to(device)
        labels = torch.ones(1, clicks, dtype=torch.long, device=device)
        mask = torch.randn(1, 1, 16, 16, 16, generator=generator).to(device)
        with torch.inference_mode():
            expected = network.decode(network.encode(volume), points, labels, mask)
        prepared = captured.prepare(captured.encode(volume))
        results.append((captured.decode(prepared, points, labels, mask), expected))
    for outputs, expected in results:
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_prepared_images_share_the_constants_of_the_network():
    captured = CapturedNetwork(build_untrained(TINY, seed=0))
    first, second = (captured.prepare(torch.randn(1, 48, 4, 4, 4)) for _ in range(2))
    assert first.constants is second.constants


@pytest.mark.gpu
def test_the_number_of_graphs_is_bounded():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    doubled = CapturedFunction(lambda x: (2 * x,), limit=2)
    for length in (1, 2, 3, 1):
        x = torch.arange(float(length), device="cuda")
        assert torch.equal(doubled(x)[0], 2 * x)
    assert len(doubled._graphs) == 2


class FakeCuda:
    """Stands for the parts of `torch.cuda` that capture; keeps the options of each capture."""

    def __init__(self, monkeypatch):
        self.captures = []
        for name, value in {
            "Stream": lambda device: SimpleNamespace(device=device, wait_stream=lambda other: None),
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "stream": lambda stream: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self.capture,
            "graph_pool_handle": lambda: object(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def capture(self, graph, **options):
        self.captures.append(options)
        return nullcontext()


def test_graphs_share_a_pool_and_other_threads_may_use_the_device(monkeypatch):
    """The default mode ends a capture if another thread allocates memory meanwhile."""
    cuda_graphs.memory_pool.cache_clear()
    fake, x = FakeCuda(monkeypatch), torch.ones(2, 3)
    for scale in (2, 3):
        graph = cuda_graphs._Graph(lambda x, scale=scale: (scale * x,), (x,))
        assert torch.equal(graph((x,))[0], scale * x)
    first, second = fake.captures
    assert first["capture_error_mode"] == second["capture_error_mode"] == "thread_local"
    assert first["pool"] is second["pool"]
    assert first["stream"].device == x.device
    cuda_graphs.memory_pool.cache_clear()


@pytest.mark.gpu
def test_graphs_in_one_pool_do_not_disturb_each_other():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    squared = CapturedFunction(lambda x: ((x + 1) * (x + 1),))
    rooted = CapturedFunction(lambda x: ((x * x + 1).sqrt(),))
    for value in (1.0, 2.0, 3.0):
        x = torch.full((5, 7), value, device="cuda")
        square, root = squared(x)[0], rooted(x)[0]
        torch.testing.assert_close(square, (x + 1) ** 2)
        torch.testing.assert_close(root, (x * x + 1).sqrt())
