"""Tiny trees in official layouts, written by hand, and the scores of a protocol from a hand-written similarity
matrix.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from configs.vocabulary import Modality
from datasets.dataset_entry import DatasetEntry
from datasets.protocols import assemble_split
from datasets.structures import ReadOptions, Record, Release
from utils.retrieval.metrics import evaluate
from utils.retrieval.result import RetrievalResult

# Orders of the gallery 1..5, best first: 12345, 54321, 23154, 53412, 41253.
SIMILARITY = np.array(
    [
        [5, 4, 3, 2, 1],
        [1, 2, 3, 4, 5],
        [3, 5, 4, 1, 2],
        [2, 1, 4, 3, 5],
        [4, 3, 1, 5, 2],
    ],
    dtype=np.float64,
)


@functools.lru_cache
def picture(suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 16), (200, 40, 90)).save(stream, {".jpg": "JPEG", ".png": "PNG"}[suffix])
    return stream.getvalue()


def write(root: Path, *paths: str) -> Path:
    """Write a valid picture to each path below root; return root."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(Path(path).suffix))
    return root


def place(record: Record, release: Release) -> str:
    return Path(record.sources[Modality.RGB].value).relative_to(release.root).as_posix()


def rows(release: Release, part: str) -> list[tuple[str, int, int, int]]:
    """(file name, person, camera, clothes) of a part, in the reader's order."""
    return [
        (Path(place(record, release)).name, record.person_id, record.camera_id, record.clothes_id)
        for record in release.parts[part]
    ]


def score(
    entry: DatasetEntry, root: Path, protocol: str, queries: Sequence[str], gallery: Sequence[str]
) -> dict[str, RetrievalResult]:
    """Evaluate a protocol with row i of SIMILARITY for queries[i] and column j for gallery[j] (paths below the root);
    by title.
    """
    release = entry.read(root, ReadOptions())
    chosen = entry.protocols[protocol]
    split = assemble_split("test", chosen.searches(release), {protocol: chosen.summary})
    results = {}
    for listed in split.query_lists:
        assert listed.protocol == protocol
        items = listed.gallery if listed.gallery is not None else range(len(split.gallery))
        lines = [queries.index(Path(source.value).relative_to(release.root).as_posix()) for (source,) in listed.entries]
        columns = [
            gallery.index(Path(split.gallery[item].value).relative_to(release.root).as_posix()) for item in items
        ]
        results[listed.title] = evaluate(
            SIMILARITY[np.ix_(lines, columns)],
            listed.person_ids,
            [split.gallery_ids[item] for item in items],
            query_cameras=listed.camera_ids,
            gallery_cameras=[split.gallery_camera_ids[item] for item in items],
            query_clothes=listed.clothes_ids,
            gallery_clothes=[split.gallery_clothes_ids[item] for item in items],
            rule=listed.exclusion_rule,
            cmc=listed.cmc,
        )
    return results
