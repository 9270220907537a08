"""Training as a MONAI Label train task: distillation of the teacher into the served student.

distillation: the task; it checks a request and publishes the student. run: the training loop.
run_state: the saved state and the statistics. processes: one process or several. train_options: the
options. schedule: Eq. 2 and learning rates. stages: the losses of both stages. updates: one update
of the student. losses, clicks: their parts. teacher, student_start: the teacher's features and
copied weights. validation: Dice on held-out ROIs and the verdict. curves: pictures of a run. data/:
studies, ROIs and batches.
"""

from .distillation import DistillationTask

__all__ = ["DistillationTask"]
