"""The data of training: studies, ROIs cut from them, batches, and a store on disk.

studies: the studies of a datastore, examined. study_split: which of them train, select and judge.
roi_pool: ROIs with a first click and a target. batches: the ROIs of each update. tensor_store: ROIs
and teacher features on disk.
"""

from .batches import Batches
from .roi_pool import RoiOptions, RoiPool
from .studies import Datastore, ExaminedStudy, Study, examine, find_studies
from .study_split import Split, split
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
