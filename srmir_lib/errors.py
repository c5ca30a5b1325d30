"""One kind of error for what the user can mend, and the same about one row of many."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what, where (file, row, parameter), and the fix."""


class RowError(InputError):
    """An `InputError` about row `row` (from 0) of what a function was given; `text` holds {row}, so that a caller who
    gave it part of a file can say which row of the file that is."""

    def __init__(self, text: str, row: int):
        super().__init__(text.replace("{row}", f"row {row}"))
        self.text, self.row = text, row


@contextmanager
def numbered(rows: Sequence[int]) -> Iterator[None]:
    """While this lasts, row i of a `RowError` is row `rows[i]`: what is asked holds some of a caller's rows."""
    try:
        yield
    except RowError as error:
        raise RowError(error.text, rows[error.row]) from error
