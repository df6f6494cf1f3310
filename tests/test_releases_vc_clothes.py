"""Covers: datasets/releases/vc_clothes. VC-Clothes: files in the official layout, and a hand-worked 5 x 5 case per
protocol.
"""

from pathlib import Path

import pytest
from clothes_trees import VC_GALLERY, VC_QUERY, check, vc_clothes
from measure import read, rows
from trees import plant

from datasets.catalogue import dataset_entry
from datasets.formats.listing import outfit_id
from utils.errors import UserError


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
    plant(vc_clothes(tmp_path) / "VC-Clothes/gallery", f"{name}.jpg")
    with pytest.raises(UserError, match=message) as caught:
        read("vc-clothes", tmp_path)
    assert name in str(caught.value)
