"""Files that are either whole or absent, and fingerprints of what they hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a file system answers when there is no room."""

REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What a file system answers to a name or place that the user has to change."""


LEFTOVER_SECONDS = 3600.0
"""An unfinished file that was last touched so long ago has no writer any more."""


@contextlib.contextmanager
def user_errors_of_writing(target: Path) -> Iterator[None]:
    """Turn what a file system answers to a place that the user has to change into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSALS:
            raise UserError(f"cannot write {target}: {error.strerror}; what was there before is unchanged") from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    An existing file survives every failure. Raises UserError when the disk is full or the folder not writable.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        with user_errors_of_writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?")
"""Names that `atomic_path` and `files_together` use while they write."""


def is_leftover(name: str) -> bool:
    """Return whether a name is that of a file or folder that is being written, or was when its process was killed."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: str | os.PathLike[str], seconds: float) -> None:
    """Remove what killed processes left in a folder: unfinished files that nobody has touched for so many seconds.

    A folder that is not there, and a file that may not be removed, is left alone.
    """
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            with contextlib.suppress(OSError):
                if is_leftover(path.name) and time.time() - path.lstat().st_mtime >= seconds:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def files_together(folder: str | os.PathLike[str], last: str, optional: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder; on success every file in it replaces its namesake in `folder`, which is made if need be.

    `last` goes first from `folder` and comes last into it: where it is, the others are of the same making. optional:
    names that are removed where they are not written. On failure `folder` is unchanged. Raises UserError when the disk
    is full or the folder not writable.
    """
    target = Path(folder)
    with user_errors_of_writing(target):
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target, LEFTOVER_SECONDS)
        staging = Path(tempfile.mkdtemp(prefix=".together.", suffix=".tmp", dir=target))
    try:
        yield staging
        with user_errors_of_writing(target):
            written = sorted(staging.iterdir(), key=lambda path: path.name == last)
            for name in (last, *optional):
                (target / name).unlink(missing_ok=True)
            for path in written:
                path.replace(target / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        # A file name that is not UTF-8 is written as an escape, which JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_folder(folder: Path, what: str) -> None:
    """Raise UserError when a file stands where a folder, or one that holds it, would be. what: names it."""
    place = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())
    if not place.is_dir():
        raise UserError(f"{what}: {place} is a file, not a folder; choose another place")


def ordinary(path: str | os.PathLike[str]) -> Path:
    """Return a path that is about to be read.

    Raises OSError for a pipe, which would be waited for, and for a device, which never ends.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not an ordinary file", os.fspath(path))
    return Path(path)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with its links followed; a link that leads to itself is left as it is."""
    return Path(os.path.realpath(path))


class RepeatedKeyError(ValueError):
    """A key stands twice in one object of a JSON text. The message names it."""


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises RepeatedKeyError where Python would keep the last of two values and forget the other, ValueError for what is
    no JSON, RecursionError for brackets that are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RepeatedKeyError(f"the key {key[:60]!r} stands twice in one object")
    return found


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file. Raises UserError that names the file and `what` it should have been."""
    try:
        return parse_json(ordinary(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path} ({what}); restore it or correct the path") from error
    except RecursionError as error:
        raise UserError(f"{path} ({what}) is not usable: its brackets are nested too deeply") from error
    except RepeatedKeyError as error:
        raise UserError(f"{path} ({what}): {error}; remove one of them") from error
    except ValueError as error:
        raise UserError(f"{path} ({what}) is not valid JSON: {error}; it may be truncated, copy it again") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({what}): {error.strerror}; correct the path or its permissions"
        ) from error


CHECKSUM = "checksum"


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON document but for its entry CHECKSUM, which holds it in files that are believed."""
    plain = {name: value for name, value in content.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("ascii")).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with ordinary(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a 16-digit hex digest of the JSON form of `parts`, in order."""
    digest = hashlib.sha256()
    for part in parts:
        # JSON can hold half of a surrogate pair, UTF-8 cannot.
        digest.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]
