"""The rows of a manifest: a CSV or JSONL file that lists a user's own images. Reading and writing, no meaning."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from configs.vocabulary import Modality, Task
from utils.errors import UserError, nearest
from utils.files import RepeatedKeyError, atomic_path, ordinary, parse_json
from utils.texts import one_form

SUFFIXES = (".csv", ".jsonl")
SPLITS = ("train", "val", "query", "gallery", "test")
"""`test` and `val` rows are both queries and gallery items (leave-one-out)."""
MAX_BYTES = 1 << 30
"""About ten million rows; a larger file is hardly a manifest."""
MAX_FIELD = 1 << 20
"""Characters of one cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One row. Absent values are empty. path, clothes_image: as written. task: None = by modality and caption. where:
    file and line, for error messages.
    """

    path: str = ""
    person: str = ""
    camera: str = ""
    clothes: str = ""
    modality: Modality = Modality.RGB
    caption: str = ""
    split: str = ""
    task: Task | None = None
    clothes_image: str = ""
    where: str = ""


TASKS = tuple(task for task in Task if task is not Task.ORB)
"""What the column task may say."""
COLUMNS = tuple(entry.name for entry in fields(ManifestRow) if entry.name != "where")


def read_manifest(path: Path, *, persons: bool = True) -> list[ManifestRow]:
    """Return the rows of a CSV (UTF-8 with or without BOM, comma, header) or JSONL file. persons: every row has to name
    one. Raises UserError naming file and line.
    """
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
        hint = f"it holds {', '.join(found[:3])}" if found else "for a folder per person use the data set 'folders'"
        raise UserError(f"data.root={path} is a folder: give the manifest file itself (.csv or .jsonl); {hint}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a manifest ends in .csv or .jsonl; rename it or give another file")
    text = _text(path)
    rows = list((_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path, text, persons))
    if not rows:
        raise UserError(f"{path}: no rows; write at least a header and the columns path and person")
    given = [bool(row.split) for row in rows]
    if any(given) and not all(given):
        row = rows[given.index(False)]
        raise UserError(
            f"{row.where}: split is empty while other rows have one; write {', '.join(SPLITS)}, or no split at all"
        )
    return rows


def _text(path: Path) -> str:
    try:
        if ordinary(path).stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes, more than the limit of {MAX_BYTES:,}; split the manifest"
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such manifest: {path}; set data.root to a .csv or .jsonl file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; correct the path or its permissions") from error


def _csv_rows(path: Path, text: str, persons: bool) -> Iterator[ManifestRow]:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    before = 0
    while True:
        # A quoted caption may span lines: the place is the row's first line.
        where = f"{path.name} line {before + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}: not valid CSV ({error}); quote the cell or correct it") from error
        before = reader.line_num
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, where, persons)
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{where}: {len(cells)} cells, but the header has {len(header)} columns; quote cells that contain a "
                "comma"
            )
        yield _row(dict(zip(header, cells)), where, persons)


def _header(cells: list[str], where: str, persons: bool) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise UserError(f"{where}: columns are not separated by commas; save the file as comma-separated CSV")
    _check_names(names, where)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{where}: column {repeated!r} stands twice; remove one")
    if ("person" not in names and persons) or "path" not in names:
        raise UserError(
            f"{where}: the header has no column {'path' if 'path' not in names else 'person'!r}; write a header with "
            f"path, person and any of {', '.join(COLUMNS[2:])}"
        )
    return names


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if not name or re.fullmatch(r"unnamed: \d+", name):
            raise UserError(
                f"{where}: a column without a name, such as pandas writes for its index; write it with "
                "DataFrame.to_csv(..., index=False), or remove the column"
            )
        if name not in COLUMNS:
            raise UserError(f"{where}: unknown column {name!r}: {nearest(name, COLUMNS)}")


def _json_rows(path: Path, text: str, persons: bool) -> Iterator[ManifestRow]:
    # Not splitlines: a JSON text may hold other line separators.
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path.name} line {number}"
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except RepeatedKeyError as error:
            raise UserError(f"{where}: {error}; remove one of them") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}); write one object per line") from error
        if not isinstance(entry, dict):
            raise UserError(f'{where}: must be an object such as {{"path": "a.jpg", "person": "anna"}}')
        _check_names(entry, where)
        yield _row({name: _cell(name, value, where) for name, value in entry.items()}, where, persons)


def _cell(name: str, value: Any, where: str) -> str:
    if value is None:
        return ""
    # Numbers are names here: person 7 and person "7" are the same.
    if isinstance(value, int) and not isinstance(value, bool) and name in ("person", "camera", "clothes"):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} = {value!r} must be a text; put it into quotes")
    return value


def _row(cells: dict[str, str], where: str, persons: bool) -> ManifestRow:
    cells = {name: cell.strip() for name, cell in cells.items()}
    split, modality = cells.get("split", "").lower(), cells.get("modality", "").lower() or Modality.RGB.value
    if split and split not in SPLITS:
        raise UserError(f"{where}: split = {split!r}: {nearest(split, SPLITS)}")
    names = [entry.value for entry in Modality]
    if modality not in names:
        raise UserError(f"{where}: modality = {modality!r}: {nearest(modality, names)}")
    task = cells.get("task", "").lower()
    if task and task not in [entry.value for entry in TASKS]:
        raise UserError(f"{where}: task = {task!r}: {nearest(task, [entry.value for entry in TASKS])}")
    _encodable(cells.values(), where)
    # A path must stay as the file is called.
    cells |= {name: one_form(cells[name]) for name in ("person", "camera", "clothes") if name in cells}
    known: dict[str, Any] = {"modality": Modality(modality), "task": Task(task) if task else None}
    row = ManifestRow(**{**cells, **known, "split": split, "where": where})
    _check_row(row, persons)
    _check_task(row)
    return row


def _check_row(row: ManifestRow, persons: bool) -> None:
    if persons and not row.person:
        raise UserError(f"{row.where}: person is empty; every row names one")
    if "\0" in row.path:
        raise UserError(f"{row.where}: {row.path!r} is not a path; correct it")
    if row.modality is not Modality.TEXT:
        if not row.path:
            raise UserError(
                f"{row.where}: path is empty; a row without an image must say modality text and have a caption"
            )
        return
    if row.path:
        raise UserError(
            f"{row.where}: modality is text but there is a path; leave the path empty, or name the image's modality"
        )
    if not row.caption:
        raise UserError(f"{row.where}: modality is text but the caption is empty; write the caption")
    if row.split in ("train", "gallery"):
        raise UserError(
            f"{row.where}: a caption without an image cannot be in {row.split}; give its image, or make it a query"
        )


def _check_task(row: ManifestRow) -> None:
    """Raise UserError for what the task of a row cannot do without, or has no use for."""
    task = row.task
    if row.clothes_image and task not in (Task.CC, Task.CTCC):
        raise UserError(
            f"{row.where}: clothes_image belongs to the tasks cc and ctcc, and task is "
            f"{task.value if task else 'empty'}; write one of them, or leave the picture away"
        )
    if "\0" in row.clothes_image:
        raise UserError(f"{row.where}: {row.clothes_image!r} is not a path; correct it")
    if row.modality is Modality.TEXT and task not in (None, Task.T2I):
        raise UserError(
            f"{row.where}: modality is text and task {task.value}, but a caption by itself is a query of t2i; leave "
            "the task away, or give the image"
        )
    if not row.caption and (task is Task.LI or (task is Task.T2I and row.split == "train")):
        raise UserError(
            f"{row.where}: task is {task.value}, which needs a description of the image; write it into caption"
        )


def _encodable(values: Iterable[str], where: str) -> None:
    # JSON can hold half of a surrogate pair, and so can a file name that is not UTF-8; a text file cannot.
    for value in values:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {value!r} cannot be written as UTF-8; rename it") from error


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write rows, atomically, with those columns that any of them uses. Raises UserError for a name that is no
    manifest's.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a manifest ends in .csv or .jsonl; choose such a name")
    rows = list(rows)
    table = [
        {
            "path": row.path,
            "person": row.person,
            "camera": row.camera,
            "clothes": row.clothes,
            "modality": row.modality.value,
            "caption": row.caption,
            "split": row.split,
            "task": row.task.value if row.task else "",
            "clothes_image": row.clothes_image,
        }
        for row in rows
    ]
    plain = {name: "" for name in COLUMNS} | {"modality": Modality.RGB.value}
    used = [
        name for name in COLUMNS if name in ("path", "person") or any(entry[name] != plain[name] for entry in table)
    ]
    for row, entry in zip(rows, table):
        _encodable(entry.values(), row.where or str(path))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        if path.suffix.lower() == ".csv":
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(used)
            writer.writerows([entry[name] for name in used] for entry in table)
        else:
            stream.writelines(
                json.dumps({name: entry[name] for name in used if entry[name]}, ensure_ascii=False) + "\n"
                for entry in table
            )
