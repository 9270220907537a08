"""The ``--conf`` options of the app, and the rule for the names of devices."""

import pytest
import torch

from lib.errors import AppError, InputError, OptionError
from lib.options import Options, find_device


def test_defaults_and_values():
    assert Options.from_conf({}).labels == ("target", "organ", "lesion", "vessel", "bone")
    options = Options.from_conf(
        {"labels": "liver, spleen,liver", "spacing_mm": "2", "volume_cache_mb": "100"}
    )
    assert options.labels == ("liver", "spleen")
    assert (options.spacing_mm, options.volume_cache_mb) == (2.0, 100)
    assert Options.from_conf({}).volume_cache_mb >= 512
    assert Options.from_conf({}).embedding_cache_mb == 256
    assert issubclass(OptionError, AppError)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"weigths": "x.pth"}, "unknown --conf weigths; there are weights, teacher_weights"),
        ({"labels": " , "}, "--conf labels ' , ' cannot be used: it holds no name"),
        ({"spacing_mm": "nan"}, "--conf spacing_mm 'nan'"),
        ({"attention": "flash"}, "--conf attention 'flash' cannot be used: give stored, dense, "),
        ({"adapt_every": "-1"}, "--conf adapt_every '-1' cannot be used: it is not a whole"),
        ({"model_dir": __file__}, "test_options.py' cannot be used: it is a file; give a folder"),
        ({"zoom": "-1"}, "--conf zoom '-1' cannot be used: give auto, fixed, or the voxel size"),
        ({"allow_open": "yes"}, "--conf allow_open 'yes' cannot be used: give true or false"),
        ({"cors_origins": "*"}, "give addresses such as https://"),
        ({"cors_origins": "https://a.example/path"}, "without a path"),
        (
            {"labels": "liver,bone", "label_codes": "liver=10200004,spleen=78961009"},
            "'spleen' is not among the labels liver, bone; add it with --conf labels",
        ),
        ({"label_versions": "-1"}, "it is not a whole number of 0 and more"),
        ({"max_upload_mb": "0"}, "must be positive"),
        ({"max_waiting_clicks": "33"}, "'33' cannot be used: give a whole number of 1 to 32"),
        ({"api_key": "  "}, "--conf api_key … cannot be used: it is empty"),
        ({"volume_cache_mb": "1.5"}, "it is not a whole number"),
        ({"volume_cache_mb": "-1"}, "must be positive"),
        ({"device": "tpu"}, "--conf device 'tpu' cannot be used: there is no device 'tpu'"),
    ],
)
def test_refusals(conf, message):
    with pytest.raises(OptionError, match=message):
        Options.from_conf(conf)


def test_a_containers_limit_bounds_the_default_cache(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{8 * 2**30}\n")
    monkeypatch.setattr("lib.options.CONTAINER_LIMIT", tmp_path / "memory.max")
    assert Options.from_conf({}).volume_cache_mb == 2048


def test_monai_labels_own_options_pass():
    Options.from_conf({"server_mode": "true"})


def pretend_gpus(monkeypatch, count):
    """Make torch report `count` GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, "", "cpu"),
        (0, "cpu", "cpu"),
        (1, "", "cuda:0"),
        (1, "cpu", "cpu"),
        (1, "cuda", "cuda:0"),
        (1, "cuda:0", "cuda:0"),
        (1, "H100", "cuda:0"),
        (2, "", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "H100:1", "cuda:1"),
    ],
)
def test_every_name_of_a_device_gives_one_name(monkeypatch, gpus, name, device):
    pretend_gpus(monkeypatch, gpus)
    assert find_device(name) == device
    if name:
        assert Options.from_conf({"device": name}).device == name


@pytest.mark.parametrize(
    ("gpus", "name", "choices"),
    [
        (0, "cuda", "cpu"),
        (0, "cuda:0", "cpu"),
        (0, "tpu", "cpu"),
        (1, "cuda:1", "cpu, cuda:0, H100"),
        (2, "cuda:2", "cpu, cuda:0, cuda:1, H100:0, H100:1"),
        (2, "H100", "cpu, cuda:0, cuda:1, H100:0, H100:1"),
    ],
)
def test_the_error_for_an_unknown_device_lists_the_devices(monkeypatch, gpus, name, choices):
    pretend_gpus(monkeypatch, gpus)
    with pytest.raises(InputError) as caught:
        find_device(name)
    message = f"there is no device {name!r} on this server; choose one of {choices}"
    assert str(caught.value) == message
    with pytest.raises(OptionError, match="--conf device .* cannot be used: there is no device"):
        Options.from_conf({"device": name})


@pytest.mark.parametrize(
    ("text", "zoom", "spacing_mm"),
    [("auto", "auto", 1.5), ("fixed", "fixed", 1.5), ("2", "fixed", 2)],
)
def test_zoom(text, zoom, spacing_mm):
    options = Options.from_conf({"zoom": text})
    assert (options.zoom, options.spacing_mm) == (zoom, spacing_mm)


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("FASTSAM3D_API_KEY", "from-the-environment")
    assert Options.from_conf({}).api_key == "from-the-environment"
    options = Options.from_conf({"api_key": "from-the-option"})
    assert options.api_key == "from-the-option"
    assert "from-the" not in repr(options)


def test_the_limits_of_a_site():
    options = Options.from_conf(
        {"cors_origins": "https://a.example,http://b:81", "journal_mb": "0", "allow_open": "True"}
    )
    assert options.cors_origins == ("https://a.example", "http://b:81")
    assert (options.journal_mb, options.allow_open) == (0, True)
    assert Options.from_conf({}).max_upload_mb >= 512


def test_codes_of_labels():
    options = Options.from_conf({"labels": "liver,bone", "label_codes": "liver=10200004"})
    assert options.label_codes == (("liver", "10200004"),)
