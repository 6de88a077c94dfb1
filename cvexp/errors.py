"""The one exception that a user is meant to read. It imports nothing, so that a message never waits for torch."""


class UserError(Exception):
    """Bad input (configuration, data, checkpoint). The message names file, value and fix; it is shown without a trace."""
