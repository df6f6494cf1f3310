"""Covers: datasets/formats/datalists, datasets/releases/omnireid. The authors' datalists: each task by hand, the names
that disagree, thirty ways to be damaged, and writing them back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measure import read as read_release
from trees import plant, write_lines

from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.catalogue import dataset_entry
from datasets.formats.datalists import GALLERY_KEY, DataList, ListReader, outfit_numbers, write_datalists
from datasets.formats.listing import ImageTree
from datasets.structures import Record, Release, Source
from utils.errors import UserError

CLOTHES, DESCRIPTION = AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION
RGB, NIR, TEXT = Modality.RGB, Modality.NIR, Modality.TEXT


def captions(path: Path, **texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key.replace("__", "."): text for key, text in texts.items()}), encoding="utf-8")


def omnireid(root: Path) -> Path:
    """A small data/ folder with every kind of task, in the authors' layout."""
    plant(root, *(f"market/Market-1501/{name}.jpg" for name in ("t1", "t2", "q1", "g1", "g2")))
    write_lines(root / "market/datalist/train.txt", "Market-1501/t1.jpg none 7 0 3", "Market-1501/t2.jpg none 9 0 1")
    write_lines(root / "market/datalist/query.txt", "Market-1501/q1.jpg none 1 0 1")
    write_lines(root / "market/datalist/gallery.txt", "Market-1501/g1.jpg none 1 0 2", "Market-1501/g2.jpg none 0 0 2")
    plant(
        root,
        "vc_clothes/train/t1.jpg",
        "vc_clothes/croped_image/t1.jpg",
        "vc_clothes/query/q1.jpg",
        "vc_clothes/gallery/g1.jpg",
        "vc_clothes/white_shirt.jpg",
    )
    write_lines(root / "vc_clothes/datalist/train_cc_clo.txt", "train/t1.jpg croped_image/t1.jpg 4 2 1")
    write_lines(root / "vc_clothes/datalist/query.txt", "query/q1.jpg white_shirt.jpg 5 1 3")
    write_lines(root / "vc_clothes/datalist/gallery.txt", "gallery/g1.jpg gallery/g1.jpg 5 2 4")
    folder = "real_reid_image_face_blur"
    plant(root / "real2", *(f"{folder}/{name}.jpg" for name in ("q1", "g1", "g2", "template")))
    write_lines(root / "real2/datalist/query.txt", f"{folder}/q1.jpg {folder}/template.jpg 3 1 5")
    write_lines(
        root / "real2/datalist/gallery.txt",
        f"{folder}/g1.jpg {folder}/g1.jpg 3 1 6",
        f"{folder}/g2.jpg {folder}/g2.jpg 3 0 6",
    )
    write_lines(root / "real2/datalist/query_attr.txt", f"{folder}/q1.jpg g1.jpg 3 1")
    write_lines(root / "real2/datalist/gallery_attr.txt", f"{folder}/g1.jpg g1.jpg 3 1", f"{folder}/g2.jpg g2.jpg 3 0")
    captions(root / "real2/datalist/real2_v1.json", g1__jpg="A man in red.", g2__jpg="A man in blue.")
    plant(
        root,
        "llcm/LLCM/test_nir/cam1/0001/0001_c01_s1_f1_nir.jpg",
        "llcm/LLCM/test_vis/cam2/0001/0001_c02_s1_f1_vis.jpg",
    )
    write_lines(root / "llcm/query_v2.txt", "LLCM/test_nir/cam1/0001/0001_c01_s1_f1_nir.jpg x 1 0 1")
    write_lines(root / "llcm/gallery_v2.txt", "LLCM/test_vis/cam2/0001/0001_c02_s1_f1_vis.jpg x 1 0 2")
    plant(root, *(f"CUHK-Pedes/imgs/{name}.jpg" for name in ("t1", "q1", "q2")))
    write_lines(root / "CUHK-Pedes/train_t2i_v2.txt", "imgs/t1.jpg t1.jpg 0 0", "imgs/t1.jpg t1b.jpg 0 0")
    write_lines(root / "CUHK-Pedes/query_t2i_v2.txt", "imgs/q1.jpg q1.jpg 0 0", "imgs/q1.jpg q1b.jpg 0 0")
    write_lines(
        root / "CUHK-Pedes/gallery_t2i_v2.txt", f"imgs/q1.jpg {GALLERY_KEY} 0 0", f"imgs/q2.jpg {GALLERY_KEY} 1 0"
    )
    captions(
        root / "CUHK-Pedes/caption_t2i_v2.json",
        t1__jpg="One.",
        t1b__jpg="Two.",
        q1__jpg="Three.",
        q1b__jpg="Four.",
        **{GALLERY_KEY: "gallery"},
    )
    return root


