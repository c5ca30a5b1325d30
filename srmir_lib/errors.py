"""The one kind of error that the user can mend."""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what, where (file, row, parameter), and the fix."""
