"""Any weights with the dense or the sparse attention operator, as the paper compares them."""

from __future__ import annotations

import torch

from .config import AttentionChoice
from .fastsam3d import FastSAM3D


def with_attention(network: FastSAM3D, choice: AttentionChoice) -> FastSAM3D:
    """Return a network with another attention operator that shares the weights of `network`.

    Networks of both operators have the same tensors. The network itself is returned if it has the
    operator already. The result is in eval mode.
    """
    config = network.config.with_attention(choice)
    if config == network.config:
        return network
    with torch.device("meta"):
        other = FastSAM3D(config, network.policy)
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval()