read = functools.partial(read_release, "omnireid")


@pytest.mark.parametrize(
    ("folder", "modality"),
    [("nir", NIR), ("test_nir", NIR), ("Thermal", NIR), ("cam3", NIR), ("cam6", NIR)]
    + [("vis", RGB), ("test_vis", RGB), ("Visible", RGB), ("cam1", RGB), ("cam2", RGB), ("cam4", RGB), ("cam5", RGB)],
)
def test_folders_tell_infrared_images_from_visible_ones(tmp_path: Path, folder: str, modality: Modality) -> None:
    plant(tmp_path, f"SYSU/{folder}/0001/0001.jpg")
    write_lines(tmp_path / "gallery.txt", f"SYSU/{folder}/0001/0001.jpg - 1 0 1")
    listed = DataList(path=tmp_path / "gallery.txt", task=Task.VI, role="gallery")
    parts = ListReader(tree=ImageTree(tmp_path), dataset="omnireid", crop="none").read({"sysu/gallery": listed})
    assert [list(record.sources) for record in parts["sysu/gallery"]] == [[modality]]


def summary(record: Record, root: Path) -> tuple:
    def short(source: Source) -> str:
        return source.value.removeprefix(f"{root}/") + (f" [{source.crop}]" if source.crop else "")

    return (
        {modality.value: short(source) for modality, source in record.sources.items()},
        {kind.value: short(source) for kind, source in record.annotations.items()},
    )


def test_every_task_by_hand(tmp_path: Path) -> None:
    root = omnireid(tmp_path / "data")
    release = read(root)
    found = {
        part: [summary(record, root) for record in records]
        for part, records in release.parts.items()
        if part != "train"
    }
    real = "real2/real_reid_image_face_blur"
    assert found == {
        "market/train": [({"rgb": "market/Market-1501/t1.jpg"}, {}), ({"rgb": "market/Market-1501/t2.jpg"}, {})],
        "market/query": [({"rgb": "market/Market-1501/q1.jpg"}, {})],
        "market/gallery": [({"rgb": "market/Market-1501/g1.jpg"}, {}), ({"rgb": "market/Market-1501/g2.jpg"}, {})],
        "vc_clothes/train": [({"rgb": "vc_clothes/train/t1.jpg"}, {"clothes": "vc_clothes/croped_image/t1.jpg"})],
        "vc_clothes/query": [({"rgb": "vc_clothes/query/q1.jpg"}, {"clothes": "vc_clothes/white_shirt.jpg"})],
        "vc_clothes/gallery": [({"rgb": "vc_clothes/gallery/g1.jpg"}, {})],
        "real2/query": [({"rgb": f"{real}/q1.jpg"}, {"clothes": f"{real}/template.jpg"})],
        "real2/gallery": [
            ({"rgb": f"{real}/{name}.jpg"}, {"clothes": f"{real}/{name}.jpg [box]"}) for name in ("g1", "g2")
        ],
        "real2_attr/query": [({"rgb": f"{real}/q1.jpg"}, {"description": "A man in red."})],
        "real2_attr/gallery": [
            ({"rgb": f"{real}/g1.jpg"}, {"description": "A man in red."}),
            ({"rgb": f"{real}/g2.jpg"}, {"description": "A man in blue."}),
        ],
        "llcm/query": [({"nir": "llcm/LLCM/test_nir/cam1/0001/0001_c01_s1_f1_nir.jpg"}, {})],
        "llcm/gallery": [({"rgb": "llcm/LLCM/test_vis/cam2/0001/0001_c02_s1_f1_vis.jpg"}, {})],
        "cuhk_pedes/train": [
            ({"rgb": "CUHK-Pedes/imgs/t1.jpg", "text": text}, {"description": text}) for text in ("One.", "Two.")
        ],
        "cuhk_pedes/query": [({"text": text}, {"description": text}) for text in ("Three.", "Four.")],
        "cuhk_pedes/gallery": [
            ({"rgb": "CUHK-Pedes/imgs/q1.jpg"}, {"description": "Three."}),
            ({"rgb": "CUHK-Pedes/imgs/q2.jpg"}, {}),
        ],
    }
    tasks = {
        part: {record.task for record in records} for part, records in release.parts.items() if part.endswith("query")
    }
    assert tasks == {
        "market/query": {Task.TRAD},
        "vc_clothes/query": {Task.CC},
        "real2/query": {Task.CTCC},
        "real2_attr/query": {Task.LI},
        "llcm/query": {Task.VI},
        "cuhk_pedes/query": {Task.T2I},
    }
    assert release.parts["train"] == (
        *release.parts["market/train"],
        *release.parts["vc_clothes/train"],
        *release.parts["cuhk_pedes/train"],
    )
    assert release.parts["market/query"][0].name == "market/datalist/query.txt line 1"
    assert any(
        note.startswith("real2/gallery: 2 records have no clothes image; the upper-body box") for note in release.notes
    )


