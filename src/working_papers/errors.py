"""Errors that a user can mend: one sentence that names the thing and the remedy, shown without a traceback."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what, and what would help."""


class UsageError(UserError):
    """The command itself was wrong (an unknown slug, arm or scale); the command line exits with 2."""
