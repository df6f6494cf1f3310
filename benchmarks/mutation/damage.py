"""Files damaged at random: bytes, texts, JSON and torch files, pictures, and other things in a file's place."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    3,
    2**31,
    2**63,
    0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "3",
    [],
    [1],
    {},
    {"a": 1},
)


def replace_file(path: Path, data: bytes) -> None:
    """Give a file other content, and leave other names of it (hard links) as they are."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def damage_bytes(rng: random.Random, path: Path) -> str:
    """Cut, flip, overwrite or lengthen a file; return how."""
    data = path.read_bytes()
    at = rng.randrange(max(1, len(data)))
    how = rng.choice(
        ("emptied", "cut", "cut by one", "one bit", "several bits", "zeros", "noise", "longer", "other file")
    )
    changed = bytearray(data)
    if how == "emptied":
        changed = bytearray()
    elif how == "cut":
        del changed[at:]
    elif how == "cut by one":
        del changed[-1:]
    elif how in ("one bit", "several bits") and data:
        for _ in range(1 if how == "one bit" else 20):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        end = min(len(data), at + 64)
        changed[at:end] = bytes(end - at)
    elif how == "noise":
        changed[at : at + 64] = rng.randbytes(64)
    elif how == "longer":
        changed += rng.randbytes(50)
    elif how == "other file":
        changed = bytearray(Path(__file__).read_bytes())
    replace_file(path, bytes(changed))
    return f"{how} at {at} of {len(data)}"


def damage_text(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes of a text cut, flipped, of another encoding, or something else altogether."""
    how, at = rng.randrange(8), rng.randrange(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if how == 2:
        return data[:at] + rng.choice((b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x85", b"\xe2\x80\xa8")) + data[at:]
    if how == 3:
        return data.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if how == 4:
        return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\n\x0c")))
    if how == 5:
        return rng.choice((b"", b"\n", b"#", b"\0" * 100, b"[" * 3000, b"{" * 3000, b"- " * 3000, b"a: " * 99, b"x"))
    return b"a: 1\n" * 300_000 if how == 6 else rng.randbytes(200)


def damage_lines(rng: random.Random, path: Path) -> str:
    """Drop, repeat, exchange or change lines of a list; return how."""
    lines = path.read_text(encoding="utf-8").split("\n")
    at, how = (
        rng.randrange(len(lines)),
        rng.choice(("dropped", "repeated", "words", "no words", "number", "blank", "path")),
    )
    words = lines[at].split(" ")
    lines[at : at + 1] = {
        "dropped": [],
        "repeated": [lines[at], lines[at]],
        "words": [" ".join(rng.sample(words, len(words)))],
        "no words": [" ".join(words[:-1])],
        "number": [
            " ".join([*words[:-1], rng.choice(("-1", "1e9", "99999999999999999999", "nan", "x", "1.5", "\u0663"))])
        ],
        "blank": ["", lines[at], "   "],
        "path": [
            rng.choice(
                ("../../etc/passwd 1", "/dev/zero 1 1", "a\0b 1 1", "\udcff".encode("utf-8", "replace").decode())
            )
        ],
    }[how]
    replace_file(path, "\n".join(lines).encode())
    return f"line {at} {how}"


def instead_of_file(rng: random.Random, path: Path) -> str:
    """Put something else in the place of a file that is there; return what."""
    how = rng.choice(("folder", "pipe", "link to itself", "broken link", "absent", "device"))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link to itself":
        path.symlink_to(path)
    elif how == "broken link":
        path.symlink_to(path.parent / "absent")
    elif how == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full")))
    return how


def instead_of_folder(rng: random.Random, path: Path) -> str:
    """Take a folder away, or put something else in its place; return what."""
    how = rng.choice(("absent", "empty", "file", "link to itself", "link to its parent", "pipe", "another name"))
    if how == "another name":
        path.rename(path.with_name(f"{path.name}-old"))
        return how
    shutil.rmtree(path)
    if how == "empty":
        path.mkdir()
    elif how == "file":
        path.write_text("x", encoding="utf-8")
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "absent":
        path.symlink_to(path if how == "link to itself" else path.parent)
    return how


def damage_value(rng: random.Random, value: Any, depth: int = 0) -> tuple[Any, str]:
    """Return a nested value with one entry removed, added or of another type, and which. Tensors change their type or
    shape, never their numbers alone: those would be another model.
    """
    if isinstance(value, (dict, list)) and value and (depth == 0 or rng.random() < 0.75):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.25:
            del copy[key]
            return copy, f".{key} removed"
        copy[key], what = damage_value(rng, value[key], depth + 1)
        return copy, f".{key}{what}"
    if isinstance(value, torch.Tensor):
        changes: dict[str, Callable[[], Any]] = {
            "float64": value.double,
            "whole": value.long,
            "flat": lambda: value.reshape(-1)[:-1],
            "deeper": lambda: value[None],
            "sparse": value.to_sparse,
            "complex": lambda: value.to(torch.complex64),
            "a number": lambda: 3,
            "nan": lambda: torch.full_like(value, math.nan) if value.is_floating_point() else value,
        }
        how = rng.choice(sorted(changes))
        return changes[how](), f" tensor {how}"
    changed = rng.choice([entry for entry in VALUES if type(entry) is not type(value) or entry != value])
    return changed, f" = {changed!r}"


def damage_json(rng: random.Random, path: Path) -> str:
    """Change the values of a JSON file; return how."""
    value, what = damage_value(rng, json.loads(path.read_text(encoding="utf-8")))
    replace_file(path, json.dumps(value).encode())
    return what


def damage_torch(rng: random.Random, path: Path) -> str:
    """Change the values of a file of torch.save, whose checksums are right again; return how."""
    value, what = damage_value(rng, torch.load(path, map_location="cpu", weights_only=True))
    buffer = io.BytesIO()
    torch.save(value, buffer)
    replace_file(path, buffer.getvalue())
    return what


def other_picture(rng: random.Random, path: Path) -> str:
    """Put a picture of another form in the place of one; return which."""
    buffer, how = (
        io.BytesIO(),
        rng.choice(("grey", "cmyk", "1x1", "wide", "16 bit", "palette", "moving", "text", "bomb")),
    )
    if how == "text":
        buffer.write(b"no picture")
    elif how == "bomb":
        # The header of a picture of 60,000 x 60,000 pixels, and nothing behind it.
        Image.new("1", (60_000, 60_000)).save(buffer, "PNG", compress_level=9)
    elif how == "moving":
        frames = [Image.new("P", (16, 32), number) for number in range(3)]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    else:
        modes = {"grey": "L", "cmyk": "CMYK", "16 bit": "I;16", "palette": "P"}
        size = {"1x1": (1, 1), "wide": (500, 1)}.get(how, (16, 32))
        picture = Image.new(modes.get(how, "RGB"), size)
        picture.save(buffer, "PNG" if how in ("16 bit", "palette") else "JPEG")
    replace_file(path, buffer.getvalue())
    return how
