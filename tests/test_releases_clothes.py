"""Covers: datasets/catalogue, datasets/formats/listing, datasets/formats/image_folders. PRCC, VC-Clothes, LTCC, LaST,
NKUP, NKUP+: what holds for all of them: roots, listings, recognition, counts.
"""

import os
import re
from pathlib import Path

import pytest
from clothes_trees import (
    BUILDERS,
    last,
    ltcc,
    nkup,
    nkup_plus,
    prcc,
    vc_clothes,
)
from measure import read, rows

from configs.vocabulary import Task
from datasets.catalogue import dataset_entry
from utils.errors import UserError


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
