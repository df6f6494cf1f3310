"""The rendered population in the layouts with infrared images, captions and clothes templates, read back by the
readers.
"""

from __future__ import annotations

import hashlib
import importlib
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

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry
from datasets.protocols import Search
from datasets.structures import ReadOptions, Record, Release
from datasets.synthetic.arguments import LAYOUTS, RenderArguments
from datasets.synthetic.layouts.matlab_cells import nested_cells
from datasets.synthetic.person import Membership, make_person, membership
from datasets.synthetic.population import BLOCKS
from datasets.synthetic.render import render
from datasets.synthetic.shots import Plan
from utils.errors import UserError

SMALL = {"identities": 5, "test_identities": 3, "seed": 3, "image_size": (32, 16), "images_per_modality": 2}
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


def plan_of(layout: str, **changes: int) -> Plan:
    return importlib.import_module(LAYOUTS[layout]).plan(RenderArguments(layout, **{**SMALL, **changes}))


def laid_out(layout: str, root: Path, **changes: int) -> tuple[Path, Plan]:
    """Folder of a plan whose pictures hold their paths only."""
    folder, plan = root / importlib.import_module(LAYOUTS[layout]).FOLDER, plan_of(layout, **changes)
    contents: dict[str, bytes] = {shot.path: shot.path.encode() for shot in plan.shots}
    contents |= {path: text.encode() for path, text in plan.texts.items()} | dict(plan.binaries)
    contents |= {path: json.dumps(value).encode() for path, value in plan.annotations.items()}
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder, plan


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


def counts_as_match(rule: str, query: Record, item: Record) -> bool:
    """Whether a gallery item of the query's person may be found, written out rule by rule."""
    if query.person_id != item.person_id:
        return False
    return {
        "none": True,
        "same_camera": query.camera_id != item.camera_id or query.camera_id < 0,
        "sysu": not (query.camera_id == 3 and item.camera_id == 2),
    }[rule]


def matched(search: Search) -> int:
    """Number of queries with something to find."""
    gallery: dict[int, list[Record]] = {}
    for record in search.gallery:
        gallery.setdefault(record.person_id, []).append(record)
    return sum(
        any(counts_as_match(search.exclusion_rule, query, item) for item in gallery.get(query.person_id, ()))
        for query in search.query
    )


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


OMNI = {"identities": 6, "test_identities": 5, "seed": 3, "image_size": (32, 16), "images_per_modality": 2}
LISTS = {
    "market": "datalist/{}.txt",
    "msmt": "datalist/{}.txt",
    "cuhk": "datalist/{}.txt",
    "prcc": "datalist/{}.txt",
    "vc_clothes": "datalist/{}.txt",
    "llcm": "{}.txt",
    "CUHK-Pedes": "{}_t2i_v2.txt",
    "ltcc": "datalist/{}.txt",
    "real1": "datalist/{}.txt",
    "real2": "datalist/{}.txt",
}
NAMES = {
    "ltcc": ("train", "query_sc", "gallery_sc", "query_cc", "gallery_cc", "query_general", "gallery_general"),
    "real1": ("train_ctcc", "train_attr"),
    "real2": ("query", "gallery", "query_attr", "gallery_attr"),
}
# By hand, for 6 training and 5 test persons with 2 pictures each, 3 outfits where clothes change.
LENGTHS = {
    "real1": {"train_ctcc": 6 * 3 * 3, "train_attr": 6 * 3 * 3},
    "real2": {"query": 15, "gallery": 30, "query_attr": 15, "gallery_attr": 30},
    "llcm": {"train": 24, "query": 10, "gallery": 10},
    "prcc": {"train": 6 * 3 * 2, "query": 10, "gallery": 10},
    "cuhk": {"train": 12, "query": 10, "gallery": 10},
    "msmt": {"train": 12, "query": 10, "gallery": 10},
}


@pytest.fixture(scope="module")
def omnireid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of OmniReID's authors, rendered small."""
    return render("omnireid", tmp_path_factory.mktemp("omni"), processes=1, **OMNI).folder


