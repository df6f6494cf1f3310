"""Covers: datasets/releases/manifest, datasets/formats/manifest_rows, datasets/formats/manifest_split. A user's own
images of the six tasks: the columns task and clothes_image.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trees import plant

from configs.schema.data import DataConfig, InstructionConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.build import build_benchmark
from datasets.formats.manifest_rows import read_manifest, write_manifest
from datasets.formats.manifest_split import SplitOptions, divide, moved, source_rows
from datasets.releases.manifest import DATASET
from datasets.structures import ReadOptions, Record
from utils.errors import UserError

HEADER = "path,person,camera,clothes,modality,caption,split,task,clothes_image"
ROWS = """
a/1.jpg,anna,1,red,,,train,CTCC,c/red.png
a/1.jpg,anna,1,red,,a red coat,train,li,
a/2.jpg,anna,2,blue,,,train,ctcc,
a/3.jpg,anna,2,blue,,,train,cc,c/any.png
a/4.jpg,anna,2,blue,,a blue coat,train,,
b/1.jpg,ben,1,red,,,query,ctcc,c/green.png
b/1.jpg,ben,1,red,,,query,ctcc,c/red.png
b/1.jpg,ben,1,red,,a green coat,query,li,
b/1.jpg,ben,1,red,,a grey coat,query,li,
b/1.jpg,ben,1,red,,,query,cc,
,ben,,,text,somebody in green,query,,
b/2.jpg,ben,2,green,,a green jacket,gallery,li,
b/2.jpg,ben,2,green,,,gallery,ctcc,c/green.png
d/1.jpg,dora,2,,nir,,query,trad,
d/2.jpg,dora,1,,,,gallery,,
"""


def own(folder: Path, rows: str = ROWS) -> Path:
    for line in rows.splitlines():
        cells = line.split(",")
        plant(
            folder, *(cell for cell in (cells[0], cells[-1]) if cell.endswith((".jpg", ".png")) and "gone" not in cell)
        )
    path = folder / "own.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def told(record: Record) -> tuple[str, str, str]:
    """Task, picture of clothes, and description."""
    clothes = record.annotations.get(AnnotationKind.CLOTHES)
    text = record.annotations.get(AnnotationKind.DESCRIPTION)
    return record.task.value, Path(clothes.value).stem if clothes else "", text.value if text else ""


def test_each_row_is_of_its_task_with_its_annotation(tmp_path: Path) -> None:
    release = DATASET.read(own(tmp_path), ReadOptions())
    assert [told(record) for record in release.parts["train"]] == [
        ("ctcc", "red", ""),
        ("li", "", "a red coat"),
        ("ctcc", "", ""),
        ("cc", "any", ""),
        ("t2i", "", "a blue coat"),
    ]
    # The caption of li describes what is looked for; that of t2i is searched with.
    assert [Modality.TEXT in record.sources for record in release.parts["train"]] == [False] * 4 + [True]
    assert [told(record) for record in release.parts["query"]] == [
        ("ctcc", "green", ""),
        ("ctcc", "red", ""),
        ("li", "", "a green coat"),
        ("li", "", "a grey coat"),
        ("cc", "", ""),
        ("t2i", "", "somebody in green"),
        ("trad", "", ""),
    ]
    # An image is searched once, whatever it asks for elsewhere.
    assert [told(record) for record in release.parts["gallery"]] == [("li", "", "a green jacket"), ("trad", "", "")]


def test_own_images_reach_training_and_test_with_their_instructions(tmp_path: Path) -> None:
    config = DataConfig(dataset="manifest", root=str(own(tmp_path)))
    found = build_benchmark(config, select="last", need_train=True, instruction=InstructionConfig())
    assert [record.task for record in found.train] == [Task.CTCC, Task.LI, Task.CTCC, Task.CC, Task.T2I]
    by_modality = {queries.combination[0]: queries for queries in found.splits["test"].query_lists}
    asked = [Path(source.value).name for source in by_modality[Modality.RGB].instructions[:4] if source]
    assert asked == ["green.png", "red.png", "a green coat", "a grey coat"]
    assert any("1 records have no clothes image" in note for note in found.notes)


def test_tasks_and_pictures_survive_writing_dividing_and_moving(tmp_path: Path) -> None:
    rows = read_manifest(own(tmp_path / "data"))
    for name in ("again.csv", "again.jsonl"):
        write_manifest(tmp_path / "data" / name, rows)
        again = read_manifest(tmp_path / "data" / name)
        keys = ("path", "person", "caption", "task", "clothes_image", "split")
        assert [[getattr(row, key) for key in keys] for row in again] == [
            [getattr(row, key) for key in keys] for row in rows
        ]
    (tmp_path / "lists").mkdir()
    there = moved(rows[0], tmp_path / "data", tmp_path / "lists")
    assert (there.path, there.clothes_image) == ("../data/a/1.jpg", "../data/c/red.png")
    assert os.path.isfile(tmp_path / "lists" / there.clothes_image)
    people = "".join(
        f"{person}/{number}.jpg,{person},{number},,,{person} in red {number},,li,\n"
        for person in ("a", "b", "c", "d", "e", "f")
        for number in (1, 2, 3)
    )
    result = divide(source_rows(own(tmp_path / "li", f"\n{people}"), resplit=False), SplitOptions(val=0, test=0.5))
    assert {row.task for row in result.rows} == {Task.LI} and len(result.rows) == 18, "no description is a query itself"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a/1.jpg,a,,,,,train,ctc,", "own.csv line 2: task = 'ctc': did you mean 'ctcc'"),
        ("a/1.jpg,a,,,,,train,orb,", "line 2: task = 'orb'"),
        ("a/1.jpg,a,,,,,train,,c/1.png", "line 2: clothes_image belongs to the tasks cc and ctcc, and task is empty"),
        ("a/1.jpg,a,,,,x,train,li,c/1.png", "line 2: clothes_image belongs to .* and task is li"),
        (
            "a/1.jpg,a,,,,,gallery,li,",
            "line 2: task is li, which needs a description of the image; write it into caption",
        ),
        ("a/1.jpg,a,,,,,train,t2i,", "line 2: task is t2i, which needs a description"),
        (",a,,,text,words,query,li,", "line 2: modality is text and task li, but a caption by itself"),
        ("a/1.jpg,a,,,,,train,ctcc,c/gone.png", "line 2: no such image: .*c/gone.png"),
        ("a/1.jpg,a,,,,,train,ctcc,c/notes.txt", "line 2: "),
        (
            "a/1.jpg,a,,,,,train,cc,\na/1.jpg,a,,,,,train,cc,",
            "line 3: a/1.jpg is listed again, first in own.csv line 2",
        ),
    ],
)
def test_what_a_task_cannot_mean_is_refused(row: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        DATASET.read(own(tmp_path, f"\n{row}\n"), ReadOptions())
