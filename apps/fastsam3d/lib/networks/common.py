"""Layers that the image encoder, the prompt encoder and the mask decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .torch_private import onednn_convolution


class LayerNorm3d(nn.Module):
    """Layer norm over the channels of a channel-first volume [B, C, I, J, K]."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.movedim(1, -1)
        normed = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.movedim(-1, 1)


class Conv3d(nn.Conv3d):
    """A convolution that uses oneDNN for a single small volume on a CPU, too.

    PyTorch uses oneDNN only for large inputs, and ignores the last axis when it measures their
    size. Its own convolution, which it uses for smaller ones, is two to five times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        is_plain = x.device.type == "cpu" and x.dtype == torch.float32
        convolve = onednn_convolution()
        if torch.is_grad_enabled() or not is_plain or convolve is None:
            return super().forward(x)
        return convolve(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class MLP(nn.Module):
    """``depth`` linear layers with ReLU between them, for the hypernetworks and the IoU head."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ResidualConv3d(nn.Module):
    """x + conv(gelu(conv(x))) for x [B, C, i, j, k]; it starts close to the identity.

    It has no norm: far from the clicks and outside of the body the channels are nearly constant,
    and the gradients of a norm are unbounded there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = Conv3d(channels, channels, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x)))
