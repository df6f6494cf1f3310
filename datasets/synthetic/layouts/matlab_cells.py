"""Writes one variable, cells that hold cells of uint8 matrices, as a MATLAB level 5 file; the bytes depend on the
values only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_INT8, _UINT8, _INT32, _UINT32, _MATRIX = 1, 2, 5, 6, 14
_CELL_CLASS, _UINT8_CLASS = 1, 9
_TEXT = b"MATLAB 5.0 MAT-file, rendered population"

Matrix = NDArray[np.uint8]


def nested_cells(name: str, cells: Sequence[Sequence[Matrix]]) -> bytes:
    """Return a file whose only variable `name` is a column of cells, each a column of cells with one 2-D uint8 matrix.

    Written by hand because scipy stamps the time of writing into its files. Source: MATLAB's description of level 5
    files.
    """
    header = _TEXT.ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM"
    return header + _cell([_cell([_numbers(matrix) for matrix in inner]) for inner in cells], name)


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _matrix(name: str, array_class: int, shape: tuple[int, int], content: bytes) -> bytes:
    head = _element(_UINT32, struct.pack("<II", array_class, 0)) + _element(_INT32, struct.pack("<ii", *shape))
    return _element(_MATRIX, head + _element(_INT8, name.encode("ascii")) + content)


def _cell(members: Sequence[bytes], name: str = "") -> bytes:
    return _matrix(name, _CELL_CLASS, (len(members), 1), b"".join(members))


def _numbers(matrix: Matrix) -> bytes:
    assert matrix.ndim == 2 and matrix.dtype == np.uint8
    return _matrix("", _UINT8_CLASS, (matrix.shape[0], matrix.shape[1]), _element(_UINT8, matrix.tobytes(order="F")))
