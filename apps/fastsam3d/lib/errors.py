"""Errors whose messages are shown to users.

Each message names what is wrong, the value, and the cure. A command catches :class:`AppError` and
prints the message; the server's routes map the subclasses to HTTP status codes.
"""


class AppError(Exception):
    """Base of all errors whose message a user sees unchanged."""


class InputError(AppError, ValueError):
    """A request, an image or a stored file cannot be used."""


class NotFoundError(InputError):
    """The requested model, image, session or trainer does not exist."""


class StoppedError(InputError):
    """A user stopped a training, which can be resumed."""

    MESSAGE = "the training was stopped; train again to go on where it was"

    def __init__(self) -> None:
        super().__init__(self.MESSAGE)


class ConflictError(InputError):
    """Another job that is running, or newer data, prevents the request."""


class BusyError(AppError):
    """The server computes as much as it can; the same request may succeed in some seconds."""


class SavingError(AppError, RuntimeError):
    """A label could not be saved to its destination; the message says where it was kept."""


class ReadOnlyError(AppError):
    """The folder that the request wants to change may not be written by the server."""


class OptionError(AppError, ValueError):
    """A ``--conf`` option does not exist, or its value cannot be used."""


class WeightsError(AppError):
    """The requested weights are not available or cannot be used."""