def test_numbers_are_kept_apart_per_image_source(tmp_path: Path) -> None:
    release = read(omnireid(tmp_path / "data"))
    numbers = {
        part: [(record.person_id, record.camera_id, record.clothes_id) for record in records]
        for part, records in release.parts.items()
    }
    # Market has persons up to 9 and cameras up to 3: vc_clothes starts at 10 and 4; it has persons up to 5, cameras up
    # to 4.
    assert numbers["market/query"] == [(1, 1, 1000)] and numbers["market/train"] == [(7, 3, 7000), (9, 1, 9000)]
    assert numbers["vc_clothes/query"] == [(15, 7, 15001)] and numbers["vc_clothes/gallery"] == [(15, 8, 15002)]
    # 16 + 3 and 9 + 5; the lists of LI have no cameras; both tasks on Real2 have the same persons.
    assert numbers["real2/query"] == [(19, 14, 19001)] and numbers["real2_attr/query"] == [(19, -1, 19001)]
    assert numbers["llcm/query"] == [(21, 17, 21000)] and numbers["cuhk_pedes/query"] == [(22, -1, 22000)] * 2


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (("market",), {"market"}),
        (("cc", "sc"), {"market", "vc_clothes"}),
        (("attr",), {"real2_attr"}),
        (("li", "vi"), {"real2_attr", "llcm"}),
    ],
)
def test_members_are_sets_tasks_or_the_authors_tags(
    tmp_path: Path, members: tuple[str, ...], expected: set[str]
) -> None:
    release = read(omnireid(tmp_path / "data"), members=members)
    assert {part.partition("/")[0] for part in release.parts if part != "train"} == expected


def test_names_that_disagree(tmp_path: Path) -> None:
    root = omnireid(tmp_path / "data")
    (root / "CUHK-Pedes").rename(root / "cuhk_pedes")
    (root / "real2/datalist/real2_v1.json").rename(root / "real2/datalist/runner_real2_v1_gpt.json")
    (root / "llcm/query_v2.txt").rename(root / "llcm/query.txt")
    write_lines(root / "llcm/query_v2.txt", "unread")
    write_lines(root / "prcc/datalist/train.txt", "rgb/train/1/A_1.jpg rgb/train/1/A_1.jpg 1 0 0")
    plant(root, "prcc/rgb/train/1/A_1.jpg")
    release = read(tmp_path)
    assert (
        release.root == root and len(release.parts["cuhk_pedes/query"]) == 2 and len(release.parts["prcc/train"]) == 1
    )
    assert "llcm: query.txt, query_v2.txt are all there; the first is read" in release.notes
    assert "prcc/query" not in release.parts and not any(
        part.endswith("train") for part in read(root, need_train=False).parts
    )


