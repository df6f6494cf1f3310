"""Errors that a user can act on, and the exit code of every script."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.streams import flush_or_forget, guarded_streams, say


class UserError(ValueError):
    """Wrong input. The message is one sentence that names the culprit and the remedy; scripts exit with code 2."""


class Interrupted(BaseException):
    """A signal ended the work, and what had been done is saved. The message is one line that says how to go on.

    No Exception, like KeyboardInterrupt: nothing that skips a damaged file may take it for the file's error.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


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
    """Run the `main` of a script and exit: 0 or its return value, 2 for an error, 130 when interrupted, 128 + the
    signal's number when it was ended by one that it has answered.

    Every error is one line on standard error. One that the project did not expect is a defect of it: the line asks for
    a report, and the traceback goes into the log, or into a file of its own where there is none. A reader that closes
    the pipe early (`| head`) is not an error. `~/` at the start of an argument, or of an option's value, is the home
    folder also where the shell leaves it alone (`--run=~/x`).
    """
    sys.argv[1:] = map(with_home, sys.argv[1:])
    with guarded_streams():
        code = _exit_code(main)
    sys.exit(code)


def with_home(argument: str) -> str:
    """Return a command line's argument with the home folder in place of a leading `~/`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + home_expanded(value) if value.startswith("~/") else argument


def home_expanded(path: str) -> str:
    """Return a path with the home folder in place of a leading `~`; as it is for a user without one."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's form raises for a user without a folder)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Interrupted as error:
        say(str(error))
        return 128 + error.signal
    except BrokenPipeError:
        return 0
    except Exception as error:
        say(f"error: {_sentence(error)}")
        return 2
    finally:
        # Python would flush them once more after this, and end with a code of its own.
        for stream in (sys.stdout, sys.stderr):
            flush_or_forget(stream)


def _sentence(error: Exception) -> str:
    """Return what to say about an error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; lower eval.batch_size, train.batch_size or data.workers"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        return "no space left where the output goes, a file or the standard output; free some and start again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}; correct the path or its permissions"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a path that was given, on the command line or in a file, holds a NUL; remove it"
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        return f"the encoding {error.encoding} of this session has no {error.object[error.start]!r}; set PYTHONUTF8=1"
    what = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return f"{what}; this is a defect of the program, please report it with {_recorded(error)}"


def _recorded(error: Exception) -> str:
    """Write the traceback into the log, or into a file of its own; return where it is."""
    text = "".join(traceback.format_exception(error))
    logs = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    places = [Path(handler.baseFilename) for handler in logs if handler.baseFilename != os.devnull]
    for place in (*places, Path(tempfile.gettempdir()) / f"anyreid-error-{os.getpid()}.log"):
        with contextlib.suppress(OSError):
            with place.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return f"the traceback in {place}"
    return "the command that you gave"
