"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user can put right: one line that says what was wrong, what was expected and what to type.

    The command lines print it on stderr and exit with status 2; a traceback is for defects only.
    """