def test_several_test_lists_of_one_set(tmp_path: Path) -> None:
    plant(tmp_path, *(f"ltcc/LTCC_ReID/test/{name}.png" for name in "abc"), "ltcc/white_shirt.jpg")
    for kind, second in (("cc", "white_shirt.jpg"), ("sc", "none"), ("general", "white_shirt.jpg")):
        write_lines(tmp_path / f"ltcc/datalist/query_{kind}.txt", f"LTCC_ReID/test/a.png {second} 2 0 1")
        write_lines(
            tmp_path / f"ltcc/datalist/gallery_{kind}.txt",
            f"LTCC_ReID/test/b.png {second} 2 1 2",
            f"LTCC_ReID/test/c.png {second} 3 0 2",
        )
    release = read(tmp_path, need_train=False)
    assert {part: records[0].task for part, records in release.parts.items() if "query" in part} == {
        "ltcc/query_cc": Task.CC,
        "ltcc/query_sc": Task.TRAD,
        "ltcc/query_general": Task.CC,
    }
    protocols = dataset_entry("omnireid").protocols
    assert [search.title for search in protocols["lists"].searches(release)] == ["ltcc cc", "ltcc sc", "ltcc general"]
    joint = list(protocols["joint"].searches(release))
    assert [(search.title, len(search.query), len(search.gallery)) for search in joint] == [("joint ltcc", 1, 2)]


def replace_in(path: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new), encoding="utf-8")

    return damage


