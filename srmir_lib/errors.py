"""Files that are never half written: atomic writes, hashes, JSON, datasets, and one kind of error.

Everything the notebooks save goes through this module, so a killed run leaves either the old artefact or the new one.
"""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what, where (file, row, parameter), and the fix."""
