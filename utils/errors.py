"""Errors that a user can act on, and the exit code of every script."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(ValueError):
    """Wrong input. The message is one sentence that names the culprit and the remedy; scripts exit with code 2."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Return `did you mean 'a' or 'b'?` for the names closest to `name`, or the list of valid names."""
    names = sorted(str(entry) for entry in valid)
    close = difflib.get_close_matches(str(name), names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(entry) for entry in close) + "?"
    return "valid names: " + ", ".join(names)


def shortened(names: Sequence[str], limit: int) -> str:
    """Return `a, b and 3 more`: at most `limit` names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 letters, or its type when there is none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def run_script(main: Callable[[], int | None]) -> None:
    """Run the `main` of a script and exit: 0 or its return value, 2 for a `UserError`, 130 when interrupted.

    A `UserError` is printed as one line; every other exception is a defect of ours and keeps its traceback.
    A reader that closes the pipe early (`| head`) is not an error.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
