"""Covers: datasets/releases/ltcc. LTCC: files in the official layout, and a hand-worked 5 x 5 case per protocol."""

from pathlib import Path

import pytest
from clothes_trees import LTCC_GALLERY, LTCC_QUERY, check, ltcc
from measure import read, rows
from trees import plant

from datasets.catalogue import dataset_entry
from datasets.formats.listing import outfit_id
from utils.errors import UserError


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
    plant(ltcc(tmp_path) / "LTCC_ReID/test", f"{name}.png")
    with pytest.raises(UserError, match=message) as caught:
        read("ltcc", tmp_path)
    assert name in str(caught.value)
