"""Covers: datasets/releases/orbench, datasets/formats/query_lists. Annotations of the official layout: what is read,
drawn, counted and refused. Trees are written by hand, byte by byte.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_orbench import load_orbench

from configs.schema.data import DataConfig
from configs.vocabulary import ORBENCH_KEYS, AnnotationKind, Modality
from datasets.build import build_benchmark
from datasets.dataset_entry import Count
from datasets.releases import orbench
from datasets.structures import Benchmark, EvalSplit
from utils.errors import UserError

KEYS = [
    "NIR",
    "CP",
    "SK",
    "TEXT",
    "NIR+CP",
    "CP+NIR",
    "NIR+SK",
    "SK+NIR",
    "NIR+TEXT",
    "TEXT+NIR",
    "CP+SK",
    "SK+CP",
    "CP+TEXT",
    "TEXT+CP",
    "SK+TEXT",
    "TEXT+SK",
    "NIR+CP+SK",
    "CP+NIR+SK",
    "SK+NIR+CP",
    "NIR+CP+TEXT",
    "CP+NIR+TEXT",
    "TEXT+NIR+CP",
    "NIR+SK+TEXT",
    "SK+NIR+TEXT",
    "TEXT+NIR+SK",
    "CP+SK+TEXT",
    "SK+CP+TEXT",
    "TEXT+CP+SK",
    "NIR+CP+SK+TEXT",
    "CP+NIR+SK+TEXT",
    "SK+NIR+CP+TEXT",
    "TEXT+NIR+CP+SK",
]
"""The reference's table, written out."""
FOLDER = {"RGB": "vis", "NIR": "nir", "CP": "cp", "SK": "sk"}
TRAIN_IDS = {"0007": 30, "0002": 4, "0100": 12}
"""Folder -> raw id; neither is contiguous nor in the other's order."""
COUNTS = {"vis": 2, "nir": 3, "cp": 1, "sk": 2}


