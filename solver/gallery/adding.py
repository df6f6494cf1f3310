"""Adding images to an index, taking them out, and looking at whether their files are still those that were encoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from solver.gallery.index import GalleryIndex
from solver.gallery.layout import IndexRow
from solver.gallery.listing import ListedImage
from solver.gallery.signatures import is_there, refreshed, sign
from solver.gallery.writing import SHARD_ROWS, IndexWriter, ShardContent
from utils.errors import UserError, shortened

SHOWN = 5
Encode = Callable[[Sequence[ListedImage]], tuple[np.ndarray, Mapping[int, str]]]
"""Images -> features (N, D) float32 of the readable ones, in order, and the reason by place of each other one."""


@dataclass(kw_only=True)
class Added:
    """What came of images that were to be added."""

    added: int = 0
    replaced: int = 0
    """Of those added, images whose file had changed since they were encoded."""
    unchanged: int = 0
    """Already there."""
    unreadable: list[IndexRow] = field(default_factory=list)


def shard_content(images: Sequence[ListedImage], encode: Encode) -> ShardContent:
    """Read and encode images. A pure function of the images and the model."""
    # Signatures before the images are read: a file that changes meanwhile is found to have changed.
    signatures = [sign(image.path) for image in images]
    features, failures = encode(images)
    rows = [image.row(file) for image, file in zip(images, signatures, strict=True)]
    readable = [place for place in range(len(rows)) if place not in failures]
    return ShardContent(
        features=features,
        rows=[rows[place] for place in readable],
        numbers=readable,
        bad=[replace(rows[place], number=place, reason=reason) for place, reason in sorted(failures.items())],
    )


def add_images(
    writer: IndexWriter, images: Sequence[ListedImage], encode: Encode, shard_rows: int = SHARD_ROWS
) -> Added:
    """Add images in shards of `shard_rows`, each kept as soon as it is encoded. An image whose file is unchanged is
    left as it is; one whose file has changed is replaced, at the end.

    Raises UserError when none can be read and none was there before.
    """
    index = writer.read()
    known = known_images(index, [image.path for image in images])
    done = Added()
    fresh: list[tuple[ListedImage, int | None]] = []
    for image in images:
        identity, row = known.get(image.path, (None, None))
        if row is not None and _same(row, image) and refreshed(row.file, image.path) is not None:
            if row.reason:
                done.unreadable.append(row)
            else:
                done.unchanged += 1
        else:
            fresh.append((image, identity))
    for start in range(0, len(fresh), shard_rows):
        part = fresh[start : start + shard_rows]
        content = shard_content([image for image, _ in part], encode)
        if not content.rows and not writer.state.rows and start + shard_rows >= len(fresh):
            raise UserError(f"no image can be read, the first: {content.bad[0].reason}")
        gone = [identity for _, identity in part if identity is not None]
        writer.append(content, len(part), gone)
        done.added += len(content.rows)
        done.replaced += len(gone)
        done.unreadable += content.bad
    return done


def _same(row: IndexRow, image: ListedImage) -> bool:
    """Return whether nothing else is said of an image now; a folder says nothing of whom it shows."""
    said = (image.person or None, image.camera, image.clothes)
    return row.modality is image.source.modality and (not any(said) or said == (row.person, row.camera, row.clothes))


def known_images(index: GalleryIndex, paths: Sequence[str]) -> dict[str, tuple[int, IndexRow]]:
    """Return (id, row) of those of the paths that are in an index, unreadable images among them."""
    wanted = set(paths)
    found = {row.path: (identity, row) for identity, row in index.unreadable() if row.path in wanted}
    numbers = np.array([int(rows[0]) for rows in index.find("path", wanted).values() if len(rows)], dtype=np.int64)
    for identity, row in zip(index.ids(numbers).tolist(), index.rows(numbers)):
        found[row.path] = identity, row
    return found


def named_ids(index: GalleryIndex, places: Sequence[str], missing: bool) -> list[int]:
    """Return the ids of images by path, or below a folder, and (missing) of those whose file is gone.

    Raises UserError for a place that is no image of the index.
    """
    wanted = {os.path.abspath(place): place for place in places}
    found: dict[str, int] = dict.fromkeys(wanted, 0)
    ids = []
    for identity, row in all_images(index):
        place = next((one for one in (row.path, *map(str, Path(row.path).parents)) if one in wanted), None)
        if place is not None:
            found[place] += 1
        if place is not None or (missing and not is_there(row.path)):
            ids.append(identity)
    empty = [wanted[place] for place, count in found.items() if not count]
    if empty:
        raise UserError(
            f"{index.folder} holds no image {shortened(empty, SHOWN)}, nor any below it; nothing is removed"
        )
    return ids


def all_images(index: GalleryIndex) -> Iterator[tuple[int, IndexRow]]:
    """Yield (id, row) of every image, unreadable ones behind the others."""
    yield from index.images()
    yield from index.unreadable()


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Images whose files are no longer those that were encoded."""

    changed: list[str]
    missing: list[str]


def changed_files(rows: Sequence[IndexRow] | Iterator[IndexRow]) -> Changes:
    """Return which of the rows' files have other content now, or are gone."""
    changed, missing = [], []
    for row in rows:
        if not is_there(row.path):
            missing.append(row.path)
        elif refreshed(row.file, row.path) is None:
            changed.append(row.path)
    return Changes(changed=changed, missing=missing)
