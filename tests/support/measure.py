"""Trees read through the catalogue, and the lists of their protocols evaluated from similarities written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from reading import read_options

from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry, read_release
from datasets.protocols import assemble_split
from datasets.structures import EvalSplit, QueryList, Record, Release, Source
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


def read(name: str, root: Path, **options: Any) -> Release:
    """Read a data set through the catalogue."""
    return read_release(dataset_entry(name), root, read_options(**options))


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


def place(record: Record, release: Release) -> str:
    """Path of a visible picture below the release's root."""
    return Path(record.sources[Modality.RGB].value).relative_to(release.root).as_posix()


def rows(release: Release, part: str) -> list[tuple[str, int, int, int]]:
    """(file name, person, camera, clothes) of a part, in the reader's order."""
    return [
        (Path(place(record, release)).name, record.person_id, record.camera_id, record.clothes_id)
        for record in release.parts[part]
    ]


def evaluate_list(split: EvalSplit, queries: QueryList, scores: ArrayLike) -> RetrievalResult:
    """Evaluate one list. scores: a row per query, a column per item of its gallery, both in the list's order."""
    places = gallery_of(split, queries)
    values = [split.gallery[place].value for place in places] + [sources[0].value for sources in queries.entries]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    items = [numbers[value] for value in values]
    return evaluate(
        np.asarray(scores, dtype=np.float64),
        queries.person_ids,
        [split.gallery_ids[place] for place in places],
        query_cameras=queries.camera_ids,
        gallery_cameras=[split.gallery_camera_ids[place] for place in places],
        query_clothes=queries.clothes_ids,
        gallery_clothes=[split.gallery_clothes_ids[place] for place in places],
        rule=queries.exclusion_rule,
        cmc=queries.cmc,
        query_items=items[len(places) :],
        gallery_items=items[: len(places)],
    )


def score(
    name: str, root: Path, protocol: str, queries: Sequence[str], gallery: Sequence[str]
) -> dict[str, RetrievalResult]:
    """Evaluate a protocol with row i of SIMILARITY for queries[i] and column j for gallery[j] (paths below the root);
    by title.
    """
    release = read(name, root)
    split = split_of(release, protocol)
    results = {}
    for listed in split.query_lists:
        assert listed.protocol == protocol
        lines = [queries.index(shown(source, release.root)) for (source,) in listed.entries]
        columns = [gallery.index(shown(split.gallery[item], release.root)) for item in gallery_of(split, listed)]
        results[listed.title] = evaluate_list(split, listed, SIMILARITY[np.ix_(lines, columns)])
    return results


def measure(split: EvalSplit, title: str, root: Path, table: str) -> RetrievalResult:
    """Evaluate one list from a table: its first line names the gallery, each further one a query (`~` = blank) and its
    similarities.

    The list's queries stand in the table's order; its gallery is the table's as a set, since a draw has an order of its
    own.
    """
    header, *lines = [line.split() for line in table.strip().splitlines()]
    scores = {line[0].replace("~", " "): dict(zip(header, map(float, line[1:]), strict=True)) for line in lines}
    queries = list_named(split, title)
    names = [shown(split.gallery[place], root) for place in gallery_of(split, queries)]
    assert sorted(names) == sorted(header)
    assert [shown(entry[0], root) for entry in queries.entries] == list(scores)
    return evaluate_list(split, queries, [[row[name] for name in names] for row in scores.values()])


def stem(source: Source | None) -> str:
    """A text itself, a picture's name without its ending."""
    assert source is not None
    return source.value if source.modality is Modality.TEXT else Path(source.value).stem


def measure_orders(split: EvalSplit, title: str, gallery: str, orders: Mapping[str, str]) -> RetrievalResult:
    """Evaluate one list from orders: `gallery` names its images, `orders` ranks them for each query, best first."""
    queries = list_named(split, title)
    names = [stem(split.gallery[place]) for place in gallery_of(split, queries)]
    assert names == gallery.split() and [stem(entry[0]) for entry in queries.entries] == list(orders)
    return evaluate_list(split, queries, [[-order.split().index(name) for name in names] for order in orders.values()])
