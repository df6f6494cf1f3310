"""Covers: solver/gallery/writing, solver/gallery/index, utils/retrieval/coarse. The coarse form in the folder of an
index: written, merged and checked with its rows, and not missed where it is absent.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_gallery import STATE

from solver.gallery import writing as module
from solver.gallery.index import open_index
from solver.gallery.layout import IndexRow, ShardEntry
from solver.gallery.writing import ShardContent, writing
from utils.errors import UserError
from utils.retrieval import exact
from utils.retrieval.exact import FeatureRows, best_rows

WIDTH = 64


def features(count: int, scale: float = 1.0) -> np.ndarray:
    rows = np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)
    return scale * rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder: Path, *parts: np.ndarray, dtype: str = "float32") -> Path:
    with writing(folder, replace(STATE, dimension=WIDTH, dtype=dtype)) as writer:
        for part in parts:
            lines = [IndexRow(path=f"/g/{len(part)}/{row}.jpg", file=[1, 1, 1, 1, ""]) for row in range(len(part))]
            writer.append(ShardContent(features=part, rows=lines, numbers=range(len(part))), len(part))
    return folder


def codes(folder: Path) -> list[bytes]:
    ends = (".codes.npy", ".scales.npy")
    return [
        (folder / f"{shard.entry.name}{end}").read_bytes()
        for shard in open_index(folder).shards
        for end in ends
        if shard.coarse
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_that_of_the_stored_rows_and_goes_with_them(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COPIED_ROWS", 90)
    first, second = features(500), features(400)
    place = write(tmp_path / "index", first, second, dtype=dtype)
    assert len(codes(place)) == 4
    with writing(place) as writer:
        writer.remove(range(100, 300))
    index = open_index(place)
    rows = index.features()
    plain = FeatureRows(parts=rows.parts, kept=rows.kept, spread=rows.spread)
    monkeypatch.setattr(exact, "multiplies", lambda: True)
    queries = torch.from_numpy(features(3))
    wanted = best_rows(queries, plain, 10)
    assert np.array_equal(best_rows(queries, rows, 10).rows, wanted.rows)
    for form, kept in zip(rows.coarse, (first, second), strict=True):
        assert form is not None
        back = form.scales[0] + form.scales[1] * form.codes.numpy()
        assert np.abs(back - kept.astype(dtype)).max() < 0.51 * (kept.max() - kept.min()) / 254 + 1e-6
        # Of all rows, however many were coded at once.
        assert form.error == pytest.approx(np.linalg.norm(back - kept.astype(dtype), axis=1).max(), rel=1e-4)
    # Merged anew from what is left: what a new index of these rows has.
    with writing(place) as writer:
        writer.compact()
    left = np.concatenate([first[:100], first[300:], second])
    assert codes(place) == codes(write(tmp_path / "new", left, dtype=dtype)) and len(codes(place)) == 2
    assert np.array_equal(best_rows(queries, open_index(place).features(), 10).scores, wanted.scores)


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    for end in (".codes.npy", ".scales.npy"):
        place = write(tmp_path / end[1:4], features(50))
        file = next(place.glob(f"shards/*{end}"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{end} of the gallery index is damaged"):
            open_index(place)
        file.unlink()
        with pytest.raises(UserError, match=f"{end} of the gallery index is damaged .it is missing"):
            open_index(place)


def test_shards_without_one_are_searched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As an index was written before there was any.
    monkeypatch.setattr(module, "has_form", lambda *given: False)
    place = write(tmp_path / "index", features(500))
    entry = open_index(place).shards[0].entry
    before = {name: value for name, value in asdict(entry).items() if name != "coarse"}
    assert ShardEntry.read(before) == entry and entry.coarse is None and not codes(place)
    monkeypatch.undo()
    write(place, features(400))
    index = open_index(place)
    assert [shard.coarse is None for shard in index.shards] == [True, False]
    queries = torch.from_numpy(features(3))
    plain = FeatureRows(parts=index.features().parts, spread=1e-6)
    assert np.array_equal(best_rows(queries, index.features(), 9).rows, best_rows(queries, plain, 9).rows)
    # Features of any length are never compared by it.
    long = write(tmp_path / "long", features(500, 3.0))
    assert not codes(long) and open_index(long).features().spread is None
