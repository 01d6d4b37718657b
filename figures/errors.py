"""The error that this package raises on purpose; anything else that escapes is a defect."""


class ResultsError(ValueError):
    """A saved result that is not what it should be. The message is one sentence for the user: which file, and where."""
