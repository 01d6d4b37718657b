"""The error that this package raises on purpose; anything else that escapes is a defect."""


class MissingResultsError(ValueError):
    """A figure or table cannot be made of the results there are; the message says in a sentence which or why."""
