"""Training as MONAI Label train tasks: distillation of the teacher, and adaptation to labels.

distillation, adaptation: the tasks; task: what they share, from the studies to publishing. run,
adapt_run: the training in one process; loop: what both share. run_state: the saved state and the
statistics. processes: one process or several. train_options, adapt_options, request_options: the
options. duration: how long it will take. schedule: Eq. 2 and learning rates. stages: the losses of
both stages. updates: one update of the student. losses, clicks: their parts. teacher,
student_start: the teacher's features and copied weights. validation: Dice on held-out ROIs, which
selects. served_judge, verdict: Dice of served masks on other studies, which judges. seen_studies:
the studies that the served version has learned. curves: pictures of a run. data/: studies, ROIs and
batches.
"""

from .adaptation import AdaptationTask
from .distillation import DistillationTask

__all__ = ["AdaptationTask", "DistillationTask"]