def listed_in(folder: Path, member: str, name: str) -> list[list[str]]:
    return [line.split(" ") for line in (folder / member / LISTS[member].format(name)).read_text().splitlines()]


def omnireid_lists(folder: Path) -> dict[tuple[str, str], list[list[str]]]:
    return {
        (member, name): listed_in(folder, member, name)
        for member in LISTS
        for name in NAMES.get(member, ("train", "query", "gallery"))
    }


def test_omnireid_tree_and_lists(omnireid: Path) -> None:
    assert {path.name for path in omnireid.iterdir()} == {*LISTS, "manifest.json"}
    lists = omnireid_lists(omnireid)
    assert len(list(omnireid.rglob("datalist/*.txt"))) + 6 == len(lists)
    for member, lengths in LENGTHS.items():
        assert {name: len(lists[member, name]) for name in NAMES.get(member, ("train", "query", "gallery"))} == lengths
    for (member, name), lines in lists.items():
        assert lines and all(len(line) == (4 if member == "CUHK-Pedes" else 5) for line in lines), (member, name)
        assert all(
            (omnireid / member / line[0]).is_file() and int(line[2]) >= 0 and int(line[3]) >= 0 for line in lines
        )
        if member in ("ltcc", "prcc", "vc_clothes"):
            assert all((omnireid / member / line[1]).is_file() for line in lines)
            assert {line[1] == "white_shirt.jpg" for line in lines} == {name != "train"}
    for member, folder in (
        ("ltcc", "templates"),
        ("prcc", "prcc_A_templates"),
        ("real1", "COCAS/templates"),
        ("real2", "real_reid_image_face_blur/templates"),
    ):
        with Image.open(next((omnireid / member / folder).iterdir())) as template:
            assert template.size == (16, 16)
    with Image.open(omnireid / "ltcc/white_shirt.jpg") as shirt:
        assert shirt.size == (16, 16) and min(shirt.getpixel((8, 9))) > 240 > 160 > max(shirt.getpixel((1, 14)))
    crop = next((omnireid / "vc_clothes/croped_image/train").iterdir())
    with Image.open(crop) as upper, Image.open(omnireid / "vc_clothes/train" / crop.name) as whole:
        assert upper.size == (16, 13) and np.abs(np.asarray(upper).astype(int) - np.asarray(whole)[5:18]).mean() < 12


def test_omnireid_persons_are_apart_and_where_they_belong() -> None:
    plan = importlib.import_module(LAYOUTS["omnireid"]).plan(RenderArguments("omnireid", **OMNI))
    shots = {shot.path: shot for shot in plan.shots}
    blocks = {
        "market": 1,
        "msmt": 2,
        "cuhk": 3,
        "prcc": 4,
        "ltcc": 5,
        "vc_clothes": 6,
        "llcm": 9,
        "CUHK-Pedes": 12,
        "real1": 15,
        "real2": 15,
    }
    for path, shot in shots.items():
        assert shot.person % 10_000_000 // 100_000 == blocks[path.split("/")[0]]
    for path, text in plan.texts.items():
        member, name = path.split("/")[0], path.split("/")[-1]
        if "/idx/" in path or "/info/" in path or name.startswith("list_"):
            continue
        person_of: dict[str, int] = {}
        for line in text.splitlines():
            image, _, pid, clothes, *camera = line.split(" ")
            shot = shots[f"{member}/{image}"]
            assert membership(shot.person) is (Membership.TRAIN if name.startswith("train") else Membership.TEST), path
            assert pid == "0" and member == "market" or person_of.setdefault(pid, shot.person) == shot.person
            assert not camera or int(camera[0]) == shot.camera
            if member not in ("real1", "real2"):
                assert int(clothes) == shot.outfit