def removed(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


MARKET, REAL, PEDES = "market/datalist/query.txt", "real2/datalist/", "CUHK-Pedes/"
DAMAGES = {
    "three fields": (
        replace_in(MARKET, " 0 1\n", "\n"),
        r"market/datalist/query.txt line 1: expected .* found 3 fields",
    ),
    "six fields": (replace_in(MARKET, " 1\n", " 1 1\n"), r"query.txt line 1: .* found 6 fields"),
    "two spaces": (replace_in(MARKET, " none", "  none"), r"query.txt line 1: .* single spaces, found 6 fields"),
    "a path with a space": (
        replace_in(MARKET, "q1.jpg", "q 1.jpg"),
        r"query.txt line 1: .* found 6 fields; .*paths cannot hold spaces",
    ),
    "tabs": (replace_in(MARKET, " ", "\t"), r"query.txt line 1: .* found 1 fields"),
    "pid no number": (replace_in(MARKET, " 1 0 1", " one 0 1"), r"query.txt line 1: pid = 'one' is not a whole number"),
    "pid below zero": (replace_in(MARKET, " 1 0 1", " -1 0 1"), r"query.txt line 1: pid = -1 is outside 0\.\."),
    "clothes no number": (replace_in(MARKET, " 0 1\n", " 0.5 1\n"), r"query.txt line 1: clothes_id = '0.5'"),
    "camera no number": (replace_in(MARKET, " 0 1\n", " 0 c1\n"), r"query.txt line 1: camera = 'c1'"),
    "missing image": (removed("market/Market-1501/q1.jpg"), r"query.txt line 1: no such image: .*q1.jpg"),
    "absolute path": (
        replace_in(MARKET, "Market", "/Market"),
        r"query.txt line 1: '/Market-1501/q1.jpg' is not a path inside",
    ),
    "path leads out": (replace_in(MARKET, "Market-1501", "../market"), r"query.txt line 1: .* is not a path inside"),
    "a name too long for the system": (
        replace_in(MARKET, "Market-1501", 300 * "M"),
        r"query.txt line 1: no such image",
    ),
    "no image name": (replace_in(MARKET, "q1.jpg", "q1.txt"), r"query.txt line 1: .* does not end like an image"),
    "empty list": (lambda root: write_lines(root / MARKET), r"query.txt \(a datalist\) is empty"),
    "binary list": (lambda root: (root / MARKET).write_bytes(b"\xff\xfe\x00\xff"), r"cannot read .*query.txt"),
    "no gallery list": (
        removed("market/datalist/gallery.txt"),
        r"market: query.txt is there without a list of the gallery; restore gallery.txt",
    ),
    "no query list": (
        removed("real2/datalist/query_attr.txt"),
        r"real2: gallery_attr.txt is there without a list of the query",
    ),
    "missing clothes image": (
        removed("vc_clothes/white_shirt.jpg"),
        r"vc_clothes/datalist/query.txt line 1: no such image: .*white_shirt.jpg",
    ),
    "query without template": (
        replace_in(f"{REAL}query.txt", "template.jpg", "q1.jpg"),
        r"real2/datalist/query.txt line 1: a query needs the picture of the clothes",
    ),
    "caption key missing": (
        replace_in(f"{REAL}gallery_attr.txt", "g2.jpg 3", "h2.jpg 3"),
        r"gallery_attr.txt line 2: no caption 'h2.jpg' in .*real2_v1.json \(did you mean 'g2.jpg'",
    ),
    "captions absent": (
        removed(f"{REAL}real2_v1.json"),
        r"real2: the lists of real2_attr need captions, and runner_real2_v1_gpt.json or real2_v1.json is neither",
    ),
    "captions truncated": (
        lambda root: (root / f"{REAL}real2_v1.json").write_text('{"g1.jpg": "A'),
        r"real2_v1.json \(the captions\) is not valid JSON",
    ),
    "captions a list": (
        lambda root: (root / f"{REAL}real2_v1.json").write_text("[1]"),
        r"real2_v1.json: must be an object .* found list",
    ),
    "caption a list": (
        lambda root: (root / f"{REAL}real2_v1.json").write_text('{"g1.jpg": ["A"]}'),
        r"the caption of 'g1.jpg' is not one text",
    ),
    "caption empty": (
        lambda root: (root / f"{REAL}real2_v1.json").write_text('{"g1.jpg": " "}'),
        r"the caption of 'g1.jpg' is not one text",
    ),
    "text caption missing": (
        replace_in(f"{PEDES}query_t2i_v2.txt", "q1b.jpg", "zzz"),
        r"query_t2i_v2.txt line 2: no caption 'zzz'",
    ),
    "gallery key unknown": (
        replace_in(f"{PEDES}gallery_t2i_v2.txt", f"q2.jpg {GALLERY_KEY}", "q2.jpg zzz"),
        r"gallery_t2i_v2.txt line 2: no caption 'zzz'",
    ),
    "modality unknown": (
        lambda root: write_lines(plant(root, "llcm/LLCM/a/b.jpg") / "llcm/query_v2.txt", "LLCM/a/b.jpg x 1 0 1"),
        r"llcm/query_v2.txt line 1: 'LLCM/a/b.jpg' does not say whether it is infrared",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_ends_in_one_sentence(tmp_path: Path, damage: str) -> None:
    root = omnireid(tmp_path / "data")
    spoil, message = DAMAGES[damage]
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_wrong_places_and_options(tmp_path: Path) -> None:
    for root, options, message in (
        (tmp_path / "none", {}, "no such data root"),
        (tmp_path, {}, "holds no set of OmniReID"),
        (tmp_path, {"members": ("marke",)}, "'marke' is no set or task of OmniReID: did you mean 'market'"),
        (tmp_path, {"members": ("prcc",)}, "prcc has no lists of prcc .train.txt or query.txt or gallery.txt"),
        (tmp_path, {"members": ("vi",)}, "holds no set of OmniReID named by data.members .vi.: expected"),
        (tmp_path, {"variant": "v1"}, "does not belong to omnireid"),
    ):
        with pytest.raises(UserError, match=message):
            read(root, **options)
    with pytest.raises(UserError, match="gallery.txt line 1: no clothes image; set instruction.crop=box"):
        read(omnireid(tmp_path / "data"), crop="none")


def test_an_absent_image_is_left_to_the_loader_when_files_are_not_checked(tmp_path: Path) -> None:
    root = omnireid(tmp_path / "data")
    (root / "market/Market-1501/q1.jpg").unlink()
    assert read(root, check_files=False).parts["market/query"][0].sources[RGB].value.endswith("q1.jpg")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(2, 1), (2, 0), (3, 999), (3, -1)], {(2, 0): 2000, (2, 1): 2001, (3, 999): 3999}),
        # One number beyond 999: clothes are counted over all persons, so each person's are numbered anew.
        ([(2, 1500), (2, 40), (3, 1501), (3, -1)], {(2, 40): 2000, (2, 1500): 2001, (3, 1501): 3000}),
    ],
)
def test_outfits(pairs: list[tuple[int, int]], expected: dict[tuple[int, int], int]) -> None:
    assert outfit_numbers(pairs) == expected


