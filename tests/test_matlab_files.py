"""Covers: datasets/formats/matlab_files. Level 5 files as scipy reads them, and damaged ones, which end in one sentence
and never in the process's death.
"""

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from datasets.formats import matlab_files
from datasets.formats.matlab_files import load_matlab
from utils.errors import UserError


def cells(shape: tuple[int, ...], *values: Any) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        found[place] = value
    return found.reshape(shape)


INNER = cells((2, 3), *(np.arange(2 * width, dtype=np.uint8).reshape(2, width) for width in range(6)))
VARIABLES = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "whole": np.array([[-3, 70000, 2**40]]),
    "large": np.array([[2**63]], dtype=np.uint64),
    "cube": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    "yes": np.array([[True, False]]),
    "complex": np.array([[1 + 2j, 3 - 4j]]),
    "empty": np.zeros((0, 0)),
    "text": "a photo of Zoë",
    "lines": np.array(["ab", "cd"]),
    "no_text": "",
    "cells": INNER,
    "nested": cells((2, 1), INNER, cells((1, 1), "x.jpg")),
    "equal": cells((1, 2), np.ones((2, 2)), np.zeros((2, 2))),
}


def assert_same(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape and found.dtype.kind == expected.dtype.kind
    if expected.dtype == object:
        for mine, theirs in zip(found.ravel(), expected.ravel(), strict=True):
            assert_same(mine, theirs)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_values_are_those_that_scipy_reads(tmp_path: Path, packed: bool) -> None:
    savemat(tmp_path / "a.mat", VARIABLES, do_compression=packed)
    found, expected = load_matlab(tmp_path / "a.mat"), loadmat(tmp_path / "a.mat")
    assert list(found) == list(VARIABLES)
    for name in VARIABLES:
        assert_same(found[name], expected[name])


def test_the_other_byte_order(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2)) + element(1, b"x")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    content = header + element(14, parts + element(9, struct.pack(">dd", 1.5, -2)))
    (tmp_path / "a.mat").write_bytes(content)
    assert load_matlab(tmp_path / "a.mat")["x"].tolist() == [[1.5, -2]] == loadmat(io.BytesIO(content))["x"].tolist()


def test_other_kinds_of_variable_are_left_aside(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"record": {"a": 1, "b": "x"}, "number": 3})
    found = load_matlab(tmp_path / "a.mat")
    assert found["record"] is None and found["number"].tolist() == [[3]]


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path: Path, packed: bool) -> None:
    savemat(tmp_path / "good.mat", VARIABLES, do_compression=packed)
    good, refused = (tmp_path / "good.mat").read_bytes(), 0
    for seed in range(300):
        draw, damaged = random.Random(seed), bytearray(good)
        for _ in range(draw.choice([1, 2, 8, 40])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path = tmp_path / "damaged.mat"
        path.write_bytes(damaged[: draw.choice([len(good), len(good), len(good) // 2])])
        try:
            load_matlab(path)
        except UserError as error:
            refused += 1
            assert "damaged.mat" in str(error) and "\n" not in str(error)
    assert refused > 100


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab_files, "MOST_BYTES", 1 << 20)
    savemat(tmp_path / "good.mat", {"x": 1})
    packed = zlib.compress(bytes(4 << 20))
    bomb = (tmp_path / "good.mat").read_bytes()[:128] + struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "bomb.mat").write_bytes(bomb)
    with pytest.raises(UserError, match=r"bomb.mat.*unpacks to more than 1 MB"):
        load_matlab(tmp_path / "bomb.mat")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no header"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "7.3"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "7.3"),
        (b"text".ljust(400), "no header"),
    ],
)
def test_files_of_another_form(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_matlab(tmp_path / "a.mat")
    with pytest.raises(UserError, match=r"absent.mat"):
        load_matlab(tmp_path / "absent.mat")
