"""The one place that says what a reader of files from elsewhere may raise: anything, and it becomes one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from utils.errors import UserError, first_line

DAMAGE_ERRORS = (Exception,)
"""What readers of pickles, archives, pictures and model folders raise on damaged or crafted bytes. They have no error
of their own: a MemoryError for a length of 2^40, a RecursionError for an object that holds itself, an AttributeError
for a value of another kind. A UserError is caught before these.
"""


@contextlib.contextmanager
def foreign_file(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever the block raises into a UserError `{what} ({reason}); {remedy}`; a UserError passes as it is."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE_ERRORS as error:
        raise UserError(f"{what} ({first_line(error)}); {remedy}") from error
