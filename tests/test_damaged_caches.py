"""Covers: datasets/loading/image_cache, solver/search/gallery_cache. Caches that are damaged one file at a time: made
anew, never trusted, never fatal.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from protocol_oracle import ToyModel, ToyReader
from trees import plant

from configs.vocabulary import Modality
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import PillowReader
from datasets.structures import Source
from solver.evaluation.spec import EvaluationSpec
from solver.search.gallery import folder_gallery
from solver.search.gallery_cache import GalleryEncoder
from solver.search.searched import EncodedGallery

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


def state(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """A change of index.json whose checksum is right again."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        plain = {name: value for name, value in content.items() if name != "checksum"}
        content["checksum"] = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(content))

    return spoil


GALLERY: list[tuple[str, str, Spoil]] = [
    *((end, name, spoil) for end in ("features.npy", "keys.npy", "rows.jsonl") for name, spoil in COMMON.items()),
    *(("index.json", name, spoil) for name, spoil in COMMON.items()),
    ("features.npy", "rows", data(lambda array: array[::-1].copy())),
    ("features.npy", "kind", data(lambda array: array.astype(np.float64))),
    ("features.npy", "nan", data(lambda array: np.full_like(array, np.nan))),
    ("features.npy", "objects", lambda path: np.save(path, np.array([{}] * 3, dtype=object), allow_pickle=True)),
    ("index.json", "deep", lambda path: path.write_text("[" * 100_000)),
    ("index.json", "another model", state(lambda content: content.update(model={"weights": "v"}))),
    ("index.json", "other rows", state(lambda content: content["shards"][0].update(rows=1))),
    ("index.json", "no shards", state(lambda content: content.update(shards=[]))),
    ("index.json", "a number", state(lambda content: content.update(shards=7))),
]


@pytest.mark.parametrize(("end", "name", "spoil"), GALLERY, ids=[f"{end} {name}" for end, name, _ in GALLERY])
def test_a_damaged_gallery_is_encoded_again(tmp_path: Path, end: str, name: str, spoil: Spoil) -> None:
    plant(tmp_path / "photos", "a.png", "b.png")
    model, cpu = ToyModel(), torch.device("cpu")

    def encoded() -> EncodedGallery:
        encoder = GalleryEncoder(model, ToyReader(), EvaluationSpec(), cpu, identity={}, cache=tmp_path / "cache")
        return encoder.encode(folder_gallery(tmp_path / "photos"))

    first = encoded()
    assert encoded().reused
    spoil(next(path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(end)))
    again = encoded()
    assert not again.reused and torch.equal(again.features, first.features) and encoded().reused
