"""The features behind an evaluation, for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.vocabulary import Combination
from datasets.structures import EvalSplit, Person, Source
from solver.evaluation.comparison import Comparison
from solver.evaluation.ranked_split import RankedSplit
from solver.run_directory import check_no_artefact
from utils.errors import UserError
from utils.files import atomic_path, check_folder
from utils.retrieval.exact import as_compared

SUFFIX = ".npz"


def export_path(name: str) -> Path:
    """Return the path of exported features: NAME.npz."""
    return Path(name) if Path(name).suffix.lower() == SUFFIX else Path(f"{name}{SUFFIX}")


def check_export(name: str) -> None:
    """Raise UserError, before any work, for a folder, a file in place of a folder, and a file of a run's own."""
    path = export_path(name)
    if path.is_dir():
        raise UserError(f"--export {name}: {path} is a folder; choose another name")
    check_folder(path.parent, "--export")
    check_no_artefact(path, "--export")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays as .npz without pickles, atomically; return the file."""
    # Into a stream: NumPy appends .npz to a name that ends otherwise, .NPZ among them.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def person_array(persons: Sequence[Person | None]) -> NDArray[Any]:
    """Persons as users know them: int64 where all are numbers, else names; 0 or an empty name where unknown."""
    if all(isinstance(person, int | None) for person in persons):
        return np.asarray([person or 0 for person in persons], dtype=np.int64)
    return np.asarray(["" if person is None else str(person) for person in persons])


def instruction_entry(instruction: Source) -> dict[str, str]:
    """Return what a model was told, as a JSON object: modality -> text or file, and which part of the picture."""
    crop = {"crop": instruction.crop} if instruction.crop else {}
    return {instruction.modality.value: instruction.value, **crop}


def instruction_texts(instructions: Sequence[Source | None]) -> NDArray[np.str_]:
    """Return instructions (n,) as JSON texts, empty = none."""
    found = ["" if told is None else json.dumps(instruction_entry(told), ensure_ascii=False) for told in instructions]
    return np.asarray(found, dtype=str)


def source_names(split: EvalSplit) -> tuple[list[str], list[NDArray[np.int32]]]:
    """Return every distinct file or text of the query lists, and for each list (n, size) which of them its queries are
    made of.
    """
    numbers: dict[str, int] = {}
    parts = [
        np.array(
            [[numbers.setdefault(source.value, len(numbers)) for source in entry] for entry in listed.entries],
            dtype=np.int32,
        ).reshape(len(listed.entries), len(listed.combination))
        for listed in split.query_lists
    ]
    return list(numbers), parts


def exported_features(features: Tensor, comparison: Comparison, asked: Sequence[Combination]) -> NDArray[np.float32]:
    """Return features (n, D) for other programs: of length 1 where the cosine of whole features is compared, so that
    products are cosines; else as the model gives them. asked: what queries are made of.
    """
    width = features.shape[1]
    unit = comparison.similarity == "cosine" and all(
        comparison.columns(combination, width) == (0, width) for combination in asked
    )
    return as_compared(features, "cosine") if unit else features.float().cpu().numpy()


def query_columns(comparison: Comparison, asked: Sequence[Combination], width: int) -> NDArray[np.int64]:
    """Return (n, 2): for queries of these modalities the first column that is compared and the one behind the last."""
    columns = [comparison.columns(combination, width) for combination in asked]
    return np.asarray(columns, dtype=np.int64).reshape(len(asked), 2)


def export_evaluation(name: str, ranked: RankedSplit, weights: str) -> Path:
    """Write the features of a split as .npz without pickles, atomically; return the file.

    features (F, D) float32, see `exported_features`: every encoded source and mixed query once. similarity: how they
    are compared. gallery_rows (G,) int64 into
    them, gallery_files (G,), gallery_person_ids (G,), gallery_camera_ids (G,) int64, -1 unknown: the readable images.
    `TASK/rows`, `TASK/person_ids` and `TASK/camera_ids` (n,) of each query list; `TASK/sources` (n, size) int32 into
    source_names: files, and texts; `TASK/columns` (2,): between which columns it is compared. Where the model
    follows instructions, `TASK/instructions` (n,) and gallery_instructions (G,): JSON texts of what it was told, empty
    = nothing. weights: the fingerprint.
    """
    plan, split = ranked.plan, ranked.split
    names, parts = source_names(split)
    comparison, width = ranked.comparison, ranked.features.shape[1]
    arrays: dict[str, Any] = {
        "features": exported_features(ranked.features, comparison, [listed.combination for listed in plan.lists]),
        "similarity": np.asarray(comparison.similarity),
        "gallery_rows": plan.gallery[ranked.gallery],
        "gallery_files": np.asarray([split.gallery[place].value for place in ranked.gallery]),
        "gallery_person_ids": person_array([split.person(split.gallery_ids[place]) for place in ranked.gallery]),
        "gallery_camera_ids": plan.gallery_cameras[ranked.gallery],
        "source_names": np.asarray(names, dtype=str),
        "weights": np.asarray(weights),
    }
    if ranked.instructed and split.gallery_instructions:
        arrays["gallery_instructions"] = instruction_texts(
            [split.gallery_instructions[place] for place in ranked.gallery]
        )
    for listed, sources in zip(plan.lists, parts, strict=True):
        if ranked.instructed and listed.queries.instructions:
            arrays[f"{listed.name}/instructions"] = instruction_texts(listed.queries.instructions)
        arrays[f"{listed.name}/rows"] = listed.rows
        arrays[f"{listed.name}/columns"] = np.asarray(comparison.columns(listed.combination, width), dtype=np.int64)
        arrays[f"{listed.name}/person_ids"] = person_array([split.person(int(one)) for one in listed.person_ids])
        arrays[f"{listed.name}/camera_ids"] = listed.camera_ids
        arrays[f"{listed.name}/sources"] = sources
    return write_arrays(export_path(name), arrays)
