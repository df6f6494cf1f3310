"""Covers: datasets/loading/image_cache, solver/search/gallery_index. Caches that are damaged one file at a time: made
anew, never trusted, never fatal.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import plant

from configs.vocabulary import Modality
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import PillowReader
from datasets.structures import Source
from solver.search.gallery_index import keep_index, read_index, sign

SIZE = (16, 8)
Spoil = Callable[[Path], object]


def table(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def each(value: Any) -> Spoil:
    return table(lambda content: content.update(dict.fromkeys(content, value)))


def data(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda path: np.save(path, change(np.load(path)))


COMMON: dict[str, Spoil] = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
}
DAMAGE: list[tuple[str, str, Spoil]] = [
    *(("hashes.json", name, spoil) for name, spoil in COMMON.items()),
    *(("*-*.json", name, spoil) for name, spoil in COMMON.items()),
    *(("*.npy", name, spoil) for name, spoil in COMMON.items()),
    ("hashes.json", "numbers", each(5)),
    ("hashes.json", "short", each([1, 2])),
    ("hashes.json", "nothing", each(None)),
    ("hashes.json", "another digest", each([1, 2, "0" * 64])),
    ("hashes.json", "deep", lambda path: path.write_text('{"a":' * 50_000)),
    ("*-*.json", "list", lambda path: path.write_text("[]")),
    ("*-*.json", "failures", table(lambda content: content.update(failures=3))),
    ("*-*.json", "sums", table(lambda content: content.update(sums=[-1, 1 << 40, "x"]))),
    ("*-*.json", "other sums", table(lambda content: content.update(sums=[1, 2, 3]))),
    ("*.npy", "pixels", data(lambda array: 255 - array)),
    (
        "*.npy",
        "one bit",
        data(lambda array: array ^ (np.arange(array.size).reshape(array.shape) == 5).astype(np.uint8)),
    ),
    ("*.npy", "rows", data(lambda array: array[::-1].copy())),
    ("*.npy", "order", data(np.asfortranarray)),
    ("*.npy", "kind", data(lambda array: array.view(np.int8))),
    ("*.npy", "objects", lambda path: np.save(path, np.array([{}] * 3, dtype=object), allow_pickle=True)),
]


@pytest.mark.parametrize(("pattern", "name", "spoil"), DAMAGE, ids=[f"{file} {name}" for file, name, _ in DAMAGE])
@pytest.mark.parametrize("running", [False, True])
def test_a_damaged_decode_cache(tmp_path: Path, pattern: str, name: str, spoil: Spoil, running: bool) -> None:
    plant(tmp_path, "a.png", "b.png", "c.png")
    sources = [Source(modality=Modality.RGB, value=str(tmp_path / name)) for name in ("a.png", "b.png", "c.png")]
    expected = [PillowReader(SIZE)(source) for source in sources]
    reader = build_cache(sources, SIZE, tmp_path / "cache", 1)
    file = next(path for path in (tmp_path / "cache").iterdir() if matches(path, pattern))
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    spoil(file)
    if not running:
        reader = build_cache(sources, SIZE, tmp_path / "cache", 1)
    for source, image in zip(sources, expected):
        assert np.array_equal(reader(source), image)
    rebuilt = build_cache(sources, SIZE, tmp_path / "cache", 1)
    for source, image in zip(sources, expected):
        assert np.array_equal(rebuilt(source), image)
    build_cache(sources, SIZE, tmp_path / "cache", 1)
    if name != "another digest":
        assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before, "made anew"


def matches(path: Path, pattern: str) -> bool:
    return path.match(pattern) if pattern != "*-*.json" else path.suffix == ".json" and path.name != "hashes.json"


def rewrite(features: Callable[[np.ndarray], np.ndarray] = lambda x: x, **header: Any) -> Spoil:
    def spoil(path: Path) -> None:
        with np.load(path) as archive:
            values, stated = archive["features"], json.loads(archive["header"].tobytes()) | header
        raw = np.frombuffer(json.dumps(stated).encode(), dtype=np.uint8)
        np.savez(path, features=features(values), header=raw)

    return spoil


def raw_header(raw: bytes) -> Spoil:
    return lambda path: np.savez(path, features=np.zeros((2, 4), np.float32), header=np.frombuffer(raw, np.uint8))


GALLERY: dict[str, Spoil] = {
    **{name: spoil for name, spoil in COMMON.items() if name != "absent"},
    "files": rewrite(files=[1, 1]),
    "short files": rewrite(files=[["a", 1], ["b", 2]]),
    "no files": rewrite(files=None),
    "failures": rewrite(failures=[1]),
    "nan": rewrite(lambda x: np.full_like(x, np.nan)),
    "columns": rewrite(lambda x: x[:, :1]),
    "rows": rewrite(lambda x: x[::-1].copy()),
    "kind": rewrite(lambda x: x.astype(np.float64)),
    "shape": rewrite(lambda x: x.reshape(-1)),
    "deep": raw_header(b"[" * 100_000),
    "list": raw_header(b"[]"),
    "nothing": raw_header(b""),
}


@pytest.mark.parametrize("name", GALLERY)
def test_a_damaged_gallery_is_encoded_again(tmp_path: Path, name: str) -> None:
    plant(tmp_path, "a.png", "b.png")
    sources = tuple(Source(modality=Modality.RGB, value=str(tmp_path / name)) for name in ("a.png", "b.png"))
    features = np.eye(2, 4, dtype=np.float32)
    signatures = [sign(source.value) for source in sources]
    keep_index(tmp_path / "g.npz", {"weights": "w"}, features, {}, signatures)
    found = read_index(tmp_path / "g.npz", {"weights": "w"}, sources, allow_failures=False)
    assert found is not None and np.array_equal(found[0], features)
    GALLERY[name](tmp_path / "g.npz")
    assert read_index(tmp_path / "g.npz", {"weights": "w"}, sources, allow_failures=False) is None
