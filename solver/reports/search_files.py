"""What a search writes and prints: picture, page, JSON and features.

Shapes: Q queries, N encoded gallery images, D embed_dim.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solver.calibration import Calibration
from solver.evaluation.result import TIE_RULE
from solver.reports.features_file import (
    export_path,
    exported_features,
    instruction_entry,
    instruction_texts,
    person_array,
    query_columns,
    write_arrays,
)
from solver.reports.grid import OWN_IMAGE, describe_query, printable, word_of, write_grid
from solver.reports.html_page import write_page
from solver.runs import TrainedModel
from solver.search.queries import Query
from solver.search.ranked import Answer, EncodedQueries, RankedImage, RankedQuery, Verdict
from solver.search.searched import SearchedGallery
from utils.errors import shortened
from utils.files import write_json
from utils.log import library_versions

SHOWN_QUERIES, SHOWN_RESULTS = 50, 50
"""Bounds of the picture and the page; the JSON file lists everything."""
PRINTED_RESULTS = 10
SHOWN_FILES = 5
LARGER = 2.0
"""A gallery so many times as large as those of the calibration changes the false alarm rate for readers."""
TOLD = {
    "same": "the instruction of the queries",
    "crop": "each image's own upper body",
    "lists": "what the test list says",
}
"""What a gallery's images are told, for readers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """From where on an image of the right person is right."""

    tau: float
    """Least cosine of its annotation and the query's."""
    encoder: str
    """What compares texts; see eval.relevance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Everything that the written files are made of."""

    trained: TrainedModel
    encoded: EncodedQueries
    gallery: SearchedGallery
    ranked: tuple[RankedQuery, ...]
    requested: int
    precision: str
    device: str
    foreign: bool = False
    """The gallery is the user's own."""
    said: tuple[str, ...] = ()
    """Of the queries' texts."""
    calibration: Calibration | None = None
    """Thresholds that answers are given by, None = there are none."""
    threshold: Threshold | None = None
    """From where on the right person is right; None = everywhere."""

    @property
    def listed(self) -> int:
        """Results of each query."""
        return min(self.requested, self.gallery.count)

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know: a clamped top-k, skipped images and queries, how the checkpoint was
        chosen.
        """
        found = [*self.trained.notes, *self.said, *([self.gallery.gallery.note] if self.gallery.gallery.note else [])]
        if self.listed < self.requested:
            found.append(f"top-k {self.requested} is larger than the gallery: all {self.listed} images are listed")
        if self.gallery.unreadable:
            found.append(f"{len(self.gallery.unreadable)} unreadable gallery images were skipped")
        found += [self.gallery.approximate] if self.gallery.approximate and self.ranked else []
        found += self._outdated_notes()
        if self.encoded.failures:
            found.append(f"{len(self.encoded.failures)} queries with an unreadable image were skipped")
        itself = sum(row.own_images > 0 for row in self.ranked)
        if itself:
            found.append(
                f"{itself} of {len(self.ranked)} queries are in the gallery themselves, as the same file or a byte "
                f"copy: marked {OWN_IMAGE!r}, and no match"
            )
        found += self._calibration_notes()
        if self.trained.selected_on == "test":
            found.append("selected on test: the checkpoint was chosen by the test split")
        return tuple(found)

    def _outdated_notes(self) -> list[str]:
        outdated = {image.path: image.outdated for row in self.ranked for image in row.results if image.outdated}
        if not outdated:
            return []
        named = [f"{printable(path)} ({what})" for path, what in outdated.items()]
        return [
            f"{len(outdated)} files of results are no longer what was encoded: {shortened(named, SHOWN_FILES)}; "
            "python -m solver.gallery add takes changed ones anew, remove --missing takes missing ones out"
        ]

    def _calibration_notes(self) -> list[str]:
        if not self.ranked:
            return []
        without = sorted({row.query.task for row in self.ranked if row.cutoff is None})
        if self.calibration is None:
            return ["not calibrated, so that nobody is said to be there or not: infer.py --calibrate sets thresholds"]
        found = [f"not calibrated for queries of {', '.join(without)} in this gallery"] if without else []
        images = self.gallery.count
        larger = [row.cutoff for row in self.ranked if row.cutoff is not None and images > LARGER * row.cutoff.images]
        if larger:
            rates = [cutoff.expected_rate(images) for cutoff in larger]
            found.append(
                f"this gallery has {images} images, {images / min(cutoff.images for cutoff in larger):.1f} times those "
                f"that thresholds were set in: expect false alarms in up to {100 * max(rates):.2g} % of searches"
            )
        if self.foreign and len(without) < len({row.query.task for row in self.ranked}):
            found.append(
                f"thresholds were set on {self.calibration.dataset}: in other pictures their rate of false alarms is "
                "not known"
            )
        return [*found, *([self.calibration.note] if self.calibration.note else [])]


def result_document(result: SearchResult) -> dict[str, Any]:
    """Return everything that the JSON file holds, as plain values; ranks count from 1."""
    gallery, trained = result.gallery, result.trained
    return {
        "queries": [_query_document(row) for row in result.ranked],
        "top_k": {"requested": result.requested, "listed": result.listed},
        "gallery": {
            "name": gallery.gallery.name,
            "modalities": [modality.value for modality in gallery.modalities],
            "images": gallery.count,
            "instruction": gallery.gallery.told,
            "reused": gallery.reused,
            "unreadable": [{"path": path, "reason": reason} for path, reason in gallery.unreadable],
        },
        "unreadable_queries": [{"name": query.name, "reason": reason} for query, reason in result.encoded.failures],
        "similarity": result.encoded.comparison.name,
        "protocol": gallery.gallery.protocol,
        **({} if result.threshold is None else {"threshold": dataclasses.asdict(result.threshold)}),
        "tie_rule": TIE_RULE,
        "precision": result.precision,
        "checkpoint": {
            "file": str(trained.checkpoint),
            "fingerprint": trained.fingerprint,
            "epoch": trained.epoch,
            "step": trained.step,
            "selected_on": trained.selected_on or "unknown",
        },
        "notes": list(result.notes()),
        "versions": library_versions(),
    }


def _query_document(row: RankedQuery) -> dict[str, Any]:
    return {
        "query": _described(row.query),
        "matches_in_gallery": row.matches,
        "first_match": row.first_match,
        **({} if row.below is None else {"below_threshold": row.below}),
        "calibration": calibration_document(row),
        "results": [
            {
                "rank": image.rank,
                "path": image.path,
                "similarity": round(image.similarity, 7),
                **({} if image.person_id is None else {"person_id": image.person_id}),
                **_judged(image),
                **({} if image.answer is None else {"answer": image.answer.value}),
                **({"own_image": True} if image.own_image else {}),
                **({"file": image.outdated} if image.outdated else {}),
            }
            for image in row.results
        ],
    }


def calibration_document(row: RankedQuery) -> dict[str, Any]:
    """Return what the thresholds say of a query, as plain values."""
    if row.cutoff is None:
        return {"answer": Answer.NOT_CALIBRATED.value}
    return {
        "answer": "somebody" if row.above else "nobody",
        "above": row.above,
        "threshold": row.cutoff.threshold,
        "false_alarm_rate": row.cutoff.rate,
        "calibrated_images": row.cutoff.images,
    }


def _judged(image: RankedImage) -> dict[str, bool]:
    if image.verdict is Verdict.UNKNOWN:
        return {}
    below = {"below_threshold": True} if image.verdict is Verdict.BELOW else {}
    return {"match": image.verdict is Verdict.MATCH, **below}


def _described(query: Query) -> dict[str, Any]:
    return {
        "name": query.name,
        "task": query.task,
        "person_id": query.person_id,
        **{source.modality.value: source.value for source in query.sources},
        **({} if query.instruction is None else {"instruction": instruction_entry(query.instruction)}),
    }


def write_files(output: Path, result: SearchResult) -> None:
    """Write picture, page and JSON; the JSON file last: when it is there, the others are too."""
    shown = [dataclasses.replace(row, results=row.results[:SHOWN_RESULTS]) for row in result.ranked[:SHOWN_QUERIES]]
    hidden = _hidden(result)
    gallery = f"{result.gallery.gallery.name} ({result.gallery.count:,} images)"
    model = f"{result.trained.checkpoint} ({result.trained.fingerprint})"
    title = (
        f"Retrieval: {shown[0].query.task}" if len(result.ranked) == 1 else f"Retrieval: {len(result.ranked)} queries"
    )
    write_grid(
        output,
        shown,
        title,
        printable(" · ".join([f"gallery: {gallery}", f"weights: {result.trained.fingerprint}", *hidden])),
    )
    facts = {
        "Gallery": gallery,
        "Weights": model,
        "Protocol": f"{result.encoded.comparison.name}, {result.gallery.gallery.protocol}",
        "Ties": TIE_RULE,
        "Arithmetic": result.precision,
    }
    if result.gallery.gallery.told in TOLD:
        facts["Gallery is told"] = TOLD[result.gallery.gallery.told]
    if result.threshold is not None:
        facts["Threshold"] = (
            f"tau {result.threshold.tau:g} on cosines of annotations, texts by {result.threshold.encoder}"
        )
    if result.calibration is not None:
        facts["Thresholds"] = (
            f"{result.calibration.file.name}, set on the {result.calibration.split} persons of "
            f"{result.calibration.dataset}"
        )
    facts |= {f"Note {number}": note for number, note in enumerate((*result.notes(), *hidden), start=1)}
    write_page(output.with_suffix(".html"), title, facts, {"": shown})
    write_json(output.with_suffix(".json"), result_document(result))


def _hidden(result: SearchResult) -> list[str]:
    found = []
    if len(result.ranked) > SHOWN_QUERIES:
        found.append(f"the first {SHOWN_QUERIES} of {len(result.ranked)} queries are shown, all are in the JSON file")
    if result.listed > SHOWN_RESULTS:
        found.append(f"the first {SHOWN_RESULTS} of {result.listed} results are shown, all are in the JSON file")
    return found


def export_features(name: str, result: SearchResult) -> Path:
    """Write the features of queries and gallery as .npz without pickles; return the file.

    query_features (Q, D), gallery_features (N, D) float32, see `exported_features`; similarity, query_columns (Q, 2):
    how they are compared, and between which columns for each query; query_descriptions (Q,) JSON texts;
    query_instructions (Q,), gallery_instructions (N,): JSON texts of what the model was told with them, empty =
    nothing; query_person_ids (Q,) and gallery_person_ids (N,) with their flags query_person_known (Q,),
    gallery_person_known: int64 where the data set numbers its persons, else the user's names; gallery_paths (N,);
    weights: the fingerprint.
    """
    gallery, queries, comparison = result.gallery, result.encoded.queries, result.encoded.comparison
    features, images = gallery.all_features(), gallery.images(gallery.every)
    kinds, width = [query.combination for query in queries], features.shape[1]
    arrays = {
        "query_features": exported_features(result.encoded.features, comparison, kinds),
        "query_columns": query_columns(comparison, kinds, width),
        "similarity": np.asarray(comparison.similarity),
        "query_descriptions": np.asarray(
            [json.dumps(_described(query), ensure_ascii=False) for query in queries], dtype=str
        ),
        "query_person_ids": person_array([query.person_id for query in queries]),
        "query_person_known": np.asarray([query.person_id is not None for query in queries], dtype=bool),
        "gallery_features": exported_features(features, comparison, kinds),
        "query_instructions": instruction_texts([query.instruction for query in queries]),
        "gallery_instructions": instruction_texts(gallery.told(gallery.every)),
        "gallery_paths": np.asarray([image.path for image in images]),
        "gallery_person_ids": person_array([image.person_id for image in images]),
        "gallery_person_known": np.asarray(gallery.persons_known),
        "weights": np.asarray(result.trained.fingerprint),
    }
    return write_arrays(export_path(name), arrays)


def exported_lines(result: SearchResult) -> list[str]:
    """Return what is printed where only features are written."""
    counts = f"{len(result.encoded.queries):,} queries and {result.gallery.count:,} gallery images"
    return [f"features of {counts}", *result.notes()]


def printed_lines(result: SearchResult) -> list[str]:
    """Return what is printed of the results."""
    lines: list[str] = []
    for row in result.ranked[:SHOWN_QUERIES]:
        lines.append(describe_query(row))
        for image in row.results[:PRINTED_RESULTS]:
            lines.append(f"  {image.rank:>3}  {image.similarity:7.4f}  {word_of(image):<5}  {printable(image.path)}")
    return [*lines, *result.notes(), *_hidden(result)]
