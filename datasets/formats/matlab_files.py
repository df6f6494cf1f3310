"""MATLAB files of level 5: numbers, texts and cells, read here; nothing in a file is run and none can end the process.

Libraries that read them in C die of damaged files. Source: MathWorks, MAT-File Format, version 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import ordinary
from utils.foreign import foreign_file

HEADER_BYTES = 128
MOST_BYTES = 1 << 28
"""Of a file and of what is unpacked from it; the largest list of a release has fewer than 2^22."""
DEEPEST = 32

_COMPRESSED, _MATRIX = 15, 14
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""Kinds of element."""

_CELL, _TEXT, _COMPLEX_FLAG = 1, 4, 0x0800
_NUMBER_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""Kinds of matrix; structures, objects, sparse matrices and functions are left aside."""


def load_matlab(path: Path) -> dict[str, Any]:
    """Return the variables of a file by name: arrays of numbers, of texts (one for each row) and, of kind object,
    cells, all in MATLAB's shape. Variables of other kinds are None.

    Raises UserError for a file that cannot be read.
    """
    remedy = "copy it again from the original release"
    with foreign_file(f"cannot read {path} as a MATLAB file", remedy):
        if ordinary(path).stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MB")
        content = path.read_bytes()
        if content[:4] == b"\x89HDF" or content[HEADER_BYTES - 4 : HEADER_BYTES - 2] in (b"\x00\x02", b"\x02\x00"):
            raise UserError(f"{path} is a MATLAB 7.3 file, and level 5 is expected; save it with -v7")
        order = {b"IM": "<", b"MI": ">"}.get(content[HEADER_BYTES - 2 : HEADER_BYTES])
        if order is None:
            raise ValueError("its first 128 bytes are no header of level 5")
        return dict(_Reader(order).variables(content[HEADER_BYTES:]))


_EMPTY = np.zeros((0, 0))
"""What an empty cell holds: a file may have a million of them."""


class _Reader:
    """Reads elements in one byte order. Raises ValueError, struct.error or zlib.error where the bytes break."""

    def __init__(self, order: str) -> None:
        self._order = order
        self._left = MOST_BYTES

    def variables(self, content: bytes) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each variable."""
        for kind, data in self._elements(content):
            if kind == _COMPRESSED:
                ((kind, data),) = self._elements(self._unpacked(data))
            if kind != _MATRIX:
                raise ValueError(f"an element of kind {kind} where a variable is expected")
            yield self._matrix(data, 0)

    def _unpacked(self, data: bytes) -> bytes:
        reader = zlib.decompressobj()
        unpacked = reader.decompress(data, self._left)
        if not reader.eof:
            raise ValueError(f"it is cut off, or unpacks to more than {MOST_BYTES >> 20} MB")
        self._left -= len(unpacked)
        return unpacked

    def _elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield kind and bytes of each element; all but packed ones are filled up to multiples of 8 bytes."""
        place = 0
        while place < len(data):
            (word,) = struct.unpack_from(f"{self._order}I", data, place)
            if word >> 16:
                # A small element: its size stands beside its kind, its bytes where the size would be.
                kind, size, start, end = word & 0xFFFF, word >> 16, place + 4, place + 8
                if size > 4:
                    raise ValueError(f"a small element of {size} bytes")
            else:
                (kind, size), start = struct.unpack_from(f"{self._order}II", data, place), place + 8
                end = start + size + (0 if kind == _COMPRESSED else -size % 8)
            if start + size > len(data):
                raise ValueError("it ends inside an element")
            yield kind, data[start : start + size]
            place = end

    def _matrix(self, data: bytes, depth: int) -> tuple[str, Any]:
        """Return name and value of a matrix."""
        if depth > DEEPEST:
            raise ValueError(f"cells nested more than {DEEPEST} deep")
        if not data:
            return "", _EMPTY
        elements = self._elements(data)

        def following() -> tuple[int, bytes]:
            found = next(elements, None)
            if found is None:
                raise ValueError("a matrix without its parts")
            return found

        (flags,) = struct.unpack_from(f"{self._order}I", following()[1])
        found = flags & 0xFF
        if found not in (_CELL, _TEXT, *_NUMBER_CLASSES):
            following()
            return following()[1].decode("ascii"), None
        shape = tuple(int(size) for size in np.frombuffer(following()[1], f"{self._order}i4"))
        if len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"a matrix of shape {shape}")
        name = following()[1].decode("ascii")
        if found == _CELL:
            return name, self._cells(shape, elements, depth)
        kind, content = following()
        if found == _TEXT:
            return name, self._texts(shape, kind, content)
        numbers = self._numbers(shape, kind, content, _NUMBER_CLASSES[found])
        return name, numbers + 1j * self._numbers(shape, *following(), "f8") if flags & _COMPLEX_FLAG else numbers

    def _cells(self, shape: tuple[int, ...], elements: Iterator[tuple[int, bytes]], depth: int) -> np.ndarray:
        members = []
        for kind, content in elements:
            if kind != _MATRIX:
                raise ValueError(f"an element of kind {kind} in a cell")
            members.append(self._matrix(content, depth + 1)[1])
        return _shaped(members, shape, _objects)

    def _numbers(self, shape: tuple[int, ...], kind: int, content: bytes, stated: str) -> np.ndarray:
        if kind not in _NUMBERS:
            raise ValueError(f"an element of kind {kind} where numbers are expected")
        stored = np.frombuffer(content, f"{self._order}{_NUMBERS[kind]}")
        # Numbers are stored as the smallest kind that holds them.
        return _shaped(stored, shape, lambda values: np.asarray(values, dtype=stated))

    def _texts(self, shape: tuple[int, ...], kind: int, content: bytes) -> np.ndarray:
        if kind in _TEXTS:
            ending = {"<": "-le", ">": "-be"}[self._order] if kind != 16 else ""
            letters = list(content.decode(_TEXTS[kind] + ending))
        else:
            codes = np.frombuffer(content, f"{self._order}{_NUMBERS.get(kind, '')}")
            letters = [chr(code) for code in codes.tolist()]
        if not letters:
            return np.zeros(0, dtype="<U1")
        rows = _shaped(letters, shape, _objects)
        lines = ["".join(row) for row in rows.reshape(-1, shape[-1])]
        return np.array(lines).reshape(shape[:-1])


def _objects(values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _shaped(values: Any, shape: tuple[int, ...], array_of: Callable[[Any], np.ndarray]) -> np.ndarray:
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} values in a matrix of shape {shape}")
    return array_of(values).reshape(shape, order="F")
