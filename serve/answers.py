"""What the HTTP API answers, as plain values for JSON. docs/page.md describes the fields."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.modalities import MODALITIES
from datasets.structures import Source
from serve.asked import MOST_PICTURES, MOST_RESULTS
from serve.examples import Examples
from serve.folding import FOLD
from serve.guard import MOST_BYTES
from serve.service import Alone, Found, Service, modality_of
from serve.table import SHOWN_NAMES, Table
from solver.reports.grid import printable
from solver.reports.search_files import calibration_document, result_document, write_files
from solver.search.queries import Query
from solver.search.ranked import RankedImage

SHOWN_ALONE = 4


def state(service: Service) -> dict[str, Any]:
    """Return what the server has and how far it is."""
    session, table, progress = service.session, service.table, service.progress
    abilities, trained = session.abilities, session.trained
    known: dict[str, Any] = {"gallery": None, "rates": []}
    if table is not None:
        known = {
            "gallery": _gallery(table),
            "rates": [
                {"mix": [part.value for part in mix], "rates": list(rates)} for mix, rates in service.mixes_with_rates()
            ],
        }
    return {
        "status": "encoding" if table is None else "ready",
        "progress": {"what": progress.what, "done": progress.done, "total": progress.total},
        "model": {
            "family": trained.config.family.value,
            "checkpoint": str(trained.checkpoint),
            "fingerprint": trained.fingerprint,
        },
        "takes": {
            "modalities": [modality.value for modality in abilities.modalities],
            "combinations": [[part.value for part in mix] for mix in abilities.combinations],
            "instruction": abilities.told.queries,
        },
        "similarity": abilities.similarity,
        "fold": FOLD,
        "limits": {"pictures": MOST_PICTURES, "results": MOST_RESULTS, "bytes": MOST_BYTES},
        **known,
    }


def _gallery(table: Table) -> dict[str, Any]:
    gallery = table.gallery
    return {
        "name": printable(gallery.gallery.name),
        "modality": modality_of(gallery).value,
        "images": gallery.count,
        "unreadable": len(gallery.unreadable),
        "cameras": list(table.cameras[:SHOWN_NAMES]),
        "folders": list(table.folders[:SHOWN_NAMES]),
        "persons_known": table.known > 0,
        "all_known": table.known == len(table.rows),
    }


def examples(found: Examples, service: Service, seed: int) -> dict[str, Any]:
    """Return some examples."""
    assert service.table is not None
    searched = service.table.gallery.modalities
    shown = []
    for number, entry in found.drawn(seed):
        query = found.query(number, entry)
        shown.append(
            {
                "id": f"{number}.{entry}",
                "list": found.lists[number].name,
                "parts": _example_parts(query, f"{number}.{entry}"),
                "instruction": _example_instruction(query, f"{number}.{entry}"),
                "rates": list(service.session.rates(query.combination, searched)),
            }
        )
    return {"examples": shown, "note": printable(found.note)}


def _example_instruction(query: Query, identity: str) -> dict[str, Any] | None:
    if query.instruction is None:
        return None
    return _example_source(query.instruction, f"/api/examples/{identity}/{len(query.sources)}")


def _example_source(source: Source, address: str) -> dict[str, Any]:
    return {"image": address} if MODALITIES[source.modality].is_image else {"text": source.value}


def _example_parts(query: Query, identity: str) -> list[dict[str, Any]]:
    parts = []
    for place, source in enumerate(query.sources):
        shown = _example_source(source, f"/api/examples/{identity}/{place}")
        parts.append({"part": source.modality.value, "pictures": 1, **shown})
    return parts


def answer(found: Found, table: Table) -> dict[str, Any]:
    """Return the answer to a search."""
    row = found.folded.row
    return {
        "query": {"task": row.query.task, "parts": _query_parts(found, table), "person": _person(row.query.person_id)},
        "count": found.count,
        "similarity": found.result.encoded.comparison.similarity,
        "calibration": calibration_document(row),
        "matches_in_gallery": row.matches,
        "first_match": row.first_match,
        "results": [
            {
                **_image(image, table),
                "copies": [_image(copy, table) for copy in found.folded.copies.get(image.index, ())],
            }
            for image in row.results
        ],
        "alone": [_alone(one, table) for one in found.alone],
        "notes": [*found.notes, *map(printable, found.result.notes())],
    }


def _query_parts(found: Found, table: Table) -> list[dict[str, Any]]:
    asked, query = found.asked, found.query
    if asked.like is not None:
        return [
            {"part": "like", "pictures": 1, "image": f"/api/images/{asked.like}", "text": query.name.partition(" ")[2]}
        ]
    if asked.example is not None:
        parts = _example_parts(query, "{}.{}".format(*asked.example))
    else:
        parts = [_sent_part(source, found) for source in query.sources]
    told = query.instruction
    if told is not None:
        is_image = MODALITIES[told.modality].is_image
        part = {"part": "instruction_image"} if is_image else {"part": "instruction", "text": told.value}
        parts.append({**part, "pictures": 1})
    return parts


def _sent_part(source: Source, found: Found) -> dict[str, Any]:
    part = source.modality.value
    text = {} if MODALITIES[source.modality].is_image else {"text": source.value}
    return {"part": part, "pictures": len(found.asked.pictures.get(part, ("",))), **text}


def _person(person: int | str | None) -> str | None:
    return None if person is None else printable(str(person))


def _image(image: RankedImage, table: Table) -> dict[str, Any]:
    return {
        "index": image.index,
        "rank": image.rank,
        "similarity": round(image.similarity, 7),
        "name": printable(table.name(image.path)),
        "person": _person(image.person_id),
        "camera": printable(image.camera),
        "verdict": image.verdict.value,
        "answer": "" if image.answer is None else image.answer.value,
        "own_image": image.own_image,
        "outdated": image.outdated,
        "image": f"/api/images/{image.index}",
        "original": f"/api/images/{image.index}/original",
    }


def _alone(one: Alone, table: Table) -> dict[str, Any]:
    return {
        "label": one.label,
        "part": one.part,
        "agrees": one.agrees,
        "rank_of_best": one.rank,
        "looked_at": len(one.row.results),
        "results": [_image(image, table) for image in one.row.results[:SHOWN_ALONE]],
    }


TYPES: Mapping[str, str] = {"list": "application/json", "html": "text/html; charset=utf-8", "png": "image/png"}


def listed(found: Found) -> dict[str, Any]:
    """Return the list as infer.py writes it."""
    return result_document(found.result)


def written(found: Found) -> bytes:
    """Return the list as the page or the picture that infer.py writes. Raises UserError for a picture that is gone."""
    with tempfile.TemporaryDirectory(prefix="anyreid-") as folder:
        path = Path(folder) / "retrieval.png"
        write_files(path, found.result)
        return path.with_suffix(f".{found.asked.format}").read_bytes()
