"""Covers: datasets/formats/text_sets, datasets/releases/cuhk_pedes, datasets/releases/icfg_pedes,
datasets/releases/rstpreid, datasets/releases/synth_pedes. CUHK-PEDES, ICFG-PEDES, RSTPReid and SYNTH-PEDES: official
layouts written by hand, the protocol on paper, damaged copies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measure import measure, read, split_of
from trees import plant, write_lines

from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.benchmark import build_from_release
from datasets.catalogue import dataset_entry
from utils.errors import UserError

SETS = {
    "cuhk-pedes": ("CUHK-PEDES", "reid_raw.json", "file_path"),
    "icfg-pedes": ("ICFG-PEDES", "ICFG-PEDES.json", "file_path"),
    "rstpreid": ("RSTPReid", "data_captions.json", "img_path"),
}
"""Name -> folder, annotation file, key of the path."""

ENTRIES = (
    ("train", 1, "cam_a/001.jpg", ["a man in red", "he wears a red coat"]),
    ("train", 1, "cam_b/001.jpg", ["red coat"]),
    ("train", 7, "CUHK01/7.jpg", ["a woman", "grey skirt", "white shoes"]),
    ("val", 11004, "cam_a/050.jpg", ["a boy", "yellow cap"]),
    ("test", 12004, "test_query/1.jpg", ["green shirt", "jeans"]),
    ("test", 12004, "test_query/2.jpg", ["green top"]),
    ("test", 12005, "Market/3.jpg", ["blue bag"]),
    ("test", 12006, "Market/4.jpg", ["long hair"]),
)


def annotation(path_key: str, split: str, person: int, path: str, captions: list[str]) -> dict[str, Any]:
    return {
        "split": split,
        "captions": captions,
        path_key: path,
        "processed_tokens": [caption.split() for caption in captions],
        "id": person,
    }


def tree(root: Path, name: str, entries: tuple[tuple[str, int, str, list[str]], ...] = ENTRIES) -> Path:
    """One of the three sets that have splits, with its annotation file and images."""
    folder, file, path_key = SETS[name]
    plant(root / folder / "imgs", *(path for _, _, path, _ in entries))
    content = [annotation(path_key, *entry) for entry in entries]
    if name == "rstpreid":
        for entry in content:
            del entry["processed_tokens"]
    (root / folder / file).write_text(json.dumps(content), encoding="utf-8")
    return root / folder


@pytest.mark.parametrize("name", SETS)
def test_a_caption_set_is_read_as_listed(tmp_path: Path, name: str) -> None:
    folder = tree(tmp_path, name)
    file = SETS[name][1]
    release = read(name, tmp_path)
    assert release.root == folder and not release.notes and not release.dropped
    assert {part: len(records) for part, records in release.parts.items()} == {
        "train": 6,
        "val_query": 2,
        "val_gallery": 1,
        "query": 5,
        "gallery": 4,
    }
    train = release.parts["train"]
    assert [(record.person_id, record.sources[Modality.TEXT].value) for record in train] == [
        (1, "a man in red"),
        (1, "he wears a red coat"),
        (1, "red coat"),
        (7, "a woman"),
        (7, "grey skirt"),
        (7, "white shoes"),
    ]
    assert [Path(record.sources[Modality.RGB].value).relative_to(folder / "imgs").as_posix() for record in train] == [
        "cam_a/001.jpg",
        "cam_a/001.jpg",
        "cam_b/001.jpg",
        "CUHK01/7.jpg",
        "CUHK01/7.jpg",
        "CUHK01/7.jpg",
    ]
    assert (
        train[3].name
        == f"{file} entry 2"
        == train[3].sources[Modality.TEXT].record
        == train[3].sources[Modality.RGB].record
    )
    assert {
        (record.dataset, record.task, record.camera_id) for records in release.parts.values() for record in records
    } == {(name, Task.T2I, -1)}
    described = {
        part: [record.annotations[AnnotationKind.DESCRIPTION].value for record in records]
        for part, records in release.parts.items()
    }
    assert described["train"] == [record.sources[Modality.TEXT].value for record in train]
    # A query is described by itself, an image by its first caption.
    assert described["query"] == ["green shirt", "jeans", "green top", "blue bag", "long hair"]
    assert described["gallery"] == ["green shirt", "green top", "blue bag", "long hair"]
    assert all(
        list(record.sources) == [Modality.TEXT] for record in (*release.parts["query"], *release.parts["val_query"])
    )
    assert all(
        list(record.sources) == [Modality.RGB] for record in (*release.parts["gallery"], *release.parts["val_gallery"])
    )
    assert read(name, folder).parts == release.parts


def test_five_captions_against_five_images_by_hand(tmp_path: Path) -> None:
    folder = tree(
        tmp_path,
        "icfg-pedes",
        (
            ("train", 0, "test/0.jpg", ["a man"]),
            ("test", 5, "train/1.jpg", ["tall man"]),
            ("test", 5, "train/2.jpg", ["red hat"]),
            ("test", 6, "train/3.jpg", ["small girl"]),
            ("test", 6, "test/4.jpg", ["old coat"]),
            ("test", 8, "test/5.jpg", ["dark suit"]),
        ),
    )
    split = split_of(read("icfg-pedes", tmp_path), "icfg-pedes")
    # The image that a caption was written for counts like every other. AP 1, (1/3 + 2/5)/2 twice, (1 + 2/3)/2, 1/4.
    result = measure(
        split,
        "icfg-pedes",
        folder,
        """
                   imgs/train/1.jpg imgs/train/2.jpg imgs/train/3.jpg imgs/test/4.jpg imgs/test/5.jpg
        tall~man   .9 .8 .3 .2 .1
        red~hat    .2 .7 .4 .8 .9
        small~girl .9 .5 .4 .6 .8
        old~coat   .1 .2 .9 .3 .8
        dark~suit  .9 .8 .7 .6 .65""",
    )
    assert result.first_rank.tolist() == [1, 3, 3, 1, 4]
    assert result.R1 == pytest.approx(40) and result.mAP == pytest.approx(100 * (1 + 2 * 11 / 30 + 5 / 6 + 1 / 4) / 5)
    queries = split.query_lists[0]
    assert (queries.exclusion_rule, queries.cmc, queries.protocol, queries.gallery) == (
        "none",
        "image",
        "icfg-pedes",
        None,
    )
    assert queries.annotation_kinds == (AnnotationKind.DESCRIPTION,) * 5


def test_icfg_has_two_names_and_upper_case_splits(tmp_path: Path) -> None:
    folder = tree(
        tmp_path, "icfg-pedes", (("TRAIN", 0, "test/0.jpg", ["a man"]), ("Test", 5, "train/1.jpg", ["tall man"]))
    )
    (folder / "ICFG-PEDES.json").rename(folder / "ICFG_PEDES.json")
    folder.rename(tmp_path / "ICFG_PEDES")
    release = read("icfg-pedes", tmp_path)
    # imgs/train and imgs/test are MSMT17's folders: the split is the JSON's, and there is no validation part.
    assert {part: [record.person_id for record in records] for part, records in release.parts.items()} == {
        "train": [0],
        "query": [5],
        "gallery": [5],
    }


def test_an_image_of_two_entries_is_in_the_gallery_once(tmp_path: Path) -> None:
    tree(tmp_path, "cuhk-pedes", (*ENTRIES, ("test", 12005, "Market/3.jpg", ["handbag"])))
    release = read("cuhk-pedes", tmp_path)
    assert (len(release.parts["query"]), len(release.parts["gallery"]), list(release.dropped.values())) == (6, 4, [1])


def test_a_test_needs_the_test_split_only(tmp_path: Path) -> None:
    folder = tree(tmp_path, "rstpreid")
    for path in (folder / "imgs").glob("cam_*/*"):
        path.unlink()
    assert set(read("rstpreid", tmp_path, need_train=False).parts) == {"query", "gallery"}
    with pytest.raises(UserError, match="data_captions.json entry 0: no such image"):
        read("rstpreid", tmp_path)


def test_validation_is_the_data_sets_own(tmp_path: Path) -> None:
    tree(tmp_path, "cuhk-pedes")
    benchmark = build_from_release(dataset_entry("cuhk-pedes"), read("cuhk-pedes", tmp_path), select_val=True)
    assert benchmark.num_identities == 2 and benchmark.splits["val"].gallery_ids == (11004,)
    assert [entry[0].value for entry in benchmark.splits["val"].query_lists[0].entries] == ["a boy", "yellow cap"]


def synth_tree(root: Path) -> Path:
    """SYNTH-PEDES with three images of two persons."""
    folder = root / "SYNTH-PEDES"
    plant(folder, "Part1/7/1.jpg", "Part1/7/2.jpg", "Part6/9/1.jpg")
    content = [
        {
            "id": person,
            "file_path": path,
            "attributes": ["man,black hair"],
            "captions": captions,
            "prompt_caption": ["a man with black hair"],
        }
        for person, path, captions in (
            (7, "Part1/7/1.jpg", ["one", "two"]),
            (7, "Part1/7/2.jpg", ["three"]),
            (9, "Part6/9/1.jpg", ["four", "five", "six"]),
        )
    ]
    (folder / "annotation.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_synth_pedes_is_for_training(tmp_path: Path) -> None:
    folder = synth_tree(tmp_path)
    release = read("synth-pedes", tmp_path)
    assert list(release.parts) == ["train"] and not dataset_entry("synth-pedes").protocols
    assert [
        (record.person_id, record.sources[Modality.TEXT].value, record.sources[Modality.RGB].value)
        for record in release.parts["train"]
    ] == [
        (person, caption, str(folder / path))
        for person, caption, path in (
            (7, "one", "Part1/7/1.jpg"),
            (7, "two", "Part1/7/1.jpg"),
            (7, "three", "Part1/7/2.jpg"),
            (9, "four", "Part6/9/1.jpg"),
            (9, "five", "Part6/9/1.jpg"),
            (9, "six", "Part6/9/1.jpg"),
        )
    ]
    assert build_from_release(dataset_entry("synth-pedes"), release).num_identities == 2
    with pytest.raises(UserError, match="no test split"):
        read("synth-pedes", tmp_path, need_train=False)


def test_synth_pedes_in_the_form_of_instruct_reid(tmp_path: Path) -> None:
    folder = synth_tree(tmp_path)
    expected = [record.sources for record in read("synth-pedes", tmp_path).parts["train"]]
    (folder / "annotation.json").rename(folder / "other.json")
    lines = [
        ("Part1/7/1.jpg", "one"),
        ("Part1/7/1.jpg", "two"),
        ("Part1/7/2.jpg", "three"),
        *(("Part6/9/1.jpg", word) for word in ("four", "five", "six")),
    ]
    (folder / "caption_t2i.json").write_text(
        json.dumps({f"key{place}": caption for place, (_, caption) in enumerate(lines)})
    )
    write_lines(
        folder / "train_t2i.txt",
        *[f"{path} key{place} {path.split('/')[1]} 0" for place, (path, _) in enumerate(lines)],
    )
    release = read("synth-pedes", tmp_path)
    assert [record.sources for record in release.parts["train"]] == expected
    assert [record.person_id for record in release.parts["train"]] == [7, 7, 7, 9, 9, 9]
    write_lines(folder / "train_t2i.txt", "Part1/7/1.jpg key0 7 0", "Part1/7/1.jpg key99 7 0")
    with pytest.raises(UserError, match="train_t2i.txt line 2: caption_t2i.json has no key 'key99'"):
        read("synth-pedes", tmp_path)
    write_lines(folder / "train_t2i.txt", "Part1/7/1.jpg key0 7")
    with pytest.raises(UserError, match="train_t2i.txt line 1: expected image, key, person"):
        read("synth-pedes", tmp_path)


def _entry(index: int, **changes: Any) -> Callable[[Path], None]:
    """Change keys of an entry of reid_raw.json; None removes the key."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "reid_raw.json").read_text())
        content[index] = {key: value for key, value in (content[index] | changes).items() if value is not None}
        (folder / "reid_raw.json").write_text(json.dumps(content))

    return edit


