"""The networks, teacher and student, and their checkpoints; needs nothing but torch.

* ``fastsam3d.py``: the whole network; ``image_encoder.py``, ``prompt_encoder.py``,
  ``mask_decoder.py``, ``mask_refiner.py`` and ``cell_keys.py``: its parts; ``prepared.py``: what is
  kept of an image
* ``attention.py``, ``sparsity.py``, ``position_bias.py``, ``token_blocks.py``, ``common.py``: the
  operators of the parts; ``torch_private.py``: undocumented functions of PyTorch, with fallbacks
* ``attention_choice.py``: any weights with the dense or the sparse operator
* ``config.py``: the architecture; ``policy.py``: how masks are made and cut; ``threshold.py``
* ``earlier_decoder.py``, ``likeness.py``: an adapted network with the decoder it had before
* ``checkpoint.py``: reading and writing weights, with ``published_file.py``, ``infer_config.py``
  and ``stored_config.py``
"""

from .attention_choice import with_attention
from .checkpoint import CheckpointError, describe_checkpoint, load_checkpoint, save_checkpoint
from .config import CONFIGS, AttentionChoice, FastSAM3DConfig
from .earlier_decoder import Adaptation
from .fastsam3d import FastSAM3D, build_network, build_untrained
from .likeness import ImageLikeness, image_features
from .policy import POLICIES, MaskPolicy
from .prepared import DecoderConstants, PreparedImage
from .threshold import mask_threshold

__all__ = [
    "CONFIGS",
    "POLICIES",
    "Adaptation",
    "AttentionChoice",
    "CheckpointError",
    "DecoderConstants",
    "FastSAM3D",
    "FastSAM3DConfig",
    "ImageLikeness",
    "MaskPolicy",
    "PreparedImage",
    "build_network",
    "build_untrained",
    "describe_checkpoint",
    "image_features",
    "load_checkpoint",
    "mask_threshold",
    "save_checkpoint",
    "with_attention",
]
