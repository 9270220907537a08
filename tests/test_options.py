"""The ``--conf`` options of the app."""

import pytest

from lib.errors import AppError, OptionError
from lib.options import Options


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
        ({"labels": " , "}, "--conf labels ' , ' cannot be used: holds no name"),
        ({"spacing_mm": "nan"}, "--conf spacing_mm 'nan'"),
        ({"volume_cache_mb": "-1"}, "must be positive"),
        ({"device": "tpu"}, "--conf device 'tpu' cannot be used: this machine has cpu"),
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
