"""The one exception that a user is meant to read. It imports nothing, so that a message never waits for torch."""


class UserError(Exception):
    """Bad input (configuration, data, checkpoint). The message names file, value and fix; it is shown without a trace."""


class NotFiniteError(UserError):
    """A training was stopped because its loss, gradients or weights are NaN or infinite. In a sweep that is a result."""


class Pruned(UserError):  # noqa: N818 - the word that searches have for it
    """A training was stopped because a search expects no more of it.

    Args:
        value: the monitored value it had reached.
    """

    def __init__(self, message: str, value: float) -> None:
        super().__init__(message)
        self.value = value
