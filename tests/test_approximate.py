"""Covers: solver/gallery/approximate, solver/search/searched, solver/search/ranked. Candidates that faiss names: scored
exactly and sorted by our rule, whatever faiss's own order, padding and ids are.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.vocabulary import Modality
from datasets.structures import Source
from solver.evaluation.comparison import Comparison
from solver.gallery import approximate
from solver.gallery.approximate import Candidates, load, make
from solver.gallery.index import open_index
from solver.gallery.layout import IndexRow, IndexState
from solver.gallery.writing import ShardContent, writing
from solver.search.queries import Query
from solver.search.ranked import EncodedQueries, search
from solver.search.searched import IndexedGallery
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DIM, ROWS = 16, 2000
STATE = IndexState(model={"m": 1}, statistics={}, dimension=DIM, dtype="float32", instruction={"told": "none"})


def features(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_index(folder: Path, rows: np.ndarray, shard_rows: int = 700) -> Path:
    with writing(folder, STATE) as writer:
        for start in range(0, len(rows), shard_rows):
            part = rows[start : start + shard_rows]
            lines = [IndexRow(path=f"/g/{start + row}.jpg", file=[1, 1, 1, 1, ""]) for row in range(len(part))]
            writer.append(ShardContent(features=part, rows=lines, numbers=range(len(part))), len(part))
    return folder


def asked(queries: np.ndarray, **more: Any) -> EncodedQueries:
    texts = [Query(name=str(row), sources=(Source(modality=Modality.TEXT, value="x"),)) for row in range(len(queries))]
    return EncodedQueries(queries=tuple(texts), features=torch.from_numpy(queries), failures=(), **more)


class Worst:
    """A faiss index that does everything that ours must not show: -1 where nothing is found, equal ids twice, ids that
    are gone, no order at all.
    """

    nlist = 4

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.ntotal = ids, len(ids)

    def search(self, queries: np.ndarray, count: int, params: object) -> tuple[np.ndarray, np.ndarray]:
        line = np.array([-1, *self.ids[::-1], self.ids[0], 999_999], dtype=np.int64)
        return np.zeros((len(queries), len(line))), np.tile(line, (len(queries), 1))


@pytest.fixture
def no_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        SearchParametersIVF = staticmethod(lambda nprobe: nprobe)

    monkeypatch.setattr(approximate, "load_faiss", lambda: Stand)


def test_what_faiss_says_is_only_a_list_of_candidates(tmp_path: Path, no_faiss: None) -> None:
    rows = features(300)
    rows[[40, 80, 120]] = rows[7]
    place = make_index(tmp_path / "index", rows, 90)
    with writing(place) as writer:
        writer.remove([80])
        writer.compact()
        writer.remove([3])
    index = open_index(place)
    gallery = IndexedGallery(index)
    named = [3, 7, 40, 80, 120, 200, 250]
    gallery.codes = Candidates(codes=Worst(named), measured=())
    (found,) = search(asked(rows[7:8]), gallery, 5)
    assert [image.index for image in found.results[:3]] == [7, 40, 120] and len(found.results) == 5
    scores = rows.astype(np.float64) @ rows[7]
    assert [image.similarity for image in found.results[3:]] == pytest.approx(
        sorted(scores[[200, 250]])[::-1], abs=1e-6
    )
    assert (found.matches, found.first_match) == (None, None) and "nprobe 0" in gallery.approximate
    # All images named: what the exact search finds.
    gallery.codes = Candidates(codes=Worst([*range(300)]), measured=())
    exact = search(asked(rows[:9]), IndexedGallery(index), 20)
    assert search(asked(rows[:9]), gallery, 20) == exact


def test_other_comparisons_are_refused(tmp_path: Path, no_faiss: None) -> None:
    gallery = IndexedGallery(open_index(make_index(tmp_path / "index", features(300))))
    gallery.codes = Candidates(codes=Worst([1]), measured=())
    for comparison in (Comparison(similarity="euclidean"), Comparison(compared=lambda combination: slice(0, 4))):
        with pytest.raises(UserError, match="--nprobe: codes are for features that are compared by the cosine"):
            search(asked(features(1), comparison=comparison), gallery, 3)
    with pytest.raises(UserError, match="codes are for features"):
        make(open_index(make_index(tmp_path / "long", 3 * features(300))), 0, 4)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(make_index(tmp_path / "index", features(300)))
    with pytest.raises(UserError, match="has no codes for --nprobe; make it with python -m solver.gallery approximate"):
        load(index)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="not installed; pip install -r requirements-search.txt"):
        make(index, 0, 4)
    assert not (index.folder / "approximate").exists()


def test_codes_of_a_real_index(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed (requirements-search.txt)")
    rows = features(ROWS)
    rows[[40, 80, 120]] = rows[7]
    index = open_index(make_index(tmp_path / "index", rows))
    measured = make(index, 8, 8)
    assert [one.nprobe for one in measured] == [1, 8, 64]
    assert measured[0].recall < measured[1].recall == measured[2].recall > 0.9
    # Added in three shards under our ids: what is added at once is the same.
    once = faiss.read_index(str(index.folder / "approximate" / "ivfpq.faiss"))
    plain = faiss.clone_index(once)
    plain.reset()
    plain.add_with_ids(rows, np.arange(ROWS))
    for one, other in zip(once.search(rows[:50], 30), plain.search(rows[:50], 30), strict=True):
        assert np.array_equal(one, other)
    # With all lists looked through, more candidates than images are asked for, and nothing is padded.
    gallery = IndexedGallery(index, nprobe=8)
    results = search(asked(rows[:20]), gallery, 10)
    exact = search(asked(rows[:20]), IndexedGallery(index), 10)
    shared = [
        len({image.index for image in one.results} & {image.index for image in other.results})
        for one, other in zip(results, exact, strict=True)
    ]
    assert np.mean(shared) > 9 and [image.index for image in results[7].results[:4]] == [7, 40, 80, 120]
    for one, other in zip(results, exact, strict=True):
        known = {image.index: image.similarity for image in other.results}
        assert all(image.similarity == known[image.index] for image in one.results if image.index in known)
    (few,) = gallery.codes.rows(torch.from_numpy(rows[:1]), index, ROWS, 8)  # type: ignore[union-attr]
    assert len(few) == ROWS and few.tolist() == [*range(ROWS)]
    # A list that holds fewer than are asked for: faiss pads with -1, which is no row.
    (near,) = gallery.codes.rows(torch.from_numpy(rows[:1]), index, ROWS, 1)  # type: ignore[union-attr]
    raw = once.search(rows[:1], ROWS, params=faiss.SearchParametersIVF(nprobe=1))[1][0]
    assert (raw == -1).any() and 0 < len(near) < ROWS and near.tolist() == sorted(set(raw.tolist()) - {-1})
    # What was removed since is not found; what was added since makes the codes old.
    with writing(index.folder) as writer:
        writer.remove([7])
        writer.compact()
    (found,) = search(asked(rows[7:8]), IndexedGallery(open_index(index.folder), nprobe=8), 3)
    assert [image.index for image in found.results] == [40, 80, 120]
    file = index.folder / "approximate" / "ivfpq.json"
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "sha256": "0"}))
    with pytest.raises(UserError, match="is damaged .*make it again"):
        load(open_index(index.folder))
    file.write_text(content)
    with writing(index.folder) as writer:
        line = IndexRow(path="/g/new.jpg", file=[1, 1, 1, 1, ""])
        writer.append(ShardContent(features=features(1, 5), rows=[line], numbers=[0]), 1)
    with pytest.raises(UserError, match="images were added to .* since its codes"):
        load(open_index(index.folder))


def test_codes_that_cannot_be_made(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed (requirements-search.txt)")
    with pytest.raises(UserError, match="--code-bytes 5: must divide the dimension of the features, 16"):
        make(open_index(make_index(tmp_path / "index", features(300))), 0, 5)
    with pytest.raises(UserError, match="has 20 images, codes take at least 256"):
        make(open_index(make_index(tmp_path / "small", features(20))), 0, 4)


def test_faiss_is_loaded_as_it_bears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped files crash it, paths in its files are relative to where it runs, and its threads are its own."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed (requirements-search.txt)")
    make(open_index(make_index(tmp_path / "index", features(300))), 2, 4)
    place = (tmp_path / "index").rename(tmp_path / "elsewhere")
    read, given = faiss.read_index, []

    def recorded(*words: Any) -> Any:
        given.append(words)
        return read(*words)

    monkeypatch.setattr(faiss, "read_index", recorded)
    monkeypatch.chdir(tmp_path)
    faiss.omp_set_num_threads(7)
    (few,) = load(open_index(place)).rows(torch.from_numpy(features(1)), open_index(place), 300, 2)
    assert given == [(str(place / "approximate" / "ivfpq.faiss"),)] and len(few) == 300
    assert faiss.omp_get_max_threads() == torch.get_num_threads()


def test_one_module_imports_each_optional_package() -> None:
    """An order of imports, threads and reports that hold wherever they are used; torch comes before faiss."""
    found = {
        name: [
            path.relative_to(ROOT).as_posix()
            for room in ("utils", "configs", "datasets", "model", "solver", "benchmarks")
            for path in sorted((ROOT / room).rglob("*.py"))
            if re.search(rf"^\s*(import|from) {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        ]
        for name in ("faiss", "ray")
    }
    assert found == {"faiss": ["solver/gallery/approximate.py"], "ray": ["solver/gallery/ray_engine.py"]}
    source = (ROOT / "solver/gallery/approximate.py").read_text(encoding="utf-8")
    assert re.search(r"^import torch$", source, re.MULTILINE) and re.search(r"^ +import faiss$", source, re.MULTILINE)
