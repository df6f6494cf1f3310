"""Galleries without a model: a feature is drawn from the digest of the file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.vocabulary import Modality
from datasets.structures import Source
from solver.gallery.index import GalleryIndex
from solver.gallery.layout import IndexState
from solver.gallery.listing import ListedImage

DIM = 6
STATE = IndexState(
    model={"family": "none", "weights": "w"},
    statistics={"name": "clip"},
    dimension=DIM,
    dtype="float32",
    instruction={"told": "none"},
)


def photo(folder: Path, name: str, text: str = "") -> ListedImage:
    """A file that stands for an image; `damaged` in its text cannot be read."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or name)
    source = Source(modality=Modality.RGB, value=str(path))
    return ListedImage(source=source, person=name[0], camera="c1", clothes="")


def feature(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def encode(images: Sequence[ListedImage]) -> tuple[np.ndarray, dict[int, str]]:
    texts = [Path(image.path).read_text() for image in images]
    failures = {place: f"{image.path}: damaged" for place, image in enumerate(images) if "damaged" in texts[place]}
    rows = [feature(text) for place, text in enumerate(texts) if place not in failures]
    return np.array(rows, dtype=np.float32).reshape(len(rows), DIM), failures


def held(index: GalleryIndex) -> list[tuple[int, str]]:
    """(id, name) of every image, in order; that its features are those of its file is checked."""
    found = [(identity, Path(row.path).name) for identity, row in index.images()]
    rows = index.features()
    numbers = np.flatnonzero(
        np.concatenate(
            [np.ones(shard.entry.rows, bool) if mask is None else mask for shard, mask in zip(index.shards, index.kept)]
            or [np.zeros(0, bool)]
        )
    )
    stored = rows.gather(numbers) if len(numbers) else np.zeros((0, DIM))
    wanted = [feature(Path(row.path).read_text()) for _, row in index.images() if Path(row.path).exists()]
    assert np.array_equal(stored, np.array(wanted, dtype=np.float64).reshape(-1, DIM))
    assert [row.path for row in index.rows(numbers)] == [row.path for _, row in index.images()]
    assert index.ids(numbers).tolist() == [identity for identity, _ in found]
    return found