def _content(value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "reid_raw.json").write_text(json.dumps(value))


def _only_caption_all(folder: Path) -> None:
    (folder / "reid_raw.json").rename(folder / "caption_all.json")


DAMAGED: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "images missing": (lambda folder: (folder / "imgs").rename(folder / "pictures"), ("CUHK-PEDES: imgs missing",)),
    "annotations missing": (lambda folder: (folder / "reid_raw.json").unlink(), ("no such file", "reid_raw.json")),
    "the file without splits": (_only_caption_all, ("caption_all.json", "names no splits", "put reid_raw.json")),
    "annotations cut": (
        lambda folder: (folder / "reid_raw.json").write_text('[{"id": 1'),
        ("reid_raw.json", "truncated"),
    ),
    "no list": (_content({"a": 1}), ("reid_raw.json", "a list", "dict")),
    "empty list": (_content([]), ("reid_raw.json", "a list")),
    "entry is no object": (_content([[1]]), ("reid_raw.json entry 0", "[1]")),
    "no split": (_entry(2, split=None), ("entry 2", "no key 'split'")),
    "no captions": (_entry(3, captions=None), ("entry 3", "no key 'captions'")),
    "no path": (_entry(3, file_path=None, img_path="cam_a/050.jpg"), ("entry 3", "no key 'file_path'", "'img_path'")),
    "unknown split": (_entry(1, split="tst"), ("entry 1", '"tst"', "did you mean 'test'")),
    "split is a number": (_entry(1, split=3), ("entry 1", "split = 3")),
    "id is text": (_entry(1, id="one"), ("entry 1", 'id = "one"')),
    "id is negative": (_entry(1, id=-4), ("entry 1", "id = -4")),
    "id is true": (_entry(1, id=True), ("entry 1", "id = true")),
    "captions empty": (_entry(4, captions=[]), ("entry 4", "at least one caption")),
    "captions one text": (_entry(4, captions="a man"), ("entry 4", "not a list")),
    "caption is a number": (_entry(4, captions=["a man", 3]), ("entry 4", "caption 3 is not a text")),
    "caption is blank": (_entry(4, captions=["  "]), ("entry 4", "is not a text")),
    "path is a number": (_entry(5, file_path=5), ("entry 5", "file_path = 5")),
    "path leaves the folder": (_entry(5, file_path="../../x.jpg"), ("entry 5", "not a path inside")),
    "path is absolute": (_entry(5, file_path="/x.jpg"), ("entry 5", "'/x.jpg'", "relative")),
    "path is no image": (_entry(5, file_path="x.txt"), ("entry 5", "does not end like an image")),
    "image missing": (_entry(5, file_path="gone/x.jpg"), ("entry 5", "no such image", "gone/x.jpg")),
    "image of two persons": (
        _entry(6, file_path="test_query/1.jpg"),
        ("entry 6", "person 12005", "12004 in reid_raw.json entry 4"),
    ),
    "no test entries": (_content([annotation("file_path", *ENTRIES[0])]), ("split test",)),
    "no training entries": (_content([annotation("file_path", *ENTRIES[4])]), ("split train",)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    damage, expected = DAMAGED[case]
    damage(tree(tmp_path, "cuhk-pedes"))
    with pytest.raises(UserError) as error:
        read("cuhk-pedes", tmp_path)
    assert not [part for part in expected if part not in str(error.value)], str(error.value)
    assert "\n" not in str(error.value)


def test_synth_pedes_needs_one_annotation_file(tmp_path: Path) -> None:
    folder = synth_tree(tmp_path)
    write_lines(folder / "second.json", "[]")
    with pytest.raises(UserError, match="found annotation.json, second.json"):
        read("synth-pedes", tmp_path)


def test_the_sets_are_told_apart_by_name(tmp_path: Path) -> None:
    folders = {name: tree(tmp_path / name, name) for name in SETS} | {"synth-pedes": synth_tree(tmp_path / "s")}
    for name, folder in folders.items():
        for root in (folder, folder.parent):
            assert [other for other in folders if dataset_entry(other).recognise(root)] == [name]
    with pytest.raises(UserError, match="data.trial"):
        read("rstpreid", tmp_path / "rstpreid", trial=2)
