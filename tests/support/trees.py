"""Files written by hand: pictures, lines of text, a pickle that must never be unpickled, a disk that is soon full."""

import contextlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP"}
NOBODY = 65534
_NUMBERS = itertools.count(1)


def plant(root: Path, *names: str) -> Path:
    """Write an 8 x 16 picture under every name below root, each different from every other; return root."""
    for name in names:
        number, suffix = next(_NUMBERS), Path(name).suffix
        # A JPEG file also says its number, for colours may become equal.
        more: dict[str, Any] = {"comment": str(number).encode()} if suffix == ".jpg" else {}
        stream = io.BytesIO()
        Image.new("RGB", (8, 16), (number % 256, number // 256 % 256, number // 65536)).save(
            stream, FORMATS[suffix], **more
        )
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(stream.getvalue())
    return root


def write_lines(path: Path, *lines: str) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@contextlib.contextmanager
def not_mine(folder: Path, mode: int) -> Iterator[None]:
    """Give a folder these rights while the block runs as somebody who is not root.

    The working folder must be its parent or above: what lies above that is not looked through on the way to it.
    """
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    here, before = Path().stat().st_mode, folder.stat().st_mode
    Path().chmod(0o755)
    folder.chmod(mode)
    try:
        if is_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(before)
        Path().chmod(here)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Make a folder that holds `size` at most, for instance 256k; skip the test where that is not allowed."""
    folder.mkdir()
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0 and sys.platform == "linux"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not is_root or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        # Lazily: a log in it may still be open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
