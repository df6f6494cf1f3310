"""Covers: datasets/releases/manifest, datasets/releases/folders, datasets/formats/manifest_rows. A user's own data: a
manifest or a folder per person.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from trees import plant, write_lines

from configs.schema.data import DataConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.catalogue import dataset_entry, read_release
from datasets.formats.manifest_rows import COLUMNS, ManifestRow, read_manifest, write_manifest
from datasets.releases.folders import DATASET as FOLDERS
from datasets.releases.manifest import DATASET as MANIFEST
from datasets.structures import ReadOptions, Release
from utils.errors import UserError

OPTIONS = ReadOptions()


def manifest(folder: Path, text: str, name: str = "own.csv", bom: bool = False) -> Path:
    """Write a manifest and an image for every word that ends in .jpg."""
    for word in text.replace(",", " ").replace('"', " ").split():
        if word.endswith(".jpg") and not word.startswith("absent"):
            plant(folder, word)
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    return path


def read(path: Path, options: ReadOptions = OPTIONS) -> Release:
    return MANIFEST.read(path, options)


def names(release: Release, part: str) -> list[str]:
    return [
        Path(source.value).name
        for record in release.parts[part]
        for source in record.sources.values()
        if source.modality is not Modality.TEXT
    ]


FULL = """path,person,camera,clothes,modality,caption,split
t/a1.jpg,anna,hall,red,,a red coat,train
t/a1.jpg,anna,hall,red,,"a coat, red",train
t/b1.jpg,ben,door,,nir,,train
q/c1.jpg,carl,hall,1,,,query
,carl,,,text,"a man
in green",query
g/c2.jpg,carl,door,2,,green shirt,gallery
g/d1.jpg,dora,door,,,,gallery
v/e1.jpg,eva,hall,,,,val
v/e2.jpg,eva,door,,,,val
"""


@pytest.mark.parametrize("bom", [False, True])
def test_every_column(tmp_path: Path, bom: bool) -> None:
    release = read(manifest(tmp_path, FULL, bom=bom))
    assert {part: len(records) for part, records in release.parts.items()} == {
        "train": 3,
        "query": 2,
        "gallery": 2,
        "val_query": 2,
        "val_gallery": 2,
    }
    # Sorted texts: anna 0, ben 1, carl 2, dora 3, eva 4; door 0, hall 1.
    first, second, third = release.parts["train"]
    assert (first.person_id, first.camera_id, second.person_id, third.person_id, third.camera_id) == (0, 1, 0, 1, 0)
    assert first.sources[Modality.RGB].value == str(tmp_path / "t" / "a1.jpg")
    assert [record.sources[Modality.TEXT].value for record in (first, second)] == ["a red coat", "a coat, red"]
    assert list(third.sources) == [Modality.NIR] and third.clothes_id == -1
    image, text = release.parts["query"]
    assert list(image.sources) == [Modality.RGB] and text.sources[Modality.TEXT].value == "a man\nin green"
    assert list(text.sources) == [Modality.TEXT] and text.camera_id == -1 and text.person_id == image.person_id == 2
    found, _ = release.parts["gallery"]
    assert (
        list(found.sources) == [Modality.RGB] and found.annotations[AnnotationKind.DESCRIPTION].value == "green shirt"
    )
    assert found.clothes_id != image.clothes_id and {found.clothes_id // 1000, image.clothes_id // 1000} == {2}
    # Line 6 and 7 hold one row: the next one starts in line 8.
    assert (text.name, found.name) == ("own.csv line 6", "own.csv line 8")
    # Each row has its own task: an infrared row changes no other's.
    assert [record.task for record in release.parts["train"]] == [Task.T2I, Task.T2I, Task.VI]
    assert [record.task for record in release.parts["query"]] == [Task.TRAD, Task.T2I]
    assert [record.task for record in release.parts["gallery"]] == [Task.T2I, Task.TRAD]


def test_outfits_are_numbered_by_their_sorted_names(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{number}.jpg" for number in range(5)))
    worn = ("zebra", "apple", "mango")
    rows = [f"{number}.jpg,b,{clothes}" for number, clothes in enumerate(worn)] + ["3.jpg,a,zebra", "4.jpg,b,apple"]
    parts = read(manifest(tmp_path, "\n".join(["path,person,clothes", *rows]))).parts
    # Person a is 0, person b is 1; apple 0, mango 1, zebra 2.
    assert [record.clothes_id for record in parts["train"]] == [1002, 1000, 1001, 0, 1000]


def test_jsonl_says_the_same(tmp_path: Path) -> None:
    by_csv = read(manifest(tmp_path, FULL))
    rows = [
        {
            "person": row.person,
            **{
                name: getattr(row, name)
                for name in ("path", "camera", "clothes", "caption", "split")
                if getattr(row, name)
            },
            **({"modality": row.modality.value} if row.modality is not Modality.RGB else {"modality": None}),
        }
        for row in read_manifest(tmp_path / "own.csv")
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    by_json = read(path)
    # Sources compare without their places.
    for part, records in by_csv.parts.items():
        assert [(r.person_id, r.camera_id, r.clothes_id, dict(r.sources)) for r in records] == [
            (r.person_id, r.camera_id, r.clothes_id, dict(r.sources)) for r in by_json.parts[part]
        ]


def test_words_of_the_format_are_read_in_capitals_too(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = ["Path,PERSON,Modality,split", "a.jpg,Anna,NIR,Query", "b.jpg,anna,Rgb,GALLERY", "c.jpg,carl,,Train"]
    parts = read(manifest(tmp_path, "\n".join(rows))).parts
    assert list(parts["query"][0].sources) == [Modality.NIR] and list(parts["gallery"][0].sources) == [Modality.RGB]
    # Names are the user's.
    assert parts["query"][0].person_id != parts["gallery"][0].person_id


def test_numbers_are_names_in_jsonl(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        plant(tmp_path, f"{name}.jpg")
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"path": "a.jpg", "person": 7, "camera": 2}\n{"path": "b.jpg", "person": "7", "camera": "2"}\n{"path": '
        '"c.jpg", "person": 10}\n',
        encoding="utf-8",
    )
    assert [(record.person_id, record.camera_id) for record in read(path).parts["train"]] == [(1, 0), (1, 0), (0, -1)]


def test_without_a_split_everything_is_both(tmp_path: Path) -> None:
    release = read(manifest(tmp_path, "path,person\na1.jpg,a\na2.jpg,a\nb1.jpg,b\n"))
    assert names(release, "train") == names(release, "gallery") == ["a1.jpg", "a2.jpg", "b1.jpg"]
    # ben's only image would find nothing.
    assert names(release, "query") == ["a1.jpg", "a2.jpg"]
    assert (
        "no split is given" in release.notes[0]
        and "gallery only" in release.notes[1]
        and "no camera rule" in release.notes[2]
    )


def test_an_infrared_test_image_looks_for_visible_ones(tmp_path: Path) -> None:
    release = read(
        manifest(tmp_path, "path,person,modality,split\na1.jpg,a,rgb,test\na2.jpg,a,nir,test\nb1.jpg,b,rgb,train\n")
    )
    assert names(release, "gallery") == ["a1.jpg"] and names(release, "query") == ["a2.jpg"]
    infrared = read(
        manifest(tmp_path, "path,person,modality,split\na1.jpg,a,nir,test\na2.jpg,a,nir,test\nb1.jpg,b,nir,train\n")
    )
    assert names(infrared, "gallery") == names(infrared, "query") == ["a1.jpg", "a2.jpg"]


def stamps(release: Release, name: str) -> list[tuple[str, str]]:
    return [(search.protocol, search.exclusion_rule) for search in MANIFEST.protocols[name].searches(release)]


def test_the_protocol_says_which_rule_applied(tmp_path: Path) -> None:
    with_cameras = read(
        manifest(
            tmp_path, "path,person,camera,clothes,split\na1.jpg,a,1,x,query\na2.jpg,a,2,y,gallery\nb1.jpg,b,1,,train\n"
        )
    )
    without = read(
        manifest(tmp_path, "path,person,split\na1.jpg,a,query\na2.jpg,a,gallery\nb1.jpg,b,train\n", "two.csv")
    )
    assert stamps(with_cameras, "own-data") == [("own-data/same-camera", "same_camera")]
    assert (
        stamps(without, "own-data")
        == stamps(with_cameras, "own-data/no-camera-rule")
        == [("own-data/no-camera-rule", "none")]
    )
    assert stamps(with_cameras, "own-data/other-clothes") == [("own-data/other-clothes", "same_camera_or_clothes")]
    assert stamps(with_cameras, "own-data/other-clothes-no-camera-rule") == [
        ("own-data/other-clothes-no-camera-rule", "same_clothes")
    ]
    # A stamp is the name of a protocol, so that its summary can be shown.
    assert {
        protocol
        for name in ("own-data",)
        for release in (without, with_cameras)
        for protocol, _ in stamps(release, name)
    } <= set(MANIFEST.protocols)
    for name, column in (
        ("own-data/same-camera", "camera"),
        ("own-data/other-clothes", "camera"),
        ("own-data/other-clothes-no-camera-rule", "clothes"),
    ):
        with pytest.raises(UserError, match=f"needs the column {column}"):
            stamps(without, name)
    only_train = read(manifest(tmp_path, "path,person,split\na1.jpg,a,train\nb1.jpg,b,query\n", "three.csv"))
    with pytest.raises(UserError, match="no gallery images"):
        stamps(only_train, "own-data")


def test_some_cameras_are_told(tmp_path: Path) -> None:
    release = read(manifest(tmp_path, "path,person,camera\na1.jpg,a,1\na2.jpg,a,\nb1.jpg,b,2\nb2.jpg,b,2\n"))
    assert any("1 of 4 images have no camera" in note for note in release.notes)


WRONG = {
    "unknown column": ("path,preson\na.jpg,a\n", "own.csv line 1: unknown column 'preson': did you mean 'person'"),
    "no person column": ("path,split\na.jpg,train\n", "no column 'person'"),
    "no path column": ("person,split\na,train\n", "no column 'path'"),
    "a column twice": ("path,person,path\na.jpg,a,b.jpg\n", "'path' stands twice"),
    "semicolons": ("path;person\na.jpg;a\n", "not separated by commas"),
    "no rows": ("path,person\n", "no rows"),
    "too many cells": ("path,person\na.jpg,a,b\n", "own.csv line 2: 3 cells, but the header has 2 columns"),
    "open quote": ('path,person,caption\na.jpg,a,"red\nb.jpg,b,blue\n', "own.csv line 2: not valid CSV"),
    "empty person": ("path,person\na.jpg,\n", "own.csv line 2: person is empty"),
    "empty path": ("path,person\n,a\n", "own.csv line 2: path is empty"),
    "unknown split": ("path,person,split\na.jpg,a,tran\n", "did you mean 'train'"),
    "split missing in one row": ("path,person,split\na.jpg,a,train\nb.jpg,b,\n", "own.csv line 3: split is empty"),
    "unknown modality": ("path,person,modality\na.jpg,a,ir\n", "own.csv line 2: modality = 'ir'"),
    "absent image": ("path,person\nabsent.jpg,a\n", "own.csv line 2: no such image"),
    "no image name": ("path,person\na.txt,a\n", "does not end like an image"),
    "text with a path": ("path,person,modality,caption\na.jpg,a,text,red\n", "modality is text but there is a path"),
    "text without a caption": ("path,person,modality,caption,split\n,a,text,,query\n", "the caption is empty"),
    "text in the gallery": ("path,person,modality,caption,split\n,a,text,red,gallery\n", "cannot be in gallery"),
    "one image, two persons": (
        "path,person\na.jpg,a\na.jpg,b\n",
        "own.csv line 3: a.jpg shows 'b', but own.csv line 2 says 'a'",
    ),
    "one image, two splits": (
        "path,person,split\na.jpg,a,train\nb.jpg,b,test\n./a.jpg,a,test\n",
        "own.csv line 4: ./a.jpg is in test, but own.csv line 2",
    ),
    "one image twice": ("path,person\na.jpg,a\na.jpg,a\n", "is listed again, first in own.csv line 2"),
    "one image, two modalities": (
        "path,person,modality,caption\na.jpg,a,rgb,x\na.jpg,a,nir,y\n",
        "is nir, but own.csv line 2 says rgb",
    ),
    "no training image": ("path,person,split\na.jpg,a,test\nb.jpg,a,test\n", "no training image"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    path = manifest(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"path": "a.jpg", "person": "a"\n', "own.jsonl line 1: not valid JSON"),
        (b'{"path": "a.jpg", "person": "a"}\n["b.jpg", "b"]\n', "own.jsonl line 2: must be an object"),
        (
            b'{"path": "a.jpg", "person": "a", "spilt": "test"}\n',
            "own.jsonl line 1: unknown column 'spilt': did you mean 'split'",
        ),
        (b'{"path": 5, "person": "a"}\n', "path = 5 must be a text"),
        (b'{"path": "a.jpg", "person": true}\n', "person = True must be a text"),
        (b'{"path": "a.jpg", "person": 0.5}\n', "person = 0.5 must be a text"),
        (b'{"path": "a.jpg", "person": "\\ud800"}\n', "cannot be written as UTF-8"),
        (b'{"path": "a\\u0000.jpg", "person": "a"}\n', "is not a path"),
        (b'{"path": "a.jpg", "person": "\xff"}\n', "not UTF-8"),
        (b"", "no rows"),
    ],
)
def test_wrong_jsonl(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="own.jsonl") as caught:
        read(tmp_path / "own.jsonl")
    assert message in str(caught.value)


def test_the_root_must_be_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(tmp_path, "path,person\na.jpg,a\n")
    with pytest.raises(UserError, match="is a folder: give the manifest file itself .* it holds own.csv"):
        read(tmp_path)
    with pytest.raises(UserError, match="no such manifest"):
        read(tmp_path / "other.csv")
    with pytest.raises(UserError, match="ends in .csv or .jsonl"):
        read(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="does not belong to manifest"):
        read_release(dataset_entry("manifest"), path, ReadOptions(data=DataConfig(variant="v1")))
    assert read(manifest(tmp_path, "path,person\nabsent.jpg,a\n"), ReadOptions(check_files=False)).parts["train"]
    assert MANIFEST.recognise(path) and not MANIFEST.recognise(tmp_path) and not MANIFEST.recognise(tmp_path / "a.jpg")
    monkeypatch.setattr("datasets.formats.manifest_rows.MAX_BYTES", 10)
    with pytest.raises(UserError, match="more than the limit of 10"):
        read(path)


def test_absolute_and_parent_paths(tmp_path: Path) -> None:
    plant(tmp_path, "images/a.jpg")
    path = manifest(tmp_path / "lists", f"path,person\n{tmp_path / 'images' / 'a.jpg'},a\n")
    (tmp_path / "lists" / "two.csv").write_text("path,person\n../images/a.jpg,a\n", encoding="utf-8")
    values = [
        next(iter(read(file).parts["train"][0].sources.values())).value for file in (path, path.with_name("two.csv"))
    ]
    assert values == [str(tmp_path / "images" / "a.jpg")] * 2


def test_written_rows_read_back(tmp_path: Path) -> None:
    rows = [
        ManifestRow(path="a b,c.jpg", person="0007", caption='she said "hi",\nthen left'),
        ManifestRow(person="é", modality=Modality.TEXT, caption="x"),
    ]
    for name in ("out.csv", "out.jsonl"):
        write_manifest(tmp_path / name, rows)
        back = read_manifest(tmp_path / name)
        assert [[getattr(row, column) for column in COLUMNS] for row in back] == [
            [getattr(row, column) for column in COLUMNS] for row in rows
        ]
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[0] == "path,person,modality,caption"


def test_a_folder_per_person(tmp_path: Path) -> None:
    for name in ("anna/1.jpg", "anna/2.jpg", "ben/1.jpg", "ben/2.jpg", "ben/notes.txt", ".hidden/1.jpg"):
        plant(tmp_path, name) if name.endswith(".jpg") else (tmp_path / name).write_text("x", encoding="utf-8")
    release = FOLDERS.read(tmp_path, OPTIONS)
    assert Counter(record.person_id for record in release.parts["train"]) == {0: 2, 1: 2}
    assert release.parts["query"] == release.parts["gallery"] and FOLDERS.recognise(tmp_path)
    assert [search.exclusion_rule for search in FOLDERS.protocols["own-data"].searches(release)] == ["none"]
    assert release.parts["train"][0].name == "anna/1.jpg" and "no split is given" in release.notes[0]


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in (
        "train/anna/1.jpg",
        "train/ben/1.jpg",
        "query/carl/1.jpg",
        "gallery/carl/2.jpg",
        "val/dora/1.jpg",
        "val/dora/2.jpg",
    ):
        plant(tmp_path, name)
    release = FOLDERS.read(tmp_path, OPTIONS)
    assert {
        part: [Path(next(iter(r.sources.values())).value).relative_to(tmp_path).as_posix() for r in records]
        for part, records in release.parts.items()
    } == {
        "train": ["train/anna/1.jpg", "train/ben/1.jpg"],
        "query": ["query/carl/1.jpg"],
        "gallery": ["gallery/carl/2.jpg"],
        "val_query": ["val/dora/1.jpg", "val/dora/2.jpg"],
        "val_gallery": ["val/dora/1.jpg", "val/dora/2.jpg"],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.jpg", "anna/1.jpg"], "anna/ stands beside train/"),
        (["a/1.jpg", "loose.jpg"], "1 images lie beside the folders, for instance loose.jpg"),
        (["train/1.jpg"], "images lie beside the folders"),
        (["a/b/1.jpg"], "holds the folder b/"),
        (["a/x.txt"], "no images"),
        (["x.txt"], "holds no folder"),
    ],
)
def test_wrong_folders(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        plant(tmp_path, name) if name.endswith(".jpg") else write_lines(tmp_path / name)
    with pytest.raises(UserError, match=message):
        FOLDERS.read(tmp_path, OPTIONS)


def test_the_wrong_kind_of_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set data.dataset=manifest"):
        FOLDERS.read(manifest(tmp_path, "path,person\na.jpg,a\n"), OPTIONS)
    with pytest.raises(UserError, match="no such data root"):
        FOLDERS.read(tmp_path / "absent", OPTIONS)
