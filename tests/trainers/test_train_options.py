"""Options are parsed from requests, checked, and shown in part in the clients' tables."""

import dataclasses
import json

import pytest
import torch

from lib.errors import InputError
from lib.trainers.train_options import TrainOptions

TABLE = (
    "device",
    "min_gain",
    "accept",
    "resume",
    "max_epochs",
    "train_batch_size",
    "val_split",
    "teacher",
    "start",
)


def test_the_clients_table_shows_the_nine_options_that_users_set() -> None:
    config = TrainOptions.config()
    assert tuple(config) == TABLE
    on_cpu = not torch.cuda.is_available()
    assert (config["max_epochs"], config["train_batch_size"]) == (48, 8 if on_cpu else 16)
    assert config["teacher"] == ["sam_med3d", "none"]
    json.dumps(config)
    assert TrainOptions.from_request(config) == TrainOptions.from_request({}), "sent back unchanged"


def test_requests_accept_all_options() -> None:
    defaults = TrainOptions.from_request({})
    others = {"schedule_unit": "iteration", "start": "served", "teacher": "none", "device": "cpu"}
    for option in dataclasses.fields(TrainOptions):
        default = getattr(defaults, option.name)
        other = not default if isinstance(default, bool) else others.get(option.name, 0.5)
        if isinstance(default, int) and not isinstance(default, bool):
            other = default + 1
        options = TrainOptions.from_request({option.name: other})
        assert getattr(options, option.name) == other


def test_the_defaults_follow_the_paper() -> None:
    options = TrainOptions.from_request({})
    assert options.stage1_epochs == 36 and options.lr == 0.005


def test_defaults_on_a_cpu_are_smaller_and_can_be_changed() -> None:
    options = TrainOptions.from_request({"device": "cpu"})
    size = options.iterations_per_epoch, options.train_batch_size, options.pool_size
    assert size == (4, 8, 128)
    assert TrainOptions.from_request({"device": "cpu", "rois": 7}).pool_size == 7
    fields = {each.name: each.default for each in dataclasses.fields(TrainOptions)}
    assert (fields["iterations_per_epoch"], fields["train_batch_size"]) == (8, 16)


def test_values_as_clients_send_them() -> None:
    request = {"max_epochs": "3", "lr": "1e-3", "amp": "false", "start": ["teacher", "auto"]}
    request |= {"model": "fastsam3d", "client_id": "someone", "gpus": "all", "val_rois": 4.0}
    options = TrainOptions.from_request(request)
    assert (options.max_epochs, options.lr, options.amp) == (3, 0.001, False)
    assert (options.start, options.val_rois) == ("teacher", 4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"epochs": 3}, "unknown option 'epochs'; the options are device, seed, "),
        ({"tracking": "mlflow"}, "unknown option 'tracking'"),
        ({"max_epochs": "many"}, "max_epochs is 'many'; give a whole number"),
        ({"max_epochs": 2.5}, "max_epochs is 2.5; give a whole number"),
        ({"max_epochs": 0}, "max_epochs is 0; it must be at least 1"),
        ({"max_epochs": 10**400}, "max_epochs is 1000.*; give a whole number"),
        ({"threads": 100000}, "threads is 100000; it must be at most 1024"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at most 4294967295"),
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
def test_invalid_options_are_refused(request_: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions.from_request(request_)
