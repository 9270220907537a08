"""A request names existing options, a form of the reply and a device, or gets an error message."""

import json

import pytest
import torch
from monailabel.tasks.infer.basic_infer import BasicInferTask

from lib.cache import ByteCache, array_nbytes
from lib.errors import InputError
from lib.infers import Caches, FastSAM3DInfer
from lib.infers.device_queue import DeviceQueue
from lib.infers.interactions import describe_interactions
from lib.infers.request import (
    OUTPUTS,
    check_options,
    check_reply_form,
    requested_device,
    requested_outputs,
    requested_size,
    shown_box_corners,
)
from lib.networks import FastSAM3DConfig, build_untrained
from lib.weights.files import Weights


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(DeviceQueue, "_queues", {})


def test_options_of_clients_are_accepted():
    check_options({"foreground": [], "roi": [], "result_dtype": "uint8", "label": "liver"})


def test_an_unknown_option_is_named():
    with pytest.raises(InputError, match="unknown option 'mask', 'spacing'; the options are prom"):
        check_options({"spacing": 1, "foreground": [], "mask": True})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"result_extension": ".png"}, "result_extension is '.png'; choose one of .nrrd"),
        ({"result_dtype": "bool"}, "result_dtype is 'bool'; choose one of uint8"),
        ({"result_compress": "yes"}, "result_compress is 'yes'; send true or false"),
    ],
)
def test_an_unknown_form_of_the_reply_is_named(request_, message):
    check_reply_form({key: None for key in request_})
    with pytest.raises(InputError, match=message):
        check_reply_form(request_)


@pytest.mark.parametrize("value", [None, "", "cuda", "cuda:0", "H100:0", ["H100:0", "H100:1"]])
def test_names_of_the_first_gpu(two_gpus, value):
    assert requested_device(value) == "cuda:0"


def test_cuda_means_the_best_device_of_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert requested_device("cuda") == requested_device(None) == "cpu"


@pytest.mark.parametrize("value", ["tpu", "cuda:2", 7, [], {"a": 1}, [["cpu"]]], ids=repr)
def test_values_that_are_no_device(two_gpus, value):
    with pytest.raises(InputError, match="there is no device .* choose one of cpu, cuda:0, cuda:1"):
        requested_device(value)


def test_a_gpu_has_one_queue_whatever_its_name(two_gpus):
    first = DeviceQueue.on(torch.device("cuda"))
    assert first is DeviceQueue.on(torch.device("cuda:0"))
    assert first is not DeviceQueue.on(torch.device("cuda:1"))
    assert first is not DeviceQueue.on(torch.device("cpu"))


@pytest.mark.parametrize(
    ("default", "request_", "device"),
    [
        (None, {}, "cuda:0"),
        ("cuda", {}, "cuda:0"),
        ("cuda:1", {}, "cuda:1"),
        ("cuda:1", {"device": "cuda"}, "cuda:0"),
        ("cuda:1", {"device": "cpu"}, "cpu"),
    ],
)
def test_a_task_runs_on_the_device_of_the_request(two_gpus, monkeypatch, default, request_, device):
    """The base class, which runs the steps, gets the one name of the device."""
    requests = []
    monkeypatch.setattr(
        BasicInferTask, "__call__", lambda self, request, callbacks: requests.append(request)
    )
    network = build_untrained(FastSAM3DConfig(roi_size=64, width=24, depth=2, num_heads=3), seed=0)
    caches = Caches(*(ByteCache(10**6, array_nbytes) for _ in range(4)))
    task = FastSAM3DInfer(Weights(network, "a", "a.safetensors"), ["liver"], caches, device=default)
    task({"image": "scan.nii", **request_})
    assert requests == [{"image": "scan.nii", **request_, "device": device}]


@pytest.mark.parametrize(("request_", "size"), [({}, 0), ({"size": None}, 0), ({"size": -2}, -2)])
def test_sizes(request_, size):
    assert requested_size(request_) == size


@pytest.mark.parametrize("size", [3, 0.5, "1", True, [1]])
def test_an_unknown_size_is_named(size):
    with pytest.raises(InputError, match=r"size is .*; choose one of -2, -1, 0, 1, 2"):
        requested_size({"size": size})


def test_the_shown_box_is_given_by_its_corners():
    box = {"offset_ijk": [1, 2, 3], "size_ijk": [4, 1, 2], "affine_lps": []}
    assert shown_box_corners({"shown_box": box}, (5, 9, 9)).tolist() == [[1, 2, 3], [4, 2, 4]]
    header = {"shown_box": json.dumps(box)}
    assert shown_box_corners(header, (5, 9, 9)).tolist() == [[1, 2, 3], [4, 2, 4]]
    empty = {**box, "size_ijk": [0, 0, 0]}
    for request in ({}, {"shown_box": None}, {"shown_box": empty}):
        assert shown_box_corners(request, (5, 9, 9)).shape == (0, 3)


@pytest.mark.parametrize(
    "box",
    [
        "[" * 100_000,
        "null",
        {"offset_ijk": [1, 2, 3], "size_ijk": [5, 1, 2]},  # ends outside of the image
        {"offset_ijk": [-1, 2, 3], "size_ijk": [4, 1, 2]},
        {"offset_ijk": [1, 2], "size_ijk": [4, 1]},
        {"offset_ijk": [1.5, 2, 3], "size_ijk": [4, 1, 2]},
        {"offset_ijk": [1, 2, 3]},
        {"offset_ijk": [2**63 - 1] * 3, "size_ijk": [1, 1, 1]},
        {"offset_ijk": [1, 1, 1], "size_ijk": [2**80] * 3},
        [1, 2, 3],
        "all",
    ],
)
def test_another_box_is_an_error(box):
    with pytest.raises(InputError, match="shown_box is .*; send the header X-Mask-Box"):
        shown_box_corners({"shown_box": box}, (5, 9, 9))


def test_a_shown_box_is_checked_before_any_work():
    with pytest.raises(InputError, match="shown_box is 'x'"):
        check_reply_form({"shown_box": "x"})


def test_what_info_offers_may_be_asked_for():
    offered = describe_interactions(["organ"], {})["outputs"]
    assert requested_outputs({"outputs": offered}) == OUTPUTS
    assert requested_outputs({"outputs": ["mask"]}) == ()
