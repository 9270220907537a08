"""Keys of the cells of an image: cells of one structure have keys that are near to each other.

The published networks do not have them. The keys come from the image alone, before any click, so
they can be learned from all labels of a ROI at once (``training/cells.py``). The mask refiner gets
the likeness of each cell to the clicked cells.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .common import Conv3d, ResidualConv3d
from .config import FastSAM3DConfig

COARSE, FINE = 64, 32
"""COARSE, FINE: channels on cells that are half a token and a quarter of a token wide."""


class CellKeys(nn.Module):
    """Keys [B, K, 4g, 4g, 4g] of an embedding [B, C, g, g, g] and image detail [B, D, 4g, 4g, 4g].

    A U-Net (arXiv 1505.04597) whose lowest level is the image encoder, as in UNETR (arXiv
    2103.10504).
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        detail = config.detail_channels
        self.up = nn.ConvTranspose3d(config.out_channels, COARSE, kernel_size=2, stride=2)
        self.down = Conv3d(detail, COARSE, kernel_size=2, stride=2)
        self.coarse = nn.Sequential(ResidualConv3d(COARSE), ResidualConv3d(COARSE))
        self.up_again = nn.ConvTranspose3d(COARSE, FINE, kernel_size=2, stride=2)
        self.skip = Conv3d(detail, FINE, kernel_size=1)
        self.fine = nn.Sequential(ResidualConv3d(FINE), ResidualConv3d(FINE))
        self.out = Conv3d(FINE, config.key_channels, kernel_size=1)

    def forward(self, embedding: Tensor, detail: Tensor) -> Tensor:
        coarse = self.coarse(self.up(embedding) + self.down(detail))
        fine = self.fine(self.up_again(F.gelu(coarse)) + self.skip(detail))
        return self.out(F.gelu(fine))
