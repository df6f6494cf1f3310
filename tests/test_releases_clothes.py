"""PRCC, VC-Clothes, LTCC, LaST, NKUP, NKUP+: files in their official layouts, and a hand-worked 5 x 5 case per
protocol.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from reading import read_options
from tiny_releases import place, rows, score, write

from configs.vocabulary import Task
from datasets.catalogue import dataset_entry, read_release
from datasets.formats.listing import outfit_id
from utils.errors import UserError


def read(name: str, root: Path, **options):
    return read_release(dataset_entry(name), root, read_options(**options))


def check(
    name: str,
    root: Path,
    protocol: str,
    queries: Sequence[str],
    gallery: Sequence[str],
    ap: Sequence[float],
    rank1: float,
) -> None:
    """ap: by hand, for the queries that have a match, in order. rank1: number of hits."""
    (result,) = score(dataset_entry(name), root, protocol, queries, gallery).values()
    assert [value for value in result.per_query["mAP"] if value == value] == pytest.approx(
        [100 * value for value in ap]
    )
    assert result.mAP == pytest.approx(100 * sum(ap) / len(ap)) and result.R1 == pytest.approx(100 * rank1 / len(ap))


PRCC_A = [
    f"rgb/test/A/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "001/cropped_rgb002",
        "006/cropped_rgb001",
        "006/cropped_rgb002",
        "320/cropped_rgb001",
    )
]
PRCC_B = [
    f"rgb/test/B/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "006/cropped_rgb001",
        "006/cropped_rgb002",
        "006/cropped_rgb003",
        "320/cropped_rgb001",
    )
]
PRCC_C = [
    f"rgb/test/C/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "001/cropped_rgb002",
        "006/cropped_rgb001",
        "320/cropped_rgb001",
        "320/cropped_rgb002",
    )
]


def prcc(root: Path) -> Path:
    write(
        root / "prcc",
        *PRCC_A,
        *PRCC_B,
        *PRCC_C,
        "rgb/train/004/A_cropped_rgb001.jpg",
        "rgb/train/004/B_cropped_rgb001.jpg",
        "rgb/train/004/C_cropped_rgb001.jpg",
        "rgb/train/010/C_cropped_rgb001.jpg",
        "rgb/val/004/B_cropped_rgb009.jpg",
        "sketch/train/004/A.jpg",
    )
    (root / "prcc/rgb/test/A/001/Thumbs.db").write_bytes(b"thumbs")
    return root


def test_prcc(tmp_path: Path) -> None:
    release = read("prcc", prcc(tmp_path))
    # Cameras A, B, C are 0, 1, 2; A and B are one outfit, C is another one.
    assert rows(release, "train") == [
        ("A_cropped_rgb001.jpg", 4, 0, outfit_id(4, 0)),
        ("B_cropped_rgb001.jpg", 4, 1, outfit_id(4, 0)),
        ("C_cropped_rgb001.jpg", 4, 2, outfit_id(4, 1)),
        ("C_cropped_rgb001.jpg", 10, 2, outfit_id(10, 1)),
    ]
    assert [row[1:] for row in rows(release, "val")] == [(4, 1, outfit_id(4, 0))]
    assert [place(record, release) for record in release.parts["gallery"]] == PRCC_A
    assert [row[1:] for row in rows(release, "gallery")] == [
        (person, 0, outfit_id(person, 0)) for person in (1, 1, 6, 6, 320)
    ]
    assert [row[1:] for row in rows(release, "query_same")] == [
        (person, 1, outfit_id(person, 0)) for person in (1, 6, 6, 6, 320)
    ]
    assert [row[1:] for row in rows(release, "query_changed")] == [
        (person, 2, outfit_id(person, 1)) for person in (1, 1, 6, 320, 320)
    ]
    assert {record.task for part in release.parts.values() for record in part} == {Task.CC}


def test_prcc_multi_shot_by_hand(tmp_path: Path) -> None:
    # Persons of the gallery: a a b b c. C is a a b c c: order 12345 -> ranks 1, 2; 54321 -> 4, 5; 23154 -> 2, 5; 53412
    # -> 1; 41253 -> 4.
    prcc(tmp_path)
    check("prcc", tmp_path, "prcc-cc-multi", PRCC_C, PRCC_A, [1, 13 / 40, 9 / 20, 1, 1 / 4], 2)
    # B is a b b b c: ranks 1, 2; 2, 3; 2, 5; 2, 3; 4.
    check("prcc", tmp_path, "prcc-sc-multi", PRCC_B, PRCC_A, [1, 7 / 12, 9 / 20, 7 / 12, 1 / 4], 1)


# The images that random.Random(0) to random.Random(9) take of persons 1, 6 and 320.
DRAWS = ["245", "135", "135", "135", "145", "245", "145", "235", "145", "245"]
# One match per query; its rank among the three images, e.g. gallery 135, order 54321 -> 5 3 1, person of image 1 at
# rank 3.
RANKS_CC = {"135": [1, 3, 1, 1, 2], "145": [1, 3, 3, 1, 3], "235": [1, 3, 2, 1, 2], "245": [1, 3, 3, 1, 3]}
RANKS_SC = {"135": [1, 2, 1, 2, 2], "145": [1, 2, 3, 2, 3], "235": [1, 2, 2, 2, 2], "245": [1, 2, 3, 2, 3]}


@pytest.mark.parametrize(
    ("protocol", "queries", "ranks"), [("prcc-cc-single", PRCC_C, RANKS_CC), ("prcc-sc-single", PRCC_B, RANKS_SC)]
)
def test_prcc_single_shot_by_hand(
    tmp_path: Path, protocol: str, queries: list[str], ranks: dict[str, list[int]]
) -> None:
    results = score(dataset_entry("prcc"), prcc(tmp_path), protocol, queries, PRCC_A)
    assert list(results) == [f"{protocol} draw {draw}" for draw in range(10)]
    for result, draw in zip(results.values(), DRAWS):
        assert result.first_rank.tolist() == ranks[draw] and result.gallery == 3
        assert result.mAP == pytest.approx(100 * sum(1 / rank for rank in ranks[draw]) / 5)
        assert result.R1 == pytest.approx(20 * ranks[draw].count(1))


def test_prcc_draws_are_one_group_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    release = read("prcc", prcc(tmp_path))
    searches = dataset_entry("prcc").protocols["prcc-cc-single"].searches(release)
    assert {search.group for search in searches} == {"prcc-cc-single"}
    backwards = {part: records[::-1] for part, records in release.parts.items()}
    others = (
        dataset_entry("prcc")
        .protocols["prcc-cc-single"]
        .searches(type(release)(name="prcc", root=release.root, parts=backwards))
    )
    assert [search.gallery for search in searches] == [search.gallery for search in others]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rgb/train/004/D_cropped_rgb001.jpg", "does not have the form"),
        ("rgb/val/004/cropped_rgb001.jpg", "does not have the form"),
        ("rgb/train/x04/A_cropped_rgb001.jpg", "'x04' is not a whole number"),
        ("rgb/test/B/train/cropped_rgb001.jpg", "'train' is not a whole number"),
        ("rgb/test/C/1000/cropped_rgb001.jpg", "1000 is outside 0..999"),
    ],
)
def test_prcc_bad_names(tmp_path: Path, path: str, message: str) -> None:
    write(prcc(tmp_path) / "prcc", path)
    with pytest.raises(UserError, match=message) as caught:
        read("prcc", tmp_path)
    assert "/".join(path.split("/")[:2]) in str(caught.value)


def test_prcc_parts_that_may_be_absent(tmp_path: Path) -> None:
    write(tmp_path / "prcc", *PRCC_A, *PRCC_B, *PRCC_C)
    assert read("prcc", tmp_path, need_train=False).parts["train"] == ()
    with pytest.raises(UserError, match="rgb/train missing"):
        read("prcc", tmp_path)
    write(tmp_path / "prcc", "rgb/train/004/A_cropped_rgb001.jpg")
    release = read("prcc", tmp_path)
    assert "val" not in release.parts and "no part val" in release.notes[0]


VC_QUERY = [
    f"query/{name}.jpg"
    for name in ("0001-02-01-11", "0001-03-01-12", "0001-04-02-13", "0002-02-01-14", "0002-04-02-15")
]
VC_GALLERY = [
    f"gallery/{name}.jpg"
    for name in ("0001-02-01-01", "0001-03-01-02", "0001-04-02-03", "0002-01-01-04", "0002-03-01-05")
]


def vc_clothes(root: Path) -> Path:
    write(root / "VC-Clothes", *VC_QUERY, *VC_GALLERY, "train/0512-04-03-21.jpg", "train/0300-01-01-01.jpg")
    (root / "VC-Clothes/query/Thumbs.db").write_bytes(b"thumbs")
    return root


def test_vc_clothes(tmp_path: Path) -> None:
    release = read("vc-clothes", vc_clothes(tmp_path))
    assert rows(release, "train") == [
        ("0300-01-01-01.jpg", 300, 1, outfit_id(300, 1)),
        ("0512-04-03-21.jpg", 512, 4, outfit_id(512, 3)),
    ]
    assert [row[1:3] for row in rows(release, "query")] == [(1, 2), (1, 3), (1, 4), (2, 2), (2, 4)]
    assert rows(release, "gallery")[2] == ("0001-04-02-03.jpg", 1, 4, outfit_id(1, 2))


@pytest.mark.parametrize(
    ("protocol", "ap", "rank1"),
    [
        # Without the same camera: 2 3 -> 1, 2; 5 4 3 1 -> 3, 4; 2 1 -> 1, 2; 5 3 4 -> 1, 3; 4 1 2 5 -> 1, 4.
        ("vc-clothes", [1, 5 / 12, 1, 5 / 6, 3 / 4], 4),
        # Queries 1, 2, 4 and items 1, 2, 5: 2 5 -> 1; 5 1 -> 2; 2 1 5 is person 2's only in 5, which leads: 1.
        ("vc-clothes-sc", [1, 1 / 2, 1], 2),
        # Queries 2, 3, 5 and items 2, 3, 5: 5 3 -> 2; 2 5 -> 1; 2 5 3 -> 2.
        ("vc-clothes-cc", [1 / 2, 1, 1 / 2], 1),
        # Without the same camera and other clothes: 2 -> 1; 5 4 1 -> 3; none; 5 3 4 -> 1, 3; none.
        ("vc-clothes-sc-all", [1, 1 / 3, 5 / 6], 2),
        # Without the same camera and the same clothes: 3 -> 1; 5 4 3 -> 3; 2 1 -> 1, 2; none; 4 1 2 5 -> 1, 4.
        ("vc-clothes-cc-all", [1, 1 / 3, 1, 3 / 4], 3),
    ],
)
def test_vc_clothes_by_hand(tmp_path: Path, protocol: str, ap: list[float], rank1: int) -> None:
    check("vc-clothes", vc_clothes(tmp_path), protocol, VC_QUERY, VC_GALLERY, ap, rank1)


def test_vc_clothes_without_a_camera_pair(tmp_path: Path) -> None:
    vc_clothes(tmp_path)
    for path in VC_QUERY[1:3] + VC_QUERY[4:]:
        (tmp_path / "VC-Clothes" / path).unlink()
    release = read("vc-clothes", tmp_path)
    with pytest.raises(UserError, match="query: no image of camera 3 or 4, which vc-clothes-cc needs"):
        dataset_entry("vc-clothes").protocols["vc-clothes-cc"].searches(release)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0001-05-01-01", "camera = 5 is outside 1..4"),
        ("0001-01-01", "does not have the form"),
        ("0001-01-1000-01", "clothes = 1000 is outside"),
        ("0001_01_01_01", "does not have the form"),
    ],
)
def test_vc_clothes_bad_names(tmp_path: Path, name: str, message: str) -> None:
    write(vc_clothes(tmp_path) / "VC-Clothes/gallery", f"{name}.jpg")
    with pytest.raises(UserError, match=message) as caught:
        read("vc-clothes", tmp_path)
    assert name in str(caught.value)


LTCC_QUERY = [
    f"query/{name}.png"
    for name in ("3_1_c10_000011", "3_1_c1_000012", "3_2_c2_000013", "7_2_c2_000014", "9_1_c3_000015")
]
LTCC_GALLERY = [
    f"test/{name}.png"
    for name in ("3_1_c10_000001", "3_1_c2_000002", "3_2_c10_000003", "7_1_c12_000004", "9_1_c1_000005")
]


def ltcc(root: Path) -> Path:
    write(root / "LTCC_ReID", *LTCC_QUERY, *LTCC_GALLERY, "train/140_2_c5_002106.png", "train/151_1_c12_000001.png")
    (root / "LTCC_ReID/query/Thumbs.db").write_bytes(b"thumbs")
    (root / "LTCC_ReID/info").mkdir(exist_ok=True)
    (root / "LTCC_ReID/info/cloth-change_id_test.txt").write_text("3\n7\n")
    return root


def test_ltcc(tmp_path: Path) -> None:
    release = read("ltcc", ltcc(tmp_path))
    assert rows(release, "train") == [
        ("140_2_c5_002106.png", 140, 5, outfit_id(140, 2)),
        ("151_1_c12_000001.png", 151, 12, outfit_id(151, 1)),
    ]
    assert [row[1:3] for row in rows(release, "query")] == [(3, 10), (3, 1), (3, 2), (7, 2), (9, 3)]
    assert [row[2:] for row in rows(release, "gallery")] == [
        (10, outfit_id(3, 1)),
        (2, outfit_id(3, 1)),
        (10, outfit_id(3, 2)),
        (12, outfit_id(7, 1)),
        (1, outfit_id(9, 1)),
    ]


@pytest.mark.parametrize(
    ("protocol", "ap", "rank1"),
    [
        # Camera 10 is not camera 1. Without the same camera: 2 -> 1; 5 4 3 2 1 -> 3, 4, 5; 3 1 -> 1, 2; 5 3 4 -> 3; 4 1
        # 2 5 -> 4.
        ("ltcc", [1, 43 / 90, 1, 1 / 3, 1 / 4], 2),
        # Without the same camera or clothes: none; 5 4 3 -> 3; 1 -> 1; 5 3 4 -> 3; none.
        ("ltcc-cc", [1 / 3, 1, 1 / 3], 1),
        # Without the same camera or other clothes: 2 -> 1; 5 4 2 1 -> 3, 4; 3 -> 1; none; 4 1 2 5 -> 4.
        ("ltcc-sc", [1, 5 / 12, 1, 1 / 4], 2),
        # Person 9 does not change: queries 1 to 4, items 1 to 4. 2 -> 1; 4 3 2 1 -> 2, 3, 4; 3 1 -> 1, 2; 3 4 -> 2.
        ("ltcc-changing", [1, 23 / 36, 1, 1 / 2], 2),
        # None; 4 3 -> 2; 1 -> 1; 3 4 -> 2.
        ("ltcc-cc-changing", [1 / 2, 1, 1 / 2], 1),
        # 2 -> 1; 4 2 1 -> 2, 3; 3 -> 1; none.
        ("ltcc-sc-changing", [1, 7 / 12, 1], 2),
    ],
)
def test_ltcc_by_hand(tmp_path: Path, protocol: str, ap: list[float], rank1: int) -> None:
    check("ltcc", ltcc(tmp_path), protocol, LTCC_QUERY, LTCC_GALLERY, ap, rank1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file: .*info/cloth-change_id_test.txt .*only the -changing protocols need it"),
        ("3\nx\n", "cloth-change_id_test.txt line 2: pid = 'x'"),
        ("152\n", "pid = 152 is outside 0..151"),
        ("\n", "is empty"),
        ("8\n", "none of its persons is in query"),
    ],
)
def test_ltcc_list_of_changing_persons(tmp_path: Path, text: str | None, message: str) -> None:
    path = ltcc(tmp_path) / "LTCC_ReID/info/cloth-change_id_test.txt"
    path.unlink() if text is None else path.write_text(text)
    release = read("ltcc", tmp_path)
    assert len(list(dataset_entry("ltcc").protocols["ltcc-cc"].searches(release))) == 1
    with pytest.raises(UserError, match=message):
        dataset_entry("ltcc").protocols["ltcc-cc-changing"].searches(release)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3_1_c13_000001", "camera = 13 is outside 1..12"),
        ("152_1_c1_000001", "pid = 152 is outside"),
        ("3_c1_000001", "does not have the form"),
        ("3_1_c100_000001", "does not have the form"),
    ],
)
def test_ltcc_bad_names(tmp_path: Path, name: str, message: str) -> None:
    write(ltcc(tmp_path) / "LTCC_ReID/test", f"{name}.png")
    with pytest.raises(UserError, match=message) as caught:
        read("ltcc", tmp_path)
    assert name in str(caught.value)


LAST_QUERY = [
    f"test/query/{name}.jpg" for name in ("000001_a_10", "000002_a_11", "000002_b_12", "000003_a_13", "000004_a_14")
]
LAST_GALLERY = [
    f"test/gallery/{name}.jpg"
    for name in ("000001/000001_a_1", "000001/000001_a_2", "000002/000002_a_3", "000002/000002_a_4", "x/000003_a_5")
]
LAST_TRAIN = [
    f"train/{name}.jpg"
    for name in (
        "000007/000007_f01_000001_b",
        "000007/000007_f01_000002_a",
        "000007/000007_f02_000003_b",
        "000009/000009_10",
        "000009/000009_9",
    )
]


def last(root: Path) -> Path:
    write(
        root / "last",
        *LAST_QUERY,
        *LAST_GALLERY,
        *LAST_TRAIN,
        "val/query/000008_a_1.jpg",
        "val/gallery/000008/000008_a_2.jpg",
    )
    (root / "last/test/query/Thumbs.db").write_bytes(b"thumbs")
    return root


def test_last(tmp_path: Path) -> None:
    release = read("last", last(tmp_path))
    assert [row[1:] for row in rows(release, "train")] == [
        (7, -1, outfit_id(7, 1)),
        (7, -1, outfit_id(7, 0)),
        (7, -1, outfit_id(7, 1)),
        (9, -1, outfit_id(9, 0)),
        (9, -1, outfit_id(9, 1)),
    ]
    assert [row[1:] for row in rows(release, "query")] == [(person, -1, -1) for person in (1, 2, 2, 3, 4)]
    # The folders of the gallery say nothing.
    assert [row[1:] for row in rows(release, "gallery")] == [(person, -1, -1) for person in (1, 1, 2, 2, 3)]
    assert rows(release, "val_query") == [("000008_a_1.jpg", 8, -1, -1)] and rows(release, "val_gallery") == [
        ("000008_a_2.jpg", 8, -1, -1)
    ]
    assert set(read("last", tmp_path, need_train=False).parts) == {"train", "query", "gallery"}


def test_last_by_hand(tmp_path: Path) -> None:
    # Nothing is dropped. Persons a a b b c, queries a b b c d: ranks 1, 2; 2, 3; 2, 5; 1; none.
    check("last", last(tmp_path), "last", LAST_QUERY, LAST_GALLERY, [1, 7 / 12, 9 / 20, 1], 2)


@pytest.mark.parametrize(
    "path", ["test/query/picture.jpg", "test/gallery/1/1.jpg", "train/000007/x_1.jpg", "val/query/000001-a.jpg"]
)
def test_last_bad_names(tmp_path: Path, path: str) -> None:
    write(last(tmp_path) / "last", path)
    with pytest.raises(
        UserError, match=f"{path.rpartition('/')[0]}: file name '{path.rpartition('/')[2]}' does not have the form"
    ):
        read("last", tmp_path)


def test_last_gallery_without_folders(tmp_path: Path) -> None:
    write(tmp_path / "last", *LAST_QUERY, *LAST_TRAIN, "test/gallery/000001_a_1.jpg")
    with pytest.raises(UserError, match="test/gallery: no images found"):
        read("last", tmp_path)


NKUP_QUERY = [
    f"query/{name}.jpg"
    for name in (
        "0005_D1012_C03S01_00151",
        "0005_D1012_C04S01_00152",
        "0006_D1012_C02S01_00153",
        "0007_D1012_C01S01_00154",
        "0007_D1012_C15S01_00155",
    )
]
NKUP_GALLERY = [
    f"bounding_box_test/{name}.jpg"
    for name in (
        "0005_D0912_C01S01_00151",
        "0005_D0912_C03S01_00152",
        "0006_D0912_C01S01_00153",
        "0006_D0912_C02S01_00154",
        "0007_D0912_C15S01_00155",
    )
]


def nkup(root: Path) -> Path:
    write(
        root / "NKUP",
        *NKUP_QUERY,
        *NKUP_GALLERY,
        "bounding_box_train/0100_D0912_C08S02_00001.jpg",
        "bounding_box_test/-1_D0912_C01S01_00009.jpg",
        "query/-1_D0912_C01S01_00009.jpg",
    )
    (root / "NKUP/query/Thumbs.db").write_bytes(b"thumbs")
    return root


def test_nkup(tmp_path: Path) -> None:
    release = read("nkup", nkup(tmp_path))
    assert rows(release, "train") == [("0100_D0912_C08S02_00001.jpg", 100, 8, -1)]
    assert [row[1:] for row in rows(release, "query")] == [(5, 3, -1), (5, 4, -1), (6, 2, -1), (7, 1, -1), (7, 15, -1)]
    assert [row[1:3] for row in rows(release, "gallery")] == [(5, 1), (5, 3), (6, 1), (6, 2), (7, 15)]
    assert release.dropped == {"images of nobody, pid -1": 2}


def test_nkup_by_hand(tmp_path: Path) -> None:
    # Without the same camera: 1 -> 1; 5 4 3 2 1 -> 4, 5; 2 3 -> 2; 5 -> 1; none.
    check("nkup", nkup(tmp_path), "nkup", NKUP_QUERY, NKUP_GALLERY, [1, 13 / 40, 1 / 2, 1], 2)


@pytest.mark.parametrize(
    "name", ["0005_D912_C03S01_00151.jpg", "0005_c3s1_000151_01.jpg", "0005_D0912_C3S01_00151.jpg"]
)
def test_nkup_bad_names(tmp_path: Path, name: str) -> None:
    write(nkup(tmp_path) / "NKUP/bounding_box_train", name)
    with pytest.raises(UserError, match=f"bounding_box_train: file name '{name}' does not have the form"):
        read("nkup", tmp_path)


def plus(folder: str, *images: tuple[int, str, int]) -> list[str]:
    return [
        f"{folder}/{person:04d}/{appearance}/{person:04d}_D0912_C{camera:02d}S01_{100 + number:05d}.jpg"
        for number, (person, appearance, camera) in enumerate(images)
    ]


PLUS_QUERY = plus("bounding_box_test/query", (1, "1A", 3), (1, "1A", 4), (2, "2A", 5), (2, "2C", 6), (3, "3A", 7))
PLUS_SAME = plus(
    "bounding_box_test/gallery_sameapp", (1, "1A", 3), (1, "1A", 8), (2, "2A", 5), (2, "2C", 9), (3, "3A", 1)
)
PLUS_MODERATE = plus("bounding_box_test/gallery_crossapp_moderate", (1, "1B", 3), (2, "2B", 6), (3, "3B", 1))
PLUS_DRAMATIC = plus("bounding_box_test/gallery_crossapp_dramatic", (1, "1C", 9), (2, "2D", 1))


def nkup_plus(root: Path, folder: str = "NKUP2_0126/NKUP2") -> Path:
    write(
        root / folder,
        *PLUS_QUERY,
        *PLUS_SAME,
        *PLUS_MODERATE,
        *PLUS_DRAMATIC,
        *plus("bounding_box_train", (9, "9A", 29), (9, "9B", 2)),
    )
    (root / folder / "bounding_box_train/0009/9A/Thumbs.db").write_bytes(b"thumbs")
    return root


def test_nkup_plus(tmp_path: Path) -> None:
    release = read("nkup-plus", nkup_plus(tmp_path))
    assert [row[1:] for row in rows(release, "train")] == [(9, 29, outfit_id(9, 0)), (9, 2, outfit_id(9, 1))]
    # Appearances are numbered over all test folders: 2A, 2B, 2C, 2D are 0, 1, 2, 3.
    assert [row[1:] for row in rows(release, "query")] == [
        (1, 3, outfit_id(1, 0)),
        (1, 4, outfit_id(1, 0)),
        (2, 5, outfit_id(2, 0)),
        (2, 6, outfit_id(2, 2)),
        (3, 7, outfit_id(3, 0)),
    ]
    assert [row[1:] for row in rows(release, "gallery_dramatic")] == [(1, 9, outfit_id(1, 2)), (2, 1, outfit_id(2, 3))]
    assert [place(record, release) for record in release.parts["gallery_moderate"]] == PLUS_MODERATE


@pytest.mark.parametrize("folder", ["NKUP2_0126/NKUP2", "NKUP+", "some where/else", "."])
def test_nkup_plus_is_searched_for(tmp_path: Path, folder: str) -> None:
    assert read("nkup-plus", nkup_plus(tmp_path, folder)).root == tmp_path / folder
    assert dataset_entry("nkup-plus").recognise(tmp_path)


@pytest.mark.parametrize(
    ("protocol", "gallery", "ap", "rank1"),
    [
        # Without the same camera: 2 -> 1; 5 4 3 2 1 -> 4, 5; 2 1 5 4 -> 4; 5 3 4 -> 2, 3; 4 1 2 5 -> 4.
        ("nkup-plus-same", PLUS_SAME, [1, 13 / 40, 1 / 4, 7 / 12, 1 / 4], 1),
        # Moderate is 1 2 3 of 5. None; 3 2 1 -> 3; 2 -> 1; none; 1 2 3 -> 3.
        ("nkup-plus-moderate", PLUS_MODERATE + PLUS_DRAMATIC, [1 / 3, 1, 1 / 3], 1),
        # Dramatic is 4 5 of 5. 4 -> 1; 5 4 -> 2; 5 -> 1; 5 -> 1; none.
        ("nkup-plus-dramatic", PLUS_MODERATE + PLUS_DRAMATIC, [1, 1 / 2, 1, 1], 3),
        # Both: 2 3 4 -> 3; 5 4 3 2 1 -> 2, 5; 2 3 1 5 -> 1, 4; 5 -> 1; 4 1 2 5 3 -> 5.
        ("nkup-plus-cross", PLUS_MODERATE + PLUS_DRAMATIC, [1 / 3, 9 / 20, 3 / 4, 1, 1 / 5], 2),
    ],
)
def test_nkup_plus_by_hand(tmp_path: Path, protocol: str, gallery: list[str], ap: list[float], rank1: int) -> None:
    check("nkup-plus", nkup_plus(tmp_path), protocol, PLUS_QUERY, gallery, ap, rank1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bounding_box_train/0009/9A/short.jpg", "does not have the form"),
        ("bounding_box_test/query/x/1A/0001_D0912_C01S01_1.jpg", "'x' is not a whole number"),
        ("bounding_box_train/0009/9A/0009_D0912_C1S01_00001.jpg", "does not have the form"),
    ],
)
def test_nkup_plus_bad_names(tmp_path: Path, path: str, message: str) -> None:
    write(nkup_plus(tmp_path) / "NKUP2_0126/NKUP2", path)
    with pytest.raises(UserError, match=message):
        read("nkup-plus", tmp_path)


BUILDERS = [
    ("prcc", prcc),
    ("vc-clothes", vc_clothes),
    ("ltcc", ltcc),
    ("last", last),
    ("nkup", nkup),
    ("nkup-plus", nkup_plus),
]


@pytest.mark.parametrize(
    ("name", "build", "inside", "part"),
    [
        ("prcc", prcc, "prcc/rgb", "rgb/test/A"),
        ("vc-clothes", vc_clothes, "VC-Clothes/query", "gallery"),
        ("ltcc", ltcc, "LTCC_ReID/test", "query"),
        ("last", last, "last/test", "test/gallery"),
        ("nkup", nkup, "NKUP/query", "bounding_box_test"),
    ],
)
def test_wrong_root(tmp_path: Path, name: str, build, inside: str, part: str) -> None:
    build(tmp_path / "a")
    with pytest.raises(UserError, match=f"one level too high.*set data.root={re.escape(str(tmp_path / 'a'))}$"):
        read(name, tmp_path)
    with pytest.raises(
        UserError, match=f"one level too low.*set data.root={re.escape(str(tmp_path / 'a' / inside.split('/')[0]))}$"
    ):
        read(name, tmp_path / "a" / inside)
    base = tmp_path / "a" / inside.split("/")[0]
    (base / part).rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"not a whole .*{part} missing"):
        read(name, tmp_path / "a")
    (base / part).mkdir()
    with pytest.raises(UserError, match=f"{part}: no "):
        read(name, tmp_path / "a")


def test_nkup_plus_wrong_root(tmp_path: Path) -> None:
    nkup_plus(tmp_path / "a/b/c")
    with pytest.raises(UserError, match="holds no NKUP\\+"):
        read("nkup-plus", tmp_path)
    (tmp_path / "a/b/c/NKUP2_0126/NKUP2/bounding_box_test/gallery_sameapp").rename(tmp_path / "away")
    with pytest.raises(UserError, match="gallery_sameapp missing"):
        read("nkup-plus", tmp_path / "a/b/c")


@pytest.mark.parametrize("above", ["run_c2", "2024-01-02-03", "query"])
@pytest.mark.parametrize(("name", "build"), BUILDERS)
def test_parent_folders_mean_nothing(tmp_path: Path, above: str, name: str, build) -> None:
    here, there = read(name, build(tmp_path / "plain")), read(name, build(tmp_path / above))
    assert all(rows(here, part) == rows(there, part) for part in here.parts)


@pytest.mark.parametrize(("name", "build"), BUILDERS)
def test_order_of_the_listing_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, build) -> None:
    build(tmp_path)
    expected, listdir, scandir = read(name, tmp_path), os.listdir, os.scandir

    class Backwards:
        def __init__(self, where) -> None:
            with scandir(where) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __enter__(self):
            return self.entries

        def __exit__(self, *raised) -> None:
            pass

    monkeypatch.setattr(os, "listdir", lambda *where: sorted(listdir(*where), reverse=True))
    monkeypatch.setattr(os, "scandir", Backwards)
    assert read(name, tmp_path).parts == expected.parts


@pytest.mark.parametrize(("name", "build"), BUILDERS)
def test_each_is_recognised_and_no_other_one(tmp_path: Path, name: str, build) -> None:
    build(tmp_path)
    assert [other for other, _ in BUILDERS if dataset_entry(other).recognise(tmp_path)] == [name]
    assert not any(dataset_entry(other).recognise(tmp_path) for other in ("market1501", "msmt17", "cuhk03"))


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("market1501", {"train": (12936, 751), "query": (3368, 750), "gallery": (15913, None)}),
        (
            "prcc",
            {
                "train": (17896, 150),
                "val": (5002, 150),
                "query_same": (3873, 71),
                "query_changed": (3543, 71),
                "gallery": (3384, 71),
            },
        ),
        ("vc-clothes", {"train": (9449, 256), "query": (1020, None), "gallery": (8591, None)}),
        ("ltcc", {"train": (9576, 77), "query": (493, 75), "gallery": (7050, 75)}),
        (
            "last",
            {
                "train": (71248, 5000),
                "val_query": (100, 56),
                "val_gallery": (21279, 56),
                "query": (10176, 5805),
                "gallery": (125353, 5806),
            },
        ),
        ("nkup", {"train": (5336, 40), "query": (332, None), "gallery": (4070, 67)}),
        ("nkup-plus", {"train": (22590, 181)}),
    ],
)
def test_published_counts(name: str, figures: dict[str, tuple[int, int | None]]) -> None:
    entry = dataset_entry(name)
    assert {part: (count.images, count.persons) for part, count in entry.published[""].items()} == figures
    assert all(count.confirmed is (name != "vc-clothes") for count in entry.published[""].values())
    assert entry.access and set(entry.default) <= set(entry.protocols)
    assert entry.task is (Task.TRAD if name == "market1501" else Task.CC)