class Tree:
    """An ORBench tree on disk. The reader opens no image, so files are empty."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "ORBench"
        for folder in (*TRAIN_IDS, "0900", "0901"):
            for kind, count in COUNTS.items():
                for index in range(count):
                    self.touch(f"{kind}/{folder}/{index}.jpg")
        self.train: Any = [
            {
                "id": str(person) if folder == "0002" else person,
                "file_path": f"vis/{folder}/{index}.jpg",
                "caption": f"caption {folder} {index}",
                "split": "train",
                "extra": None,
            }
            for folder, person in TRAIN_IDS.items()
            for index in range(COUNTS["vis"])
        ]
        self.test: Any = {
            "RGB_GALLERY": [[person, f"vis/{folder}/0.jpg"] for folder, person in (("0900", 5), ("0901", 6))]
        }
        for key in KEYS:
            self.test[key] = [
                [
                    person,
                    *(
                        f"{FOLDER[part]}/{folder}/0.jpg" if part in FOLDER else f"words {folder}"
                        for part in key.split("+")
                    ),
                ]
                for folder, person in (("0900", 5), ("0901", 6))
            ]

    def touch(self, relative: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def load(self, *, need_train: bool = True, **options: Any) -> Benchmark:
        (self.base / "train_annos.json").write_text(json.dumps(self.train), encoding="utf-8")
        (self.base / "test_gallery_and_queries.json").write_text(json.dumps(self.test), encoding="utf-8")
        return load_orbench(self.root, need_train=need_train, **options)

    def refusal(self, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.load(**options)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "data")


def test_labels_are_sorted_by_raw_id(tree: Tree) -> None:
    benchmark = tree.load()
    assert [record.person_id for record in benchmark.train] == [2, 2, 0, 0, 1, 1]
    assert benchmark.num_identities == 3
    first = benchmark.train[0]
    assert first.sources[Modality.RGB].value == str(tree.base / "vis/0007/0.jpg")
    assert first.sources[Modality.TEXT].value == "caption 0007 0"
    assert first.name == "train_annos.json entry 0"


def test_partners_come_from_the_own_folder_only(tree: Tree) -> None:
    tree.touch("nir/0007/.hidden.jpg")
    tree.touch("nir/0007/Thumbs.db")
    for record in tree.load().train:
        folder = Path(record.sources[Modality.RGB].value).parent.name
        for modality, kind in ((Modality.NIR, "nir"), (Modality.CP, "cp"), (Modality.SK, "sk")):
            assert [source.value for source in record.partners[modality]] == [
                str(tree.base / kind / folder / f"{index}.jpg") for index in range(COUNTS[kind])
            ]


def test_test_lists_keep_order_and_raw_ids(tree: Tree) -> None:
    tree.test["TEXT+NIR"][1] = [6, "a shirt that says vis/0001/a.jpg", "nir/0901/2.jpg"]
    split = tree.load(need_train=False).splits["test"]
    assert [queries.name for queries in split.query_lists] == KEYS
    assert split.gallery_ids == (5, 6) and split.query_lists[0].person_ids == (5, 6)
    text, infrared = next(queries for queries in split.query_lists if queries.name == "TEXT+NIR").entries[1]
    # A caption with ".jpg" in it is a caption: the key decides, not the characters.
    assert (text.modality, text.value) == (Modality.TEXT, "a shirt that says vis/0001/a.jpg")
    assert (infrared.modality, infrared.value) == (Modality.NIR, str(tree.base / "nir/0901/2.jpg"))


def test_validation_identities_are_apart_and_have_32_lists(tree: Tree) -> None:
    for number in range(20):
        for kind in FOLDER.values():
            tree.touch(f"{kind}/{300 + number:04d}/0.jpg")
        tree.train.append(
            {"id": 300 + number, "file_path": f"vis/{300 + number:04d}/0.jpg", "caption": f"words {number}"}
        )
    benchmark = tree.load(val_fraction=0.2)
    val = benchmark.splits["val"]
    # 23 identities, of which round(4.6) = 5 are cut off.
    assert len(set(val.gallery_ids)) == 5 and benchmark.num_identities == 18
    assert sorted({record.person_id for record in benchmark.train}) == list(range(18))
    assert not folders(val) & {Path(record.sources[Modality.RGB].value).parent.name for record in benchmark.train}
    assert [queries.name for queries in val.query_lists] == KEYS
    for queries in val.query_lists:
        for person, entry in zip(queries.person_ids, queries.entries, strict=True):
            assert tuple(source.modality for source in entry) == queries.combination
            own = {Path(source.value).parent.name for source in entry if source.modality is not Modality.TEXT}
            assert own <= {
                Path(source.value).parent.name
                for number, source in zip(val.gallery_ids, val.gallery)
                if number == person
            }
    again = tree.load(val_fraction=0.2)
    assert again.fingerprint == benchmark.fingerprint and again.splits["val"] == val


def draws(*key: object) -> random.Random:
    """The stream of a purpose, written down a second time: runs are compared by what it gives."""
    text = "\x1f".join(map(str, key)).encode()
    return random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def test_validation_persons_and_queries_are_drawn_by_a_fixed_seed(tree: Tree) -> None:
    """They depend on the persons and on nothing else, so that checkpoints of all runs are chosen on the same lists."""
    kinds = {kind: FOLDER[kind] for kind in ("NIR", "CP", "SK")}
    for number in range(20):
        for folder in (*kinds.values(), "vis"):
            for image in range(3):
                tree.touch(f"{folder}/{300 + number:04d}/{image}.jpg")
        tree.train += [
            {"id": 300 + number, "file_path": f"vis/{300 + number:04d}/{image}.jpg", "caption": f"{number} {image}"}
            for image in range(3)
        ]
    persons = sorted([*TRAIN_IDS.values(), *range(300, 320)])
    draws(20250611, "val", 23).shuffle(persons)
    split = tree.load(val_fraction=0.2).splits["val"]
    assert set(split.gallery_ids) == set(persons[:5])
    chosen = next(person for person in persons[:5] if person >= 300)
    for key in ("NIR+CP+SK", "SK+CP"):
        listed = next(queries for queries in split.query_lists if queries.name == key)
        found = [
            tuple(Path(source.value).name for source in entry)
            for person, entry in zip(listed.person_ids, listed.entries)
            if person == chosen
        ]
        stream, partners = draws(20250611, "queries", key, chosen), key.split("+")[1:]
        assert found == [
            (f"{image}.jpg", *(f"{stream.choice(range(3))}.jpg" for _ in partners)) for image in range(3)
        ], key


def folders(split: EvalSplit) -> set[str]:
    return {
        Path(source.value).parent.name
        for queries in split.query_lists
        for entry in queries.entries
        for source in entry
        if source.modality is not Modality.TEXT
    } | {Path(source.value).parent.name for source in split.gallery}


def test_fingerprint_sees_ids_captions_partners_and_queries_but_not_the_place(tree: Tree, tmp_path: Path) -> None:
    seen, person = [tree.load().fingerprint], tree.test["RGB_GALLERY"][0][0]
    assert Tree(tmp_path / "elsewhere").load().fingerprint == seen[0]
    for change in (
        lambda: tree.train[0].update(caption="other"),
        lambda: tree.touch("sk/0007/9.jpg"),
        lambda: tree.test["NIR"].reverse(),
        lambda: [row.__setitem__(0, 77) for rows in tree.test.values() for row in rows if row[0] == person],
    ):
        change()
        seen.append(tree.load().fingerprint)
    assert len(set(seen)) == 5


def test_published_counts(tree: Tree) -> None:
    # Three folders with 2 visible, 3 infrared, 1 pencil and 2 sketch images, one caption per visible image.
    (against,) = tree.load().notes
    assert against.startswith(
        "11 of 11 counts differ from the published ones of ORBench: train images 6 (published 27,063, unconfirmed)"
    )
    for words in ("train persons 3 (published 600", "train NIR images 9 (published 15,646", "train SK images 6"):
        assert words in against
    assert "gallery images 2 (published 18,050" in against and "NIR images 2 (published 10,425" in against
    (tree.base / "manifest.json").touch()
    assert not tree.load().notes, "rendered data are not compared with ORBench"


def test_published_counts_that_agree_are_said_to(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    partners = {Modality.NIR: 9, Modality.CP: 3, Modality.SK: 6}
    own = {name: Count(images=2) for name in ("NIR", "CP", "SK", "TEXT")}
    own |= {"train": Count(images=6, persons=3, partners=partners), "gallery": Count(images=2, persons=2)}
    monkeypatch.setitem(orbench.PUBLISHED, "train", own["train"])
    for name, count in own.items():
        monkeypatch.setitem(orbench.PUBLISHED, name, count)
    assert tree.load().notes == ("all 11 counts equal the published ones of ORBench",)
    assert "all 6 counts" in tree.load(need_train=False).notes[0]


def test_an_excluded_image_is_in_no_part(tree: Tree, tmp_path: Path) -> None:
    before = tree.load()
    gone = before.splits["test"].query_lists[0].entries[0][0].value
    partner = before.train[0].partners[Modality.SK][0].value
    listing = tmp_path / "leave-out.txt"
    listing.write_text(f"{Path(gone).relative_to(tree.root)}\n{Path(partner).relative_to(tree.root)}\n")
    after = tree.load(exclude=str(listing))
    values = {
        source.value for queries in after.splits["test"].query_lists for entry in queries.entries for source in entry
    }
    assert gone not in values and partner not in {source.value for source in after.train[0].partners[Modality.SK]}
    # Every mixed query that held the image went with it, no other one.
    for old, new in zip(before.splits["test"].query_lists, after.splits["test"].query_lists):
        kept = [entry for entry in old.entries if gone not in {source.value for source in entry}]
        assert list(new.entries) == kept, old.name


def test_options_of_other_data_sets_are_refused(tree: Tree) -> None:
    tree.load()
    for options in ({"variant": "v1"}, {"trial": 3}, {"members": ("market1501",)}, {"merge_val": False}):
        with pytest.raises(UserError, match="does not belong to orbench: only .* know it; remove the option"):
            build_benchmark(DataConfig(root=str(tree.root), **options), select="last", need_train=True)
    with pytest.raises(UserError, match="orbench has no protocol 'orbnch', did you mean 'orbench'"):
        build_benchmark(DataConfig(root=str(tree.root), protocols=("orbnch",)), select="last", need_train=True)
    chosen = build_benchmark(DataConfig(root=str(tree.root), protocols=("orbench",)), select="last", need_train=True)
    assert chosen == tree.load()


def test_missing_query_lists_are_noted(tree: Tree) -> None:
    del tree.test["NIR"], tree.test["TEXT+CP+SK"]
    tree.test["NIR+RGB"] = []
    benchmark = tree.load(need_train=False)
    assert benchmark.splits["test"].missing_lists == {"NIR": "ONE_AVER", "TEXT+CP+SK": "THREE_AVER"}
    assert len(benchmark.splits["test"].query_lists) == 30
    assert any("2 of 32 query lists are missing: NIR, TEXT+CP+SK" in note for note in benchmark.notes)
    assert any("1 unknown keys are ignored: NIR+RGB" in note for note in benchmark.notes)


def test_evaluation_needs_no_training_files_but_checks_the_overlap_when_it_can(tree: Tree) -> None:
    tree.load(need_train=False)
    for path in (tree.base / "vis" / "0007").iterdir():
        path.unlink()
    assert not tree.load(need_train=False).train
    tree.train.append({"id": 50, "file_path": "vis/0900/1.jpg", "caption": ""})
    assert "0900" in tree.refusal(need_train=False)
    (tree.base / "train_annos.json").unlink()
    notes = load_orbench(tree.root, need_train=False).notes
    assert any("train_annos.json is absent" in note for note in notes)


def test_roots_one_level_off_say_so(tree: Tree) -> None:
    fingerprint = tree.load().fingerprint
    base, root = tree.base, tree.root
    # The folder itself may be named as well as the one above.
    assert load_orbench(base, need_train=True).fingerprint == fingerprint
    for given, words in (
        (root / "no", ["no such data root"]),
        (base / "vis", ["too low", f"data.root={base}"]),
        (base / "vis" / "0007", ["too low", f"data.root={base}"]),
        (root.parent, ["one level too high", f"data.root={root}"]),
    ):
        with pytest.raises(UserError) as caught:
            load_orbench(given, need_train=True)
        assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="holds no ORBench: expected ORBench/"):
        load_orbench(root / "empty", need_train=True)


@pytest.mark.parametrize("name", ["train_annos.json", "test_gallery_and_queries.json"])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such file|missing; restore it"),
        (b"", "not valid JSON"),
        (b'[{"id": 1, "file_path"', "truncated"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 200_000, "nested"),
        (b"12" + b"0" * 5000, "not valid JSON"),
        (b'"text"', "must be"),
        (b"null", "must be"),
        (b"[]", "must be"),
        (b"{}", "missing|must be"),
    ],
)
def test_annotation_files_that_are_no_annotations(tree: Tree, name: str, content: bytes | None, word: str) -> None:
    tree.load()
    path = tree.base / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        load_orbench(tree.root, need_train=True)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "x"}, ["entry 3", "id", "'x'"]),
        ({"id": 1.5}, ["entry 3", "1.5"]),
        ({"id": True}, ["entry 3", "True"]),
        ({"id": "--5"}, ["entry 3", "'--5'"]),
        ({"id": 10**30}, ["entry 3"]),
        ({"id": None}, ["entry 3", "None"]),
        ({"caption": ["a"]}, ["entry 3", "caption", "a list"]),
        ({"caption": None}, ["entry 3", "caption", "null"]),
        ({"file_path": 5}, ["entry 3", "5"]),
        ({"file_path": ""}, ["entry 3"]),
        ({"file_path": "vis/0002/\0.jpg"}, ["entry 3"]),
        ({"file_path": "../vis/0002/1.jpg"}, ["entry 3", "../vis", "inside ORBench"]),
        ({"file_path": "vis/../0002/1.jpg"}, ["inside ORBench"]),
        ({"file_path": "/etc/x/1.jpg"}, ["inside ORBench"]),
        ({"file_path": "vis/1.jpg"}, ["form"]),
        ({"file_path": "nir/0002/1.jpg"}, ["vis/", "RGB"]),
        ({"file_path": "vis/0002/8.jpg"}, ["entry 3", "vis/0002/8.jpg", "no such image"]),
        ({"file_path": "vis/0002/1.txt"}, ["entry 3", ".jpg"]),
        ({"file_path": "vis/0007/1.jpg"}, ["0007", "30", "4"]),
    ],
)
def test_training_entries_of_another_form(tree: Tree, change: dict[str, Any], words: list[str]) -> None:
    tree.train[3] |= change
    message = tree.refusal()
    assert not [word for word in words if word not in message], message
    assert len(message) < 600


@pytest.mark.parametrize("key", ["id", "file_path", "caption"])
def test_training_entry_without_a_key(tree: Tree, key: str) -> None:
    del tree.train[3][key]
    assert tree.refusal() == f"train_annos.json entry 3: key '{key}' is missing; restore the original file"
    tree.train[3] = [4, "vis/0002/1.jpg"]
    assert "train_annos.json entry 3: must be an object" in tree.refusal()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("RGB_GALLERY", [], ["RGB_GALLERY", "empty"]),
        ("RGB_GALLERY", [[5]], ["RGB_GALLERY entry 0"]),
        ("RGB_GALLERY", {"a": 1}, ["RGB_GALLERY", "list"]),
        ("RGB_GALLERY", [[5, "nir/0900/0.jpg"]], ["RGB_GALLERY entry 0", "vis/"]),
        ("NIR", "nir", ["NIR", "a text"]),
        ("NIR", [5], ["NIR entry 0"]),
        ("NIR", [["x", "nir/0900/0.jpg"]], ["NIR entry 0", "'x'"]),
        ("NIR", [[5, "nir/0900/9.jpg"]], ["NIR entry 0", "no such image"]),
        ("NIR", [[5, "nir/0900/0.jpg", "more"]], ["NIR entry 0", "1 item"]),
        ("TEXT", [[5, "a"], [5, 7]], ["TEXT entry 1", "caption"]),
        ("NIR+TEXT", [[5, "words", "nir/0900/0.jpg"]], ["NIR+TEXT entry 0", "words"]),
        ("CP+SK", [[5, "cp/0900/0.jpg"]], ["CP+SK entry 0", "2 item"]),
        ("SK", [[5, "sk/0900/../../../x/y.jpg"]], ["SK entry 0", "inside ORBench"]),
    ],
)
def test_query_lists_of_another_form(tree: Tree, key: str, value: Any, words: list[str]) -> None:
    tree.test[key] = value
    message = tree.refusal(need_train=False)
    assert not [word for word in words if word not in message], message


def test_gallery_or_all_lists_absent(tree: Tree) -> None:
    gallery = tree.test.pop("RGB_GALLERY")
    assert "RGB_GALLERY" in tree.refusal(need_train=False)
    tree.test = {"RGB_GALLERY": gallery}
    assert "none of the 32 query lists" in tree.refusal(need_train=False)


def test_identity_without_partners_and_one_identity_only(tree: Tree) -> None:
    for path in (tree.base / "cp" / "0002").iterdir():
        path.unlink()
    message = tree.refusal()
    assert "0002" in message and "CP" in message and "train_annos.json entry 2" in message
    tree.train = tree.train[:2]
    assert "one training identity only (id 30)" in tree.refusal()


def test_overlap_by_folder_is_refused(tree: Tree) -> None:
    tree.test["SK"].append([5, "sk/0100/0.jpg"])
    message = tree.refusal()
    assert "0100" in message and "must not overlap" in message


def test_validation_needs_enough_identities(tree: Tree) -> None:
    assert "fewer than two of 3" in tree.refusal(val_fraction=0.6)
    assert len(tree.load(val_fraction=0.3).splits["val"].gallery) == 2


def test_absent_images_are_left_to_the_reader_when_they_may_be_skipped(tree: Tree) -> None:
    tree.train[3]["file_path"] = "vis/0002/8.jpg"
    assert len(tree.load(check_files=False).train) == 6


def test_byte_order_mark_and_unpaired_surrogates_are_read(tree: Tree) -> None:
    tree.train[0]["caption"] = "half \ud800 a pair"
    tree.load()
    path = tree.base / "train_annos.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_orbench(tree.root, need_train=True).train[0].sources[Modality.TEXT].value == "half \ud800 a pair"


def test_keys_are_the_references_table() -> None:
    assert ["+".join(member.name for member in key) for key in ORBENCH_KEYS] == KEYS


def test_unknown_dataset_and_selection_without_validation(tree: Tree) -> None:
    tree.load()
    with pytest.raises(UserError, match="did you mean 'orbench'"):
        build_benchmark(DataConfig(dataset="orbenchh", root=str(tree.root)), select="last", need_train=True)
    with pytest.raises(UserError, match="data.val_fraction > 0"):
        build_benchmark(DataConfig(root=str(tree.root), val_fraction=0), select="val", need_train=True)
    assert (
        "val"
        not in build_benchmark(DataConfig(root=str(tree.root), val_fraction=0.3), select="test", need_train=True).splits
    )


def asked_and_offered(benchmark: Benchmark) -> tuple[dict[str, list[str]], list[str]]:
    """What the queries of each list ask for at a threshold, and what the gallery images have."""
    split = benchmark.splits["test"]
    asked = {
        queries.name: [annotation.value for annotation in queries.annotations if annotation is not None]
        for queries in split.query_lists
    }
    return asked, [found[AnnotationKind.DESCRIPTION].value for found in split.gallery_annotations]


def test_the_text_list_gives_the_gallery_its_captions(tree: Tree) -> None:
    tree.test["TEXT"] = [[5, "a red coat"], [6, "a man in green"]]
    asked, offered = asked_and_offered(tree.load())
    assert offered == ["a red coat", "a man in green"] and asked["TEXT"] == offered
    assert {name for name, found in asked.items() if found} == {name for name in KEYS if "TEXT" in name.split("+")}
    assert asked["NIR+TEXT"] == ["words 0900", "words 0901"] and len([name for name in asked if asked[name]]) == 20


def test_another_order_gives_none_and_a_file_decides(tree: Tree) -> None:
    tree.test["TEXT"] = [[6, "a man in green"], [5, "a red coat"]]
    benchmark = tree.load()
    assert not benchmark.splits["test"].gallery_annotations
    assert any("captions of the gallery images are unknown" in note for note in benchmark.notes)
    captions = {"vis/0900/0.jpg": "red", "vis/0901/0.jpg": "green"}
    (tree.base / "gallery_captions.json").write_text(json.dumps(captions))
    assert asked_and_offered(tree.load())[1] == ["red", "green"]
    del captions["vis/0901/0.jpg"]
    (tree.base / "gallery_captions.json").write_text(json.dumps(captions))
    assert "has no caption for the gallery image vis/0901/0.jpg" in tree.refusal()
    (tree.base / "gallery_captions.json").write_text("[]")
    assert "must be an object with a caption for each image path" in tree.refusal()
