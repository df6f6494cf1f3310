"""Covers: datasets/synthetic/layouts/sysu, datasets/synthetic/layouts/regdb, datasets/synthetic/layouts/llcm,
datasets/synthetic/layouts/matlab_cells, datasets/synthetic/layouts/caption_sets, datasets/synthetic/layouts/cuhk_pedes,
datasets/synthetic/layouts/icfg_pedes, datasets/synthetic/layouts/rstpreid, datasets/synthetic/layouts/cocas. The
rendered population in the layouts with infrared images, captions and clothes templates, read back by the readers.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from tiny_layouts import SMALL, laid_out, matched, plan_of

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry
from datasets.structures import ReadOptions, Record, Release
from datasets.synthetic.layouts.matlab_cells import nested_cells
from datasets.synthetic.person import Membership, make_person, membership
from datasets.synthetic.population import BLOCKS
from datasets.synthetic.render import render
from datasets.synthetic.shots import Plan
from utils.errors import UserError

FOLDER = {
    "sysu": "SYSU-MM01",
    "regdb": "RegDB",
    "llcm": "LLCM",
    "cuhk-pedes": "CUHK-PEDES",
    "icfg-pedes": "ICFG-PEDES",
    "rstpreid": "RSTPReid",
    "cocas": "COCAS+_Real2",
}
OURS = tuple(FOLDER)
SUFFIXES = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP"}

# By hand: 5 training and 3 test persons, 2 pictures each per modality; as many validation persons as test persons.
COUNTS = {
    "sysu": {"train": 5 * 4, "val": 3 * 4, "val_query": 6, "val_gallery": 6, "query": 6, "gallery": 6},
    "regdb": {"train": 4 * 4, "test_visible": 6, "test_infrared": 6},
    "llcm": {"train": 5 * 4, "test_visible": 6, "test_infrared": 6},
    "icfg-pedes": {"train": 10, "query": 6, "gallery": 6},
    "rstpreid": {"train": 20, "val_query": 12, "val_gallery": 6, "query": 12, "gallery": 6},
    # Three outfits: a query and two gallery images each.
    "cocas": {"query": 9, "gallery": 18, "query_li": 9, "gallery_li": 18},
}
PICTURES = {
    "sysu": 11 * 4,
    "regdb": 8 * 4,
    "llcm": 8 * 4,
    "cuhk-pedes": 11 * 2,
    "icfg-pedes": 8 * 2,
    "rstpreid": 11 * 2,
    "cocas": 3 * 3 * (1 + 2 + 1),
}
# What a directory listing must show for the image parts of the readers that read folders.
PARTS: dict[str, dict[str, Callable[[Path], list[Path]]]] = {
    "sysu": {
        "query": lambda root: sysu_files(root, "test", "36"),
        "gallery": lambda root: sysu_files(root, "test", "1245"),
        "train": lambda root: sysu_files(root, "train", "123456"),
        "val_query": lambda root: sysu_files(root, "val", "36"),
    },
    "llcm": {
        "train": lambda root: [*root.glob("vis/*/*.jpg"), *root.glob("nir/*/*.jpg")],
        "test_visible": lambda root: [*root.glob("test_vis/cam[1-9]/*/*.jpg")],
        "test_infrared": lambda root: [*root.glob("test_nir/cam[1-9]/*/*.jpg")],
    },
    "cocas": {
        "query": lambda root: [*root.glob("images/*/*_q???.jpg")],
        "gallery": lambda root: [path for path in root.glob("images/*/*.jpg") if "_q" not in path.name],
    },
    "regdb": {},
    "cuhk-pedes": {},
    "icfg-pedes": {},
    "rstpreid": {},
}


def sysu_files(root: Path, part: str, cameras: str) -> list[Path]:
    persons = [int(number) for number in (root / f"exp/{part}_id.txt").read_text().split(",")]
    return [
        path
        for camera in cameras
        for person in persons
        for path in (root / f"cam{camera}" / f"{person:04d}").glob("*.jpg")
    ]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts of this file, rendered by one process below one root."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in OURS:
        render(layout, root, processes=1, **SMALL)
    return root


def images_of(records: tuple[Record, ...]) -> set[Path]:
    return {
        Path(source.value)
        for record in records
        for modality, source in record.sources.items()
        if modality is not Modality.TEXT
    }


@pytest.mark.parametrize("layout", OURS)
def test_the_reader_finds_what_a_listing_shows(layout: str, rendered: Path) -> None:
    folder = rendered / FOLDER[layout]
    entry = dataset_entry(layout)
    assert entry.recognise(folder)
    release = entry.read(rendered, ReadOptions())
    if layout in COUNTS:
        assert {part: len(records) for part, records in release.parts.items()} == COUNTS[layout]
    for part, listed in PARTS[layout].items():
        assert images_of(release.parts[part]) == set(listed(folder)), part
    pictures = [path for path in folder.rglob("*") if path.suffix in SUFFIXES]
    assert len(pictures) == PICTURES[layout] == json.loads((folder / "manifest.json").read_text())["pictures"]
    shown = set().union(*map(images_of, release.parts.values()))
    shown |= {
        Path(source.value)
        for records in release.parts.values()
        for record in records
        for source in record.annotations.values()
        if source.modality is Modality.RGB
    }
    if layout == "regdb":
        assert shown < set(pictures)
    else:
        assert shown == set(pictures)
    for path in pictures[:3]:
        with Image.open(path) as image:
            assert (
                image.size == ((16, 16) if "templates" in path.parts else (16, 32))
                and image.format == SUFFIXES[path.suffix]
            )
    digests = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures)
    assert set(digests.values()) == {1}, "two pictures with the same bytes"
    if entry.name_pattern:
        assert all(re.fullmatch(entry.name_pattern, path.name) for path in pictures)


def test_infrared_pictures_are_grey_and_differ_from_visible_ones(rendered: Path) -> None:
    for pattern, grey in (
        ("SYSU-MM01/cam[36]/*/*", True),
        ("SYSU-MM01/cam[1245]/*/*", False),
        ("RegDB/Thermal/*/*", True),
        ("RegDB/Visible/*/*", False),
        ("LLCM/nir/*/*", True),
        ("LLCM/vis/*/*", False),
        ("LLCM/test_nir/*/*/*", True),
    ):
        paths = sorted(rendered.glob(pattern))
        assert paths
        for path in paths:
            with Image.open(path) as image:
                assert (image.mode == "L") is grey


def test_sysu_lists_and_permutations(rendered: Path) -> None:
    folder = rendered / "SYSU-MM01"
    lists = {
        part: [int(number) for number in (folder / f"exp/{part}_id.txt").read_text().split(",")]
        for part in ("train", "val", "test", "available")
    }
    assert [len(lists[part]) for part in ("train", "val", "test")] == [5, 3, 3]
    assert sorted(lists["train"] + lists["val"] + lists["test"]) == lists["available"] == sorted(lists["available"])
    assert max(lists["available"]) > 11, "no gaps in the numbers"
    cells = loadmat(str(folder / "exp/rand_perm_cam.mat"))["rand_perm_cam"]
    assert cells.shape == (6, 1)
    for camera in range(1, 7):
        persons = cells[camera - 1][0].squeeze()
        assert persons.shape == (max(lists["available"]),)
        for number in range(1, len(persons) + 1):
            files = sorted(int(path.stem) for path in (folder / f"cam{camera}" / f"{number:04d}").glob("*.jpg"))
            matrix = persons[number - 1]
            if not files:
                assert matrix.size == 0
                continue
            assert matrix.shape == (10, len(files)) and matrix.dtype == np.uint8
            assert all(sorted(row) == files for row in matrix)


def test_sysu_not_everybody_is_everywhere_and_the_draws_differ() -> None:
    plan = plan_of("sysu", identities=60, test_identities=30, images_per_modality=12)
    seen: dict[int, set[int]] = {}
    for shot in plan.shots:
        assert (shot.modality is Modality.NIR) == (shot.camera in (3, 6))
        seen.setdefault(shot.person, set()).add(shot.camera)
    share = {camera: sum(camera in cameras for cameras in seen.values()) / len(seen) for camera in range(1, 7)}
    assert 0.4 < share[1] == share[2] < 0.75 and 0.85 < share[3] < 1 and share[6] == 1
    cells = loadmat(io.BytesIO(plan.binaries["exp/rand_perm_cam.mat"]))["rand_perm_cam"]
    many = [matrix for matrix in cells[0][0].squeeze() if matrix.size]
    assert all(matrix.shape == (10, 3) and len({tuple(row) for row in matrix}) > 1 for matrix in many)
    for seed in range(12):
        # Somebody can be found indoors, however few are tested.
        plan = plan_of("sysu", seed=seed, test_identities=1, images_per_modality=1)
        assert 1 in {shot.camera for shot in plan.shots if membership(shot.person) is Membership.TEST}


def test_nested_cells_are_what_scipy_reads() -> None:
    cells = [
        [np.arange(6, dtype=np.uint8).reshape(2, 3), np.zeros((0, 0), dtype=np.uint8)],
        [np.full((1, 1), 255, dtype=np.uint8)] * 2,
    ]
    data = nested_cells("some_name", cells)
    assert data == nested_cells("some_name", cells)
    content = {name: value for name, value in loadmat(io.BytesIO(data)).items() if not name.startswith("__")}
    assert list(content) == ["some_name"] and content["some_name"].shape == (2, 1)
    for column, expected in zip(content["some_name"][:, 0], cells):
        assert column.shape == (2, 1)
        for found, wanted in zip(column[:, 0], expected):
            assert (
                found.dtype == np.uint8
                and np.array_equal(found, wanted)
                and (found.size == 0 or found.shape == wanted.shape)
            )


def lines_of(path: Path) -> list[tuple[str, int]]:
    return [(name, int(label)) for name, label in (line.split(" ") for line in path.read_text().splitlines())]


def test_regdb_trials_differ_and_share_their_persons(tmp_path: Path) -> None:
    folder, plan = laid_out("regdb", tmp_path, identities=10, test_identities=6, images_per_modality=10)
    person_of = {shot.path: shot.person for shot in plan.shots}
    assert len(list((folder / "idx").iterdir())) == 40
    labelled: dict[str, set[tuple[int, ...]]] = {"train": set(), "test": set()}
    for trial in range(1, 11):
        for part, kind, taking in (("train", Membership.TRAIN, 8), ("test", Membership.TEST, 5)):
            visible, thermal = (lines_of(folder / f"idx/{part}_{side}_{trial}.txt") for side in ("visible", "thermal"))
            persons = {
                label: {person_of[path] for path, other in visible + thermal if other == label}
                for label in range(taking)
            }
            assert len(visible) == len(thermal) == 10 * taking
            assert all(len(found) == 1 and membership(min(found)) is kind for found in persons.values())
            labelled[part].add(tuple(min(persons[label]) for label in range(taking)))
        release = dataset_entry("regdb").read(tmp_path, ReadOptions(data=DataConfig(trial=trial)))
        assert {name: len(records) for name, records in release.parts.items()} == {
            "train": 160,
            "test_visible": 50,
            "test_infrared": 50,
        }
    assert len(labelled["train"]) == len(labelled["test"]) == 10
    for shot in plan.shots:
        sex = "male" if make_person(3, shot.person).sex == "man" else "female"
        assert shot.path.split("/")[-1].split("_")[:2] == [sex, shot.view.value] and shot.view.value in (
            "front",
            "back",
        )


def test_llcm_names_agree_with_folders_and_lists(tmp_path: Path) -> None:
    folder, plan = laid_out("llcm", tmp_path, identities=30, test_identities=12, images_per_modality=6)
    assert {path.name for path in (folder / "test_nir").iterdir()} == {
        f"cam{number}" for number in (1, 2, 4, 5, 6, 7, 8, 9)
    }
    assert {path.name for path in (folder / "test_vis").iterdir()} == {f"cam{number}" for number in range(1, 10)}
    test_ids = {int(number) for number in (folder / "idx/test_id.txt").read_text().split(",")}
    for shot in plan.shots:
        found = re.fullmatch(
            r"(?:(vis|nir)|test_(vis|nir)/cam(\d))/(\d{4})/(\4)_c0(\d)_s\d{6}_f\d+_(vis|nir)\.jpg", shot.path
        )
        assert found is not None, shot.path
        assert found[7] == (found[1] or found[2]) == {Modality.RGB: "vis", Modality.NIR: "nir"}[shot.modality]
        assert int(found[6]) == shot.camera == int(found[3] or shot.camera)
        assert (int(found[4]) in test_ids) == (found[1] is None) == (membership(shot.person) is Membership.TEST)
    train = {word: lines_of(folder / f"idx/train_{word}.txt") for word in ("vis", "nir")}
    labels = {word: {path.split("/")[1]: label for path, label in lines} for word, lines in train.items()}
    assert labels["vis"] == labels["nir"] and sorted(labels["vis"].values()) == list(range(30))


def caption_entries(layout: str, **changes: int) -> tuple[list[dict], Plan]:
    plan = plan_of(layout, **changes)
    (entries,) = plan.annotations.values()
    return entries, plan


@pytest.mark.parametrize(
    ("layout", "key", "first", "captions"),
    [
        ("cuhk-pedes", "file_path", 1, {2, 3, 4, 5}),
        ("icfg-pedes", "file_path", 0, {1}),
        ("rstpreid", "img_path", 0, {2}),
    ],
)
def test_caption_files(layout: str, key: str, first: int, captions: set[int]) -> None:
    entries, plan = caption_entries(layout, identities=60, test_identities=30, images_per_modality=3)
    shots = {shot.path: shot for shot in plan.shots}
    parts = {"train": Membership.TRAIN, "val": Membership.VAL, "test": Membership.TEST}
    assert {f"imgs/{entry[key]}" for entry in entries} == set(shots) and len(entries) == len(shots)
    person_of: dict[int, int] = {}
    for entry in entries:
        shot = shots[f"imgs/{entry[key]}"]
        assert (
            person_of.setdefault(entry["id"], shot.person) == shot.person
            and membership(shot.person) is parts[entry["split"]]
        )
        assert len(set(entry["captions"])) == len(entry["captions"]) and len(entry["captions"]) in captions
        if layout != "rstpreid":
            assert [len(words) > 5 for words in entry["processed_tokens"]] == [True] * len(entry["captions"])
    assert Counter(len(entry["captions"]) for entry in entries).most_common(1)[0][0] == min(captions)
    assert sorted(person_of) == list(range(first, first + len(person_of)))
    order = [split for split in parts if layout != "icfg-pedes" or split != "val"]
    assert [
        split for split in dict.fromkeys(entry["split"] for entry in sorted(entries, key=lambda entry: entry["id"]))
    ] == order
    assert list(person_of.values()) != sorted(person_of.values()), "ids follow the population's order"
    if layout == "cuhk-pedes":
        assert captions >= {len(entry["captions"]) for entry in entries} > {2}


def test_folders_of_captioned_images_are_not_the_split() -> None:
    for layout, folders in (
        ("cuhk-pedes", {"cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query"}),
        ("icfg-pedes", {"train", "test"}),
    ):
        entries, _ = caption_entries(layout, identities=60, test_identities=30)
        where = {
            split: {entry["file_path"].split("/")[0] for entry in entries if entry["split"] == split}
            for split in ("train", "test")
        }
        assert where == {"train": folders, "test": folders}


def test_cocas_asks_for_an_outfit_that_the_query_does_not_wear(tmp_path: Path) -> None:
    folder, plan = laid_out("cocas", tmp_path, test_identities=8, outfits=4)
    worn = {shot.path: (shot.person, shot.outfit) for shot in plan.shots}
    queries = [line.split(" ") for line in (folder / "query.txt").read_text().splitlines()]
    gallery = [line.split(" ") for line in (folder / "gallery.txt").read_text().splitlines()]
    assert (len(queries), len(gallery)) == (8 * 4, 8 * 4 * 2)
    assert all(image.startswith("images/") and template.startswith("templates/") for image, template, *_ in queries)
    outfits: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for image, pid, clothes, camera in gallery:
        outfits.setdefault((pid, clothes), set()).add(worn[image])
    assert len(outfits) == 32 and all(len(found) == 1 for found in outfits.values())
    for image, template, pid, clothes, camera in queries:
        assert outfits[pid, clothes] == {worn[template]}
        assert worn[image][0] == worn[template][0] and worn[image][1] != worn[template][1]
        assert any(other[1:3] == [pid, clothes] and other[3] != camera for other in gallery)
    assert {image for image, *_ in queries}.isdisjoint(image for image, *_ in gallery)
    described = json.loads((folder / "runner_real2_v1_gpt.json").read_text())
    assert set(described) == {image for image, *_ in gallery} and len(set(described.values())) == len(described)


@pytest.mark.parametrize("layout", OURS)
@pytest.mark.parametrize(("images", "persons"), [(1, 1), (1, 4), (2, 3), (5, 6)])
def test_queries_of_every_protocol_have_matches(layout: str, images: int, persons: int, tmp_path: Path) -> None:
    laid_out(layout, tmp_path, images_per_modality=images, test_identities=persons)
    entry = dataset_entry(layout)
    release: Release = entry.read(tmp_path, ReadOptions())
    assert entry.protocols
    for name, protocol in entry.protocols.items():
        searches = list(protocol.searches(release))
        assert searches
        for search in searches:
            assert search.query and search.gallery
            if "indoor" in name:
                # Who is never indoors cannot be found there, as in the original.
                assert matched(search) >= images
            else:
                assert matched(search) == len(search.query), name


def test_parts_and_layouts_share_nobody() -> None:
    seen: Counter[int] = Counter()
    for layout in OURS:
        persons = {shot.person for shot in plan_of(layout).shots}
        assert {person % 10_000_000 // 100_000 for person in persons} == {BLOCKS[layout]}
        seen.update(persons)
        taken = [(shot.kind, shot.person, shot.outfit, shot.modality, shot.index) for shot in plan_of(layout).shots]
        assert len(set(taken)) == len(taken)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("layout", OURS)
def test_shared_persons_have_one_number(layout: str, tmp_path: Path) -> None:
    plan = plan_of(layout, shared_persons=2)
    if layout == "cocas":
        # A test set: the overlap is with real1 in the layout omnireid.
        assert {shot.person for shot in plan.shots if membership(shot.person) is Membership.TRAIN} == {
            1_500_000,
            1_500_001,
        }
        return
    persons = {shot.person for shot in plan.shots}
    assert sum(membership(person) is Membership.TEST for person in persons) == 1
    if layout in ("sysu", "regdb"):
        laid_out(layout, tmp_path, shared_persons=2)
        with pytest.raises(UserError, match="train"):
            dataset_entry(layout).read(tmp_path, ReadOptions())
    elif layout == "llcm":
        numbers = {
            in_test: {shot.path.split("/")[-2] for shot in plan.shots if shot.path.startswith("test_") is in_test}
            for in_test in (False, True)
        }
        assert len(numbers[False] & numbers[True]) == 2
    else:
        (entries,) = plan.annotations.values()
        ids = {split: {entry["id"] for entry in entries if entry["split"] == split} for split in ("train", "test")}
        assert len(ids["train"] & ids["test"]) == 2


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("sysu", {"identities": 8999}, "9005 identities are too many for SYSU-MM01"),
        ("sysu", {"images_per_modality": 256}, "--images-per-modality is 256: .* 255 at most"),
        (
            "regdb",
            {"identities": 258},
            r"--identities is 258: RegDB's lists have the labels 0\.\.205 .* give at most 257",
        ),
        ("regdb", {"test_identities": 258}, "--test-identities is 258"),
        ("llcm", {"identities": 714}, "--identities is 714: .* give at most 713"),
        ("icfg-pedes", {"identities": 9999}, "10002 identities are too many for ICFG-PEDES"),
        ("rstpreid", {"identities": 9999}, "10005 identities"),
    ],
)
def test_more_than_the_names_hold(layout: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(layout, **changes)


def test_the_number_of_processes_changes_nothing(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.synthetic.render.CHUNK", 9)
    folder = render("sysu", tmp_path, processes=2, **SMALL).folder
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = rendered / FOLDER["sysu"]
    assert files == {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()}
