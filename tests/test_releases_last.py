"""Covers: datasets/releases/last. LaST: files in the official layout, and a hand-worked 5 x 5 case."""

from pathlib import Path

import pytest
from clothes_trees import LAST_GALLERY, LAST_QUERY, LAST_TRAIN, check, last
from measure import read, rows
from trees import plant

from datasets.formats.listing import outfit_id
from utils.errors import UserError


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
    plant(last(tmp_path) / "last", path)
    with pytest.raises(
        UserError, match=f"{path.rpartition('/')[0]}: file name '{path.rpartition('/')[2]}' does not have the form"
    ):
        read("last", tmp_path)


def test_last_gallery_without_folders(tmp_path: Path) -> None:
    plant(tmp_path / "last", *LAST_QUERY, *LAST_TRAIN, "test/gallery/000001_a_1.jpg")
    with pytest.raises(UserError, match="test/gallery: no images found"):
        read("last", tmp_path)