def test_cameras_that_are_unknown(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg")
    write_lines(tmp_path / "list.txt", "a.jpg - 1 0", "a.jpg - 1 0 -1", "a.jpg - 1 0 -2", "a.jpg - 1 0 0")
    reader = ListReader(tree=ImageTree(tmp_path), dataset="x")
    found = reader.read({"query": DataList(path=tmp_path / "list.txt", task=Task.TRAD, role="query")})
    assert [record.camera_id for record in found["query"]] == [-1, -1, -1, 0]


TAGS = {
    "market": Task.TRAD,
    "vc_clothes": Task.CC,
    "real2": Task.CTCC,
    "real2_attr": Task.LI,
    "llcm": Task.VI,
    "cuhk_pedes": Task.T2I,
}


@pytest.mark.parametrize("name", TAGS)
def test_lists_written_and_read_again_are_the_same_records(tmp_path: Path, name: str) -> None:
    release = read(omnireid(tmp_path / "data"), members=(name,))
    release = replace(
        release, parts={part.partition("/")[2]: records for part, records in release.parts.items() if "/" in part}
    )
    files = write_datalists(release, tmp_path / "lists")
    texts = tmp_path / "lists/captions.json"
    assert [file.name for file in files] == [
        *(f"{part}.txt" for part in release.parts),
        *(["captions.json"] if TAGS[name] in (Task.LI, Task.T2I) else []),
    ]
    lists = {
        part: DataList(
            path=tmp_path / f"lists/{part}.txt",
            task=TAGS[name],
            role=part,  # type: ignore[arg-type]
            captions=texts if texts.is_file() else None,
        )
        for part in release.parts
    }
    again = ListReader(tree=ImageTree(release.root), dataset="omnireid").read(lists)

    def comparable(records: tuple[Record, ...], gallery: bool) -> list[Record]:
        # T2I's format has no place for the description of a gallery image.
        bare: dict[str, Any] = {"annotations": {}} if gallery and name == "cuhk_pedes" else {}
        return [replace(record, name="", **bare) for record in records]

    assert {part: comparable(records, part == "gallery") for part, records in again.items()} == {
        part: comparable(records, part == "gallery") for part, records in release.parts.items()
    }


@pytest.mark.parametrize(
    ("name", "folder", "parts"),
    [
        ("prcc", "prcc", {"prcc/train": "train", "prcc/query": "query_changed", "prcc/gallery": "gallery"}),
        ("ltcc", "ltcc", {"ltcc/train": "train", "ltcc/query_general": "query", "ltcc/gallery_general": "gallery"}),
        ("llcm", "llcm", {"llcm/train": "train", "llcm/query": "test_infrared", "llcm/gallery": "test_visible"}),
        (
            "cocas",
            "real2",
            {
                "real2/query": "query",
                "real2/gallery": "gallery",
                "real2_attr/query": "query_li",
                "real2_attr/gallery": "gallery_li",
            },
        ),
        (
            "cuhk-pedes",
            "cuhk_pedes",
            {"cuhk_pedes/train": "train", "cuhk_pedes/query": "query", "cuhk_pedes/gallery": "gallery"},
        ),
    ],
)
def test_written_lists_are_found_in_the_authors_folder(
    tmp_path: Path, name: str, folder: str, parts: dict[str, str]
) -> None:
    """A release whose folder is put below the authors' data/, with its lists in `datalist`, is read as one of their
    sets.
    """
    task = dataset_entry(name).task
    places = {part: f"{'nir' if part == 'test_infrared' else 'vis'}/{part}/a.jpg" for part in parts.values()}
    records = {
        part: _record_of(tmp_path / "data" / folder / path, Task.LI if part.endswith("_li") else task)
        for part, path in places.items()
    }
    plant(tmp_path / "data" / folder, "templates/t.jpg", *places.values())
    write_datalists(
        Release(name=name, root=tmp_path / "data" / folder, parts=records), tmp_path / "data" / folder / "datalist"
    )
    found = read(tmp_path / "data").parts
    assert found.keys() - {"train"} == parts.keys()
    for part, source in parts.items():
        image = found[part][0].sources.get(RGB) or found[part][0].sources.get(NIR) or found[part][0].partners[RGB][0]
        assert image.value.endswith(places[source])


def _record_of(image: Path, task: Task) -> tuple[Record, ...]:
    source = Source(modality=RGB, value=str(image))
    if task is Task.T2I and "gallery" not in image.parent.name:
        return (
            Record(
                person_id=1,
                sources={TEXT: Source(modality=TEXT, value="Red.")},
                partners={RGB: (source,)},
                task=task,
                name="one",
            ),
        )
    shown = (
        {CLOTHES: Source(modality=RGB, value=str(image.parents[2] / "templates/t.jpg"))} if task is Task.CTCC else {}
    )
    said = {DESCRIPTION: Source(modality=TEXT, value="Red.")} if task is Task.LI else {}
    return (
        Record(person_id=1, clothes_id=1000, sources={RGB: source}, annotations=shown | said, task=task, name="one"),
    )


def test_lines_written_by_hand(tmp_path: Path) -> None:
    def image(path: str) -> Source:
        return Source(modality=RGB, value=str(tmp_path / path))

    def caption(value: str) -> Source:
        return Source(modality=TEXT, value=value)

    entries = [
        Record(person_id=4, sources={TEXT: caption(text)}, task=Task.T2I, name=f"entry {entry}")
        for entry, text in ((0, "One"), (0, "Two"), (9, "Three"))
    ]
    gallery = [
        Record(
            person_id=4,
            sources={RGB: image(f"imgs/{name}.jpg")},
            task=Task.T2I,
            name=f"entry {entry}",
            clothes_id=4002,
            camera_id=6,
        )
        for name, entry in (("b", 1), ("a", 0))
    ]
    release = Release(name="x", root=tmp_path, parts={"query": tuple(entries), "gallery": tuple(gallery), "empty": ()})
    files = write_datalists(release, tmp_path / "out")
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        "query.txt",
        "gallery.txt",
        "captions.json",
    ]
    # A caption names the image of its own entry, else the first of its person.
    assert (
        files[0].read_text() == "imgs/a.jpg imgs/a.jpg 4 -1\nimgs/a.jpg imgs/a.jpg#2 4 -1\nimgs/b.jpg imgs/b.jpg 4 -1\n"
    )
    assert files[1].read_text() == f"imgs/b.jpg {GALLERY_KEY} 4 2 6\nimgs/a.jpg {GALLERY_KEY} 4 2 6\n"
    assert json.loads(files[2].read_text()) == {
        "imgs/a.jpg": "One",
        "imgs/a.jpg#2": "Two",
        "imgs/b.jpg": "Three",
        GALLERY_KEY: "gallery",
    }


def test_what_cannot_be_written(tmp_path: Path) -> None:
    def release(task: Task, path: str, modality: Modality = RGB) -> Release:
        record = Record(
            person_id=1, sources={modality: Source(modality=modality, value=path)}, task=task, name="list line 3"
        )
        return Release(name="x", root=tmp_path, parts={"query": (record,)})

    for bad, message in (
        (release(Task.TRAD, f"{tmp_path}/a b.jpg"), r"list line 3: the path 'a b.jpg' holds a space"),
        (release(Task.TRAD, "/other/a.jpg"), "does not lie in"),
        (release(Task.LI, f"{tmp_path}/a.jpg"), "no caption, which a list of task li needs"),
        (release(Task.T2I, "words", TEXT), "person 1 has a caption but no image"),
    ):
        with pytest.raises(UserError, match=message):
            write_datalists(bad, tmp_path / "out")
