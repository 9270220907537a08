"""What the app says when it cannot use what it was given."""


class InputError(ValueError):
    """Something a user sent or stored cannot be used.

    The message is shown to that user as it is, so it names what is wrong, the value, and the cure.
    """


class NotFoundError(InputError):
    """There is no such model, image, session or trainer."""


class ConflictError(InputError):
    """It cannot be done now, because of something else that is being done."""


class SavingError(RuntimeError):
    """A label is not where it should be; the message says where it was kept, and the cure."""