def test_omnireid_instructions(omnireid: Path) -> None:
    plan = importlib.import_module(LAYOUTS["omnireid"]).plan(RenderArguments("omnireid", **OMNI))
    worn = {shot.path: (shot.person, shot.outfit) for shot in plan.shots}
    for member, name in (("real1", "train_ctcc"), ("real2", "query"), ("real2", "gallery")):
        for image, second, _, clothes, _ in listed_in(omnireid, member, name):
            assert worn[f"{member}/{second}"] == (worn[f"{member}/{image}"][0], int(clothes))
            if name == "gallery":
                assert second == image
            elif name == "query":
                assert "templates" in second and worn[f"{member}/{image}"][1] != int(clothes)
    for member in ("real1", "real2"):
        captions = json.loads((omnireid / member / f"datalist/runner_{member}_v1_gpt.json").read_text())
        for name in NAMES[member]:
            if name.endswith("_attr"):
                for image, key, _, clothes, _ in listed_in(omnireid, member, name):
                    assert key in captions and worn[f"{member}/{key}"] == (worn[f"{member}/{image}"][0], int(clothes))
    captions = json.loads((omnireid / "CUHK-Pedes/caption_t2i_v2.json").read_text())
    keys = [line[1] for name in ("train", "query") for line in listed_in(omnireid, "CUHK-Pedes", name)]
    assert len(set(keys)) == len(keys) == len(captions) - 1 and set(keys) < set(captions)
    assert (
        {line[1] for line in listed_in(omnireid, "CUHK-Pedes", "gallery")} == {"001_1_c5_015874.png"} <= set(captions)
    )


@pytest.mark.parametrize(
    ("member", "query", "gallery"),
    [(member, "query", "gallery") for member in LISTS if member not in ("ltcc", "real1")]
    + [("real2", "query_attr", "gallery_attr")]
    + [("ltcc", f"query_{kind}", f"gallery_{kind}") for kind in ("sc", "cc", "general")],
)
def test_omnireid_queries_have_matches(member: str, query: str, gallery: str, omnireid: Path) -> None:
    items = listed_in(omnireid, member, gallery)
    for line in listed_in(omnireid, member, query):
        found = [item for item in items if item[2] == line[2] and (len(line) == 4 or item[4] != line[4])]
        if query == "query_cc":
            assert all(item[3] != line[3] for item in found)
        elif query == "query_sc":
            assert all(item[3] == line[3] for item in found)
        elif member == "real2":
            found = [item for item in found if item[3] == line[3]]
        assert found, line


def test_omnireid_reads_back(omnireid: Path) -> None:
    entry = dataset_entry("omnireid")
    assert entry.recognise(omnireid)
    release = entry.read(omnireid.parent, ReadOptions())
    names = {"cuhk": "cuhk03", "CUHK-Pedes": "cuhk_pedes"}
    expected = {}
    for (member, name), lines in omnireid_lists(omnireid).items():
        part = (
            f"{names.get(member, member)}{name[5:]}/train"
            if member == "real1"
            else f"{names.get(member, member)}/{name}"
        )
        expected[part.replace("/query_attr", "_attr/query").replace("/gallery_attr", "_attr/gallery")] = len(lines)
    assert {part: len(records) for part, records in release.parts.items() if part != "train"} == expected
    assert len(release.parts["train"]) == sum(count for part, count in expected.items() if part.endswith("/train"))
    trained = {record.person_id for record in release.parts["train"]}
    # The persons of nine folders, in none of the test parts.
    assert len(trained) == 9 * 6
    for name, protocol in entry.protocols.items():
        for search in protocol.searches(release):
            assert matched(search) == len(search.query) > 0, (name, search.title)
            assert trained.isdisjoint(record.person_id for record in (*search.query, *search.gallery))


@pytest.mark.parametrize(("images", "outfits", "persons"), [(1, 2, 1), (3, 4, 4)])
def test_omnireid_of_other_sizes_has_matches(images: int, outfits: int, persons: int, tmp_path: Path) -> None:
    laid_out("omnireid", tmp_path, images_per_modality=images, outfits=outfits, test_identities=persons)
    entry = dataset_entry("omnireid")
    for search in entry.protocols["lists"].searches(entry.read(tmp_path, ReadOptions())):
        assert matched(search) == len(search.query) > 0, search.title
