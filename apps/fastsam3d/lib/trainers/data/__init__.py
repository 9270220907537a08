"""The data of training: studies, ROIs cut from them, batches, and a store on disk.

studies: the studies of a datastore, examined and split for validation. roi_pool: ROIs with a first
click and a target. batches: the ROIs of each update. tensor_store: ROIs and teacher features on
disk.
"""

from .batches import Batches
from .roi_pool import RoiOptions, RoiPool
from .studies import Datastore, ExaminedStudy, Split, Study, examine, find_studies, split
from .tensor_store import TensorStore

__all__ = [
    "Batches",
    "Datastore",
    "ExaminedStudy",
    "RoiOptions",
    "RoiPool",
    "Split",
    "Study",
    "TensorStore",
    "examine",
    "find_studies",
    "split",
]
