"""The weights of a model: which file, which published version, and which is served now.

* ``files.py``: finds, downloads, reads and writes a file of weights
* ``versions.py``: the versions that were trained on this site, with rollback
* ``served.py``: the weights that a model is served with, which change when a version is published
"""

from .files import Weights, choose_weights, file_sha256, file_weights, find_weights, save_weights
from .served import ServedWeights
from .versions import StudentVersions, describe_versions

__all__ = [
    "StudentVersions",
    "ServedWeights",
    "Weights",
    "choose_weights",
    "file_sha256",
    "file_weights",
    "find_weights",
    "describe_versions",
    "save_weights",
]
