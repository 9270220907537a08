"""Undocumented functions of PyTorch are used where they exist, and replaced where they do not."""

import os
import subprocess
import sys

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


def test_amx_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=answer: answer)
        assert torch_private.has_amx() is answer
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert torch_private.has_amx() is False


@pytest.mark.parametrize(
    ("amx", "avx512", "answer"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_bfloat16_is_multiplied_with_amx_or_avx512(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, answer: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert torch_private.multiplies_bfloat16() is answer


@pytest.mark.parametrize(
    ("vnni", "avx2", "levels"), [(True, True, 127), (False, True, 64), (False, False, 0)]
)
def test_the_levels_of_8_bit_products_follow_the_hardware(
    monkeypatch: pytest.MonkeyPatch, vnni: bool, avx2: bool, levels: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    assert torch_private.int8_levels() == levels
    monkeypatch.delattr(torch, "_int_mm")
    assert torch_private.int8_levels() == 0


PRODUCT = """
import torch
a = torch.full((64, 768), 127, dtype=torch.int8)
for level in (64, 127):
    b = torch.full((768, 32), level, dtype=torch.int8)
    print(int(torch._int_mm(a, b)[0, 0]) == 127 * level * 768)
"""


@pytest.mark.skipif(not torch_private.int8_levels(), reason="this CPU has no AVX2")
def test_64_levels_are_exact_with_avx2_alone() -> None:
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-c", PRODUCT]
    run = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_convolution_without_onednn_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    layer = Conv3d(3, 2, kernel_size=3, padding=1)
    expected = layer(x)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
        monkeypatch.delattr(torch, "mkldnn_convolution")
        assert torch_private.onednn_convolution() is None
        torch.testing.assert_close(layer(x), expected)
