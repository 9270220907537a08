"""Undocumented functions of PyTorch are used where they exist, and replaced where they do not."""

import pytest
import torch

from lib.networks import torch_private
from lib.networks.common import Conv3d


def test_int8_matmul_is_exact_with_and_without_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (32, 768), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (768, 16), generator=generator, dtype=torch.int8)
    expected = a.long() @ b.long()
    assert torch.equal(torch_private.int8_matmul(a, b).long(), expected)
    monkeypatch.delattr(torch, "_int_mm")
    product = torch_private.int8_matmul(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), expected)


@pytest.mark.parametrize(
    ("function", "probe"),
    [("has_amx", "_is_amx_tile_supported"), ("has_vnni", "_is_vnni_supported")],
)
def test_cpu_probes(monkeypatch: pytest.MonkeyPatch, function: str, probe: str) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, probe, lambda answer=answer: answer)
        assert getattr(torch_private, function)() is answer
    monkeypatch.delattr(torch.cpu, probe)
    assert getattr(torch_private, function)() is False


def test_vnni_is_no_use_without_an_int8_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.delattr(torch, "_int_mm")
    assert not torch_private.has_vnni()


def test_a_convolution_without_onednn_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    layer = Conv3d(3, 2, kernel_size=3, padding=1)
    expected = layer(x)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
        monkeypatch.delattr(torch, "mkldnn_convolution")
        assert torch_private.onednn_convolution() is None
        torch.testing.assert_close(layer(x), expected)
