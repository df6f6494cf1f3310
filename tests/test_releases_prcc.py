"""Covers: datasets/releases/prcc. PRCC: files in the official layout, and a hand-worked 5 x 5 case per protocol."""

from pathlib import Path

import pytest
from clothes_trees import PRCC_A, PRCC_B, PRCC_C, check, prcc
from measure import place, read, rows, score
from trees import plant

from configs.vocabulary import Task
from datasets.catalogue import dataset_entry
from datasets.formats.listing import outfit_id
from utils.errors import UserError


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
    results = score("prcc", prcc(tmp_path), protocol, queries, PRCC_A)
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
    plant(prcc(tmp_path) / "prcc", path)
    with pytest.raises(UserError, match=message) as caught:
        read("prcc", tmp_path)
    assert "/".join(path.split("/")[:2]) in str(caught.value)


def test_prcc_parts_that_may_be_absent(tmp_path: Path) -> None:
    plant(tmp_path / "prcc", *PRCC_A, *PRCC_B, *PRCC_C)
    assert read("prcc", tmp_path, need_train=False).parts["train"] == ()
    with pytest.raises(UserError, match="rgb/train missing"):
        read("prcc", tmp_path)
    plant(tmp_path / "prcc", "rgb/train/004/A_cropped_rgb001.jpg")
    release = read("prcc", tmp_path)
    assert "val" not in release.parts and "no part val" in release.notes[0]
