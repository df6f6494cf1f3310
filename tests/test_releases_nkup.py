"""Covers: datasets/releases/nkup, datasets/releases/nkup_plus. NKUP and NKUP+: files in their official layouts, and a
hand-worked 5 x 5 case per protocol.
"""

from pathlib import Path

import pytest
from clothes_trees import (
    NKUP_GALLERY,
    NKUP_QUERY,
    PLUS_DRAMATIC,
    PLUS_MODERATE,
    PLUS_QUERY,
    PLUS_SAME,
    check,
    nkup,
    nkup_plus,
)
from measure import place, read, rows
from trees import plant

from datasets.catalogue import dataset_entry
from datasets.formats.listing import outfit_id
from utils.errors import UserError


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
    plant(nkup(tmp_path) / "NKUP/bounding_box_train", name)
    with pytest.raises(UserError, match=f"bounding_box_train: file name '{name}' does not have the form"):
        read("nkup", tmp_path)


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
    plant(nkup_plus(tmp_path) / "NKUP2_0126/NKUP2", path)
    with pytest.raises(UserError, match=message):
        read("nkup-plus", tmp_path)
