"""MONAI's engines and handlers around a run: when it validates, what is logged where."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import (
    MLFlowHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
    from_engine,
)
from monailabel.tasks.train.basic_train import Context

from .run import Run
from .schedule import Schedule

KEY_METRIC = "val_mean_dice"


def make_evaluator(context: Context) -> Evaluator:
    run: Run = context.run
    return Evaluator(
        device=context.device,
        val_data_loader=[None],  # one step, in which all is measured
        iteration_update=lambda engine, _: {"dice": run.validate()},
        key_val_metric={KEY_METRIC: Reported("dice")},
        val_handlers=[
            StatsHandler(iteration_log=False),
            TensorBoardStatsHandler(log_dir=context.events_dir, iteration_log=False),
        ],
        decollate=False,
    )


def make_handlers(context: Context) -> list[Any]:
    """Of the trainer, in the order in which they are called."""
    run: Run = context.run
    if not run.is_first:
        return [run]
    loss = from_engine(["loss"], first=True)
    handlers = [
        ValidateSometimes(context.evaluator, run.updates.schedule),
        run,
        StatsHandler(tag_name="train_loss", output_transform=loss, epoch_log=False),
        TensorBoardStatsHandler(
            log_dir=context.events_dir, tag_name="train_loss", output_transform=loss
        ),
    ]
    if context.tracking == "mlflow":
        handlers.append(make_tracker(context))
    return handlers


class ResumableTrainer(SupervisedTrainer):
    """Stops when the run is told to, and does nothing for one that is done but for publishing."""

    def __init__(self, run: Run, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._training = run
        self.state.iteration = run.progress.update
        self.state.epoch = run.progress.update // self.state.epoch_length

    def run(self) -> None:
        if not self._training.is_done:
            with self._training.listening_to_stop():
                super().run()


class Reported:
    """A metric that an iteration's output names itself; it is not averaged over processes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def attach(self, engine: Engine, metric: str) -> None:
        @engine.on(Events.ITERATION_COMPLETED)
        def report(engine: Engine) -> None:
            engine.state.metrics[metric] = engine.state.output[self._name]


class ValidateSometimes(ValidationHandler):
    """Every few epochs, and at the end of each stage."""

    def __init__(self, evaluator: Evaluator, schedule: Schedule) -> None:
        super().__init__(1, evaluator)
        self._schedule = schedule

    def attach(self, engine: Engine) -> None:
        chosen = Events.EPOCH_COMPLETED(
            event_filter=lambda _, epoch: self._schedule.is_validated(epoch)
        )
        engine.add_event_handler(chosen, self)


def make_tracker(context: Context) -> MLFlowHandler:
    """The loss of every update and the numbers of every epoch."""
    run: Run = context.run

    def log_epoch(engine: Engine) -> None:
        row = run.progress.history[-1]
        numbers = {name: x for name, x in row.items() if isinstance(x, int | float)}
        for who in ("student", "teacher"):
            for clicks, value in (row.get(f"dice_{who}") or {}).items():
                numbers[f"dice_{who}_{clicks}"] = value
        handler._log_metrics(numbers, step=engine.state.epoch)

    handler = MLFlowHandler(
        tracking_uri=context.tracking_uri,
        experiment_name=context.tracking_experiment_name,
        run_name=context.tracking_run_name,
        output_transform=from_engine(["loss"], first=True),
        epoch_logger=log_epoch,
        close_on_complete=True,
    )
    return handler
