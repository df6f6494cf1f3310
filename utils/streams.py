"""The standard streams of a script: closed, full, of another encoding, or shown text that would steer a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the direction in which what follows is shown."""


def visible(text: str, keep: str = "") -> str:
    r"""Return `text` with control characters, those that turn the direction, and halves of surrogate pairs escaped
    (`\x1b`, `\n`), so that a name in it can neither steer a terminal nor begin a line. keep: characters left as they
    are.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter in keep or not _steers(letter) else letter.encode("unicode_escape").decode() for letter in text
    )


def _steers(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _TURNING


class _Shown:
    """A text stream that escapes what would steer a terminal; line ends and tabs pass."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write escaped text."""
        return self._stream.write(visible(text, keep="\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block the standard streams exist and take every character, and control characters of standard output
    are escaped.

    A closed stream becomes one that forgets, so that no file opened later takes its number.
    """
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    output = sys.stdout
    sys.stdout = _Shown(output)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before[0] or output, before[1] or sys.stderr


def flush_or_forget(stream: TextIO) -> None:
    """Write out what a stream holds; where that fails, send it and all that follows nowhere."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, stream.fileno())
            os.close(handle)
            stream.flush()


def say(text: str) -> None:
    """Write one line to standard error, escaped; a stream that cannot be written is none of the script's errors."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{visible(text)}\n")
        sys.stderr.flush()
