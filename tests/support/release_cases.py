"""Small trees in official layouts, and the evaluation of one list of a protocol from hand-written similarities."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from reading import read_options

from datasets.catalogue import dataset_entry, read_release
from datasets.protocols import assemble_split
from datasets.structures import EvalSplit, QueryList, Release, Source
from utils.retrieval.metrics import evaluate
from utils.retrieval.result import RetrievalResult


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 16), (90, 120, 60)).save(stream, kind)
    return stream.getvalue()


PICTURES = {".jpg": _picture("JPEG"), ".bmp": _picture("BMP")}


def plant(root: Path, *names: str) -> None:
    """Write an 8 x 16 picture under every name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[path.suffix])


def write(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(name: str, root: Path, **options: object) -> Release:
    """Read a data set through the catalogue."""
    return read_release(dataset_entry(name), root, read_options(**options))  # type: ignore[arg-type]


def split_of(release: Release, *protocols: str) -> EvalSplit:
    """The split of some protocols of a release."""
    entry = dataset_entry(release.name)
    searches = [search for name in protocols for search in entry.protocols[name].searches(release)]
    return assemble_split("test", searches, {name: protocol.summary for name, protocol in entry.protocols.items()})


def list_named(split: EvalSplit, title: str) -> QueryList:
    """The query list of that title."""
    return next(queries for queries in split.query_lists if queries.name == title)


def gallery_of(split: EvalSplit, queries: QueryList) -> tuple[int, ...]:
    """Places in the split's gallery that a list is searched in."""
    return tuple(range(len(split.gallery))) if queries.gallery is None else queries.gallery


def shown(source: Source, root: Path) -> str:
    """A text itself, a picture's path below the root."""
    return source.value.removeprefix(f"{root}/")


def measure(split: EvalSplit, title: str, root: Path, table: str) -> RetrievalResult:
    """Evaluate one list from a table: its first line names the gallery, each further one a query (`~` = blank) and its
    similarities.

    The list's queries stand in the table's order; its gallery is the table's as a set, since a draw has an order of its
    own.
    """
    header, *rows = [line.split() for line in table.strip().splitlines()]
    scores = {row[0].replace("~", " "): dict(zip(header, map(float, row[1:]), strict=True)) for row in rows}
    queries = list_named(split, title)
    places = gallery_of(split, queries)
    names = [shown(split.gallery[place], root) for place in places]
    assert sorted(names) == sorted(header)
    assert [shown(entry[0], root) for entry in queries.entries] == list(scores)
    return evaluate(
        [[row[name] for name in names] for row in scores.values()],
        queries.person_ids,
        [split.gallery_ids[place] for place in places],
        query_cameras=queries.camera_ids,
        gallery_cameras=[split.gallery_camera_ids[place] for place in places],
        rule=queries.exclusion_rule,
        cmc=queries.cmc,
    )
