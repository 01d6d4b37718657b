"""The two errors that a user may see; anything else that escapes is a defect."""


class FlatlabError(Exception):
    """A run that cannot go on. The message is one sentence for the user; the command exits with code 1."""

    exit_code = 1


class UsageError(FlatlabError):
    """A request that cannot be carried out as asked (a wrong flag, field or file); exits with code 2."""

    exit_code = 2
