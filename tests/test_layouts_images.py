"""Covers: datasets/synthetic/__main__, datasets/synthetic/arguments, datasets/synthetic/population,
datasets/synthetic/roll, datasets/synthetic/layouts/market1501, datasets/synthetic/layouts/msmt17,
datasets/synthetic/layouts/cuhk03, datasets/synthetic/layouts/prcc, datasets/synthetic/layouts/ltcc,
datasets/synthetic/layouts/vc_clothes, datasets/synthetic/layouts/last, datasets/synthetic/layouts/nkup. The rendered
population in the layouts of the image data sets: read back by the readers, matches for every query, who is where.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry
from datasets.checks.run import CheckOptions, run_check
from datasets.protocols import Search
from datasets.structures import ReadOptions, Record, Release
from datasets.synthetic import nuisance, population
from datasets.synthetic.__main__ import main
from datasets.synthetic.arguments import LAYOUTS, RenderArguments, parse_layouts
from datasets.synthetic.captions import caption_of, description_of
from datasets.synthetic.person import Membership, View, make_person, membership
from datasets.synthetic.population import BLOCKS, draw_ids
from datasets.synthetic.render import render
from datasets.synthetic.shots import Plan, Shot, draw_shot, encode_shot
from datasets.synthetic.wardrobe import make_outfit
from utils.errors import UserError

SMALL: dict[str, Any] = {
    "identities": 4,
    "test_identities": 3,
    "seed": 3,
    "image_size": (32, 16),
    "images_per_modality": 2,
}
FOLDER = {
    "market1501": "Market-1501-v15.09.15",
    "msmt17": "MSMT17_V1",
    "cuhk03": "cuhk03-np",
    "prcc": "prcc",
    "ltcc": "LTCC_ReID",
    "vc-clothes": "VC-Clothes",
    "last": "last",
    "nkup": "NKUP",
}
OURS = tuple(FOLDER)

# What a directory listing must show for each part of the reader: glob pattern and pattern of the names that count.
PARTS = {
    "market1501": {
        "train": ("bounding_box_train/*", r"\d{4}_c[1-6]s\d_\d{6}_\d\d\.jpg"),
        "query": ("query/*", r"(?!0000)\d{4}_c.*"),
        "gallery": ("bounding_box_test/*", r"\d{4}_c[1-6]s\d_\d{6}_\d\d\.jpg"),
    },
    "msmt17": {"train": ("train/*/*", r"\d{4}_\d{3}_\d\d_\d{4}(morning|noon|afternoon)_\d{4}_\d(_ex)?\.jpg")},
    "cuhk03": {
        "train": ("labeled/bounding_box_train/*", r"\d{4}_c[12]_\d+\.png"),
        "query": ("labeled/query/*", r"\d{4}_c[12]_\d+\.png"),
        "gallery": ("labeled/bounding_box_test/*", r"\d{4}_c[12]_\d+\.png"),
    },
    "prcc": {
        "train": ("rgb/train/*/*", r"[ABC]_cropped_rgb\d{3}\.jpg"),
        "val": ("rgb/val/*/*", r"[ABC]_cropped_rgb\d{3}\.jpg"),
        "gallery": ("rgb/test/A/*/*", r"cropped_rgb\d{3}\.jpg"),
        "query_same": ("rgb/test/B/*/*", r"cropped_rgb\d{3}\.jpg"),
        "query_changed": ("rgb/test/C/*/*", r"cropped_rgb\d{3}\.jpg"),
    },
    "ltcc": {
        part: (f"{folder}/*", r"\d+_\d+_c\d+_\d{6}\.png")
        for part, folder in (("train", "train"), ("query", "query"), ("gallery", "test"))
    },
    "vc-clothes": {part: (f"{part}/*", r"\d{4}-0[1-4]-\d\d-\d\d\.jpg") for part in ("train", "query", "gallery")},
    "last": {
        "train": ("train/*/*", r"\d{6}_m\d{3}_\d{6}_\d\.jpg"),
        "query": ("test/query/*", r"\d{6}_m\d{3}_\d{6}\.jpg"),
        "gallery": ("test/gallery/*/*", r"\d{6}_m\d{3}_\d{6}\.jpg"),
        "val_query": ("val/query/*", r".*\.jpg"),
        "val_gallery": ("val/gallery/*/*", r".*\.jpg"),
    },
    "nkup": {
        part: (f"{folder}/*", r"\d{4}_D\d{4}_C\d\dS\d\d_\d{5}\.jpg")
        for part, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test"))
    },
}
# Pictures of that rendering, by hand: 4 training and 3 test persons, 2 pictures each (per outfit where there are
# three).
COUNTS = {
    "market1501": {"train": 8, "query": 6, "gallery": 6 + 3},
    "msmt17": {"train": 8 + 1, "query": 6, "gallery": 6},
    "cuhk03": {"train": 8, "query": 6, "gallery": 6},
    "prcc": {"train": 4 * 3 * 2, "val": 4 * 3, "query_same": 6, "query_changed": 6, "gallery": 6},
    "ltcc": {"train": 2 * (3 + 1 + 3 + 1), "query": 2 * (3 + 1 + 3), "gallery": 2 * (3 + 1 + 3)},
    "vc-clothes": {"train": 4 * 6 * 2, "query": 3 * 6, "gallery": 3 * 6 * 2},
    "last": {"train": 4 * 3 * 2, "query": 9, "gallery": 18, "val_query": 6, "val_gallery": 12},
    "nkup": {"train": 4 * 3 * 2, "query": 6, "gallery": 3 * 2 * 2},
}
TEST_FOLDERS = re.compile(
    r"(rgb/)?(test|query|gallery|bounding_box_test)/|(labeled|detected)/(query|bounding_box_test)/"
)
PERSON_NUMBER = {
    "market1501": r"(-?\d+)_c",
    "msmt17": r"(\d{4})_",
    "cuhk03": r"(\d{4})_c",
    "prcc": None,
    "ltcc": r"(\d+)_",
    "vc-clothes": r"(\d{4})-",
    "last": r"(\d{6})_",
    "nkup": r"(-?\d+)_D",
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts of this file, rendered by one process below one root."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in OURS:
        render(layout, root, processes=1, **SMALL)
    return root


def plan_of(layout: str, **changes: int) -> Plan:
    arguments = RenderArguments(layout, **{**SMALL, **changes})
    return importlib.import_module(LAYOUTS[layout]).plan(arguments)


def touched(layout: str, root: Path, **changes: int) -> Release:
    """Release of a plan whose pictures are empty files."""
    folder = root / FOLDER[layout]
    plan = plan_of(layout, **changes)
    for path in (shot.path for shot in plan.shots):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    for path, text in plan.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return dataset_entry(layout).read(root, ReadOptions())


def number_in(layout: str, path: str) -> int:
    if layout == "prcc":
        return int(path.split("/")[-2])
    found = re.match(str(PERSON_NUMBER[layout]), path.split("/")[-1])
    assert found is not None, path
    return int(found[1])


def files_of(folder: Path, pattern: str, name: str) -> set[Path]:
    return {path for path in folder.glob(pattern) if path.is_file() and re.fullmatch(name, path.name)}


@pytest.mark.parametrize("layout", OURS)
def test_the_reader_finds_what_a_listing_shows(layout: str, rendered: Path) -> None:
    assert sorted(path.name for path in rendered.iterdir()) == sorted(FOLDER.values())
    release = dataset_entry(layout).read(rendered, ReadOptions())
    assert dataset_entry(layout).recognise(rendered / FOLDER[layout])
    assert {part: len(records) for part, records in release.parts.items()} == COUNTS[layout]
    for part, (pattern, name) in PARTS[layout].items():
        listed = files_of(rendered / FOLDER[layout], pattern, name)
        assert {Path(record.sources[Modality.RGB].value) for record in release.parts[part]} == listed, part
    pictures = [path for path in (rendered / FOLDER[layout]).rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) == json.loads((rendered / FOLDER[layout] / "manifest.json").read_text())["pictures"]
    with Image.open(pictures[0]) as image:
        assert image.size == (16, 32) and image.format == {".jpg": "JPEG", ".png": "PNG"}[pictures[0].suffix]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures]
    assert len(set(digests)) == len(digests), "two pictures with the same bytes"


def test_lists_junk_and_variants(rendered: Path) -> None:
    folder = rendered / FOLDER["msmt17"]
    for name, part in (("train", "train"), ("val", "train"), ("query", "test"), ("gallery", "test")):
        lines = [line.split(" ") for line in (folder / f"list_{name}.txt").read_text().splitlines()]
        assert len(lines) == {"train": 8, "val": 1, "query": 6, "gallery": 6}[name]
        assert all((folder / part / path).is_file() and int(path[:4]) == int(label) for path, label in lines)
        assert {int(label) for _, label in lines} == {"train": {0, 1, 2, 3}, "val": {0}}.get(name, {0, 1, 2})
    market = dataset_entry("market1501").read(rendered, ReadOptions())
    names = [path.name for path in (rendered / FOLDER["market1501"] / "bounding_box_test").iterdir()]
    assert sum(name.startswith("-1_") for name in names) == 2 == sum(market.dropped.values())
    assert (
        sum(name.startswith("0000_") for name in names)
        == 3
        == sum(record.person_id == 0 for record in market.parts["gallery"])
    )
    detected = dataset_entry("cuhk03").read(rendered, ReadOptions(data=DataConfig(variant="detected")))
    assert {part: len(records) for part, records in detected.parts.items()} == {"train": 7, "query": 6, "gallery": 6}
    nkup = dataset_entry("nkup").read(rendered, ReadOptions())
    assert sum(nkup.dropped.values()) == 2
    info = rendered / FOLDER["ltcc"] / "info"
    people = {path.stem: path.read_text().split() for path in info.iterdir()}
    assert {name: len(numbers) for name, numbers in people.items()} == {
        "cloth-change_id_train": 2,
        "cloth-unchange_id_train": 2,
        "cloth-change_id_test": 2,
        "cloth-unchange_id_test": 1,
    }


@pytest.mark.parametrize("layout", OURS)
def test_the_check_finds_nothing_wrong(layout: str, rendered: Path) -> None:
    report, _ = run_check(CheckOptions(dataset=layout, root=rendered))
    assert not [finding for finding in report.findings if finding.level in ("defect", "warning")]
    assert report.exit_code == 0 and report.images_opened is not None and report.images_opened >= 20


def counts_as_match(rule: str, query: Record, item: Record) -> bool:
    """Whether a gallery item of the query's person may be found, written out rule by rule."""
    if query.person_id != item.person_id:
        return False
    camera, clothes = query.camera_id == item.camera_id, query.clothes_id == item.clothes_id
    return {
        "none": True,
        "same_camera": not camera,
        "same_camera_or_clothes": not (camera or clothes),
        "same_camera_or_other_clothes": not camera and clothes,
    }[rule]


def unmatched(search: Search) -> list[Record]:
    gallery: dict[int, list[Record]] = {}
    for record in search.gallery:
        gallery.setdefault(record.person_id, []).append(record)
    return [
        query
        for query in search.query
        if not any(counts_as_match(search.exclusion_rule, query, item) for item in gallery.get(query.person_id, ()))
    ]


def without_match_by_design(search: Search, release: Release) -> set[int]:
    """Searched persons of LTCC who never change clothes, where clothes must differ."""
    if release.name != "ltcc" or search.exclusion_rule != "same_camera_or_clothes":
        return set()
    unchanging = {int(line) for line in (release.root / "info/cloth-unchange_id_test.txt").read_text().split()}
    return unchanging & {record.person_id for record in search.query}


@pytest.mark.parametrize("layout", OURS)
@pytest.mark.parametrize(("images", "outfits", "persons"), [(1, 2, 2), (2, 3, 1), (5, 7, 6)])
def test_every_query_of_every_protocol_has_a_match(
    layout: str, images: int, outfits: int, persons: int, tmp_path: Path
) -> None:
    release = touched(layout, tmp_path, images_per_modality=images, outfits=outfits, test_identities=persons)
    for name, protocol in dataset_entry(layout).protocols.items():
        for search in protocol.searches(release):
            assert len({record.person_id for record in search.query}) >= 1 and len(search.query) >= 1
            lonely = unmatched(search)
            assert {record.person_id for record in lonely} == without_match_by_design(search, release), name
            assert len(lonely) < len(search.query)


@pytest.mark.parametrize("layout", OURS)
def test_parts_share_nobody_and_numbers_say_nothing(layout: str) -> None:
    plan = plan_of(layout, identities=20, test_identities=20)
    parts: dict[Membership, set[int]] = {part: set() for part in Membership}
    numbers: dict[tuple[bool, int], set[int]] = {}
    for shot in plan.shots:
        in_test = TEST_FOLDERS.match(shot.path) is not None
        held = shot.path.startswith("val/")
        part = Membership.VAL if held else Membership.TEST if in_test else Membership.TRAIN
        assert membership(shot.person) is part, shot.path
        parts[part].add(shot.person)
        separate = in_test and layout == "msmt17"
        numbers.setdefault((separate, number_in(layout, shot.path)), set()).add(shot.person)
    assert len(parts[Membership.TRAIN]) == 20 and len(parts[Membership.TEST]) >= 20
    named = {key: persons for key, persons in numbers.items() if key[1] > 0 or layout not in ("market1501", "nkup")}
    assert all(len(persons) == 1 for persons in named.values())
    order = [number for (separate, number), _ in sorted(named.items(), key=lambda pair: min(pair[1])) if not separate]
    assert order != sorted(order), "numbers follow the population's order"
    taken = [(shot.person, shot.outfit, shot.modality, shot.index) for shot in plan.shots]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("layout", ["prcc", "ltcc", "vc-clothes", "last", "nkup"])
def test_labels_of_clothes_are_those_of_the_pictures(layout: str, tmp_path: Path) -> None:
    release = touched(layout, tmp_path)
    outfits = {shot.path: (shot.person, shot.outfit) for shot in plan_of(layout).shots}
    worn: dict[int, set[tuple[int, int]]] = {}
    for records in release.parts.values():
        for record in records:
            worn.setdefault(record.clothes_id, set()).add(outfits[record.name])
    known = [pictures for label, pictures in worn.items() if label >= 0]
    assert all(len(pictures) == 1 for pictures in known) and len(set.union(*known, set())) == len(known)
    assert (
        len(known)
        == {"prcc": 7 * 2, "ltcc": 2 * (3 + 1) + 3 + 1 + 3, "vc-clothes": 7 * 3, "last": 4 * 3, "nkup": 0}[layout]
    )
    if layout == "nkup":
        # More outfits than days: the day of a person's queries is still nobody else's.
        names = [shot.path.split("/") for shot in plan_of("nkup", outfits=13, images_per_modality=1).shots]
        days = [
            {tuple(name.split("_")[:2]) for folder, name in names if folder == part}
            for part in ("query", "bounding_box_test")
        ]
        assert len(days[0]) == 3 and not days[0] & days[1]
        sides = [{outfits[record.name] for record in release.parts[part]} for part in ("query", "gallery")]
        assert len(sides[0]) == 3 and len(sides[1]) == 6 and not sides[0] & sides[1]
    if layout == "ltcc":
        cameras = {(record.person_id, record.clothes_id, record.camera_id) for record in release.parts["gallery"]}
        assert len({(person, camera) for person, _, camera in cameras}) == len(cameras) == 2 * (3 + 1 + 3)


def test_layouts_share_nobody() -> None:
    seen: Counter[int] = Counter()
    for layout in ("orbench", *OURS):
        seen.update({shot.person for shot in plan_of(layout).shots})
    assert set(seen.values()) == {1}
    assert sorted(BLOCKS.values()) == list(range(16)) and set(BLOCKS) == set(LAYOUTS) - {"omnireid"}
    assert population.val_persons(7, 2) == (10_700_000, 10_700_001)
    assert population.bystanders(1, 2) == (20_190_000, 20_190_001)


@pytest.mark.parametrize("layout", OURS)
def test_shared_persons_are_an_overlap_on_purpose(layout: str, tmp_path: Path) -> None:
    plan = plan_of(layout, shared_persons=2)
    sides: dict[bool, dict[int, set[int]]] = {False: {}, True: {}}
    for shot in plan.shots:
        if not shot.path.startswith("val/"):
            in_test = TEST_FOLDERS.match(shot.path) is not None
            sides[in_test].setdefault(shot.person, set()).add(number_in(layout, shot.path))
    shared = sorted(set(sides[False]) & set(sides[True]))
    assert shared == [BLOCKS[layout] * 100_000, BLOCKS[layout] * 100_000 + 1]
    if layout != "msmt17":
        assert all(sides[False][person] == sides[True][person] for person in shared)
    taken = [(shot.person, shot.outfit, shot.modality, shot.index) for shot in plan.shots]
    assert len(set(taken)) == len(taken)
    manifest = json.loads(
        (render(layout, tmp_path, processes=1, **SMALL, shared_persons=2).folder / "manifest.json").read_text()
    )
    assert manifest["shared_persons"] == 2 and manifest["outfits"] == 3
    defects = [
        finding
        for finding in run_check(CheckOptions(dataset=layout, root=tmp_path))[0].findings
        if finding.level == "defect"
    ]
    # MSMT17 numbers train and test separately, so that nobody can see it in the names.
    assert len(defects) == (layout != "msmt17"), defects


def test_the_number_of_processes_changes_nothing(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.synthetic.render.CHUNK", 5)
    folder = render("ltcc", tmp_path, processes=2, **SMALL).folder
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = rendered / FOLDER["ltcc"]
    assert files == {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()}


def test_reuse_covers_texts_pngs_and_older_manifests(tmp_path: Path) -> None:
    first = render("ltcc", tmp_path, processes=1, **SMALL)
    manifest = first.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    assert set(content["annotations"]) == {
        f"info/cloth-{word}_id_{part}.txt" for word in ("change", "unchange") for part in ("train", "test")
    }
    # A manifest of before these two arguments existed.
    manifest.write_text(
        json.dumps({key: value for key, value in content.items() if key not in ("shared_persons", "outfits")})
    )
    again = render("ltcc", tmp_path, processes=1, **SMALL)
    assert again.reused and (again.digest, again.pictures) == (first.digest, first.pictures)
    with pytest.raises(UserError, match=r"rendered with outfits = 3, now it is 4"):
        render("ltcc", tmp_path, processes=1, **SMALL, outfits=4)
    names = first.folder / "info/cloth-change_id_test.txt"
    names.write_text("1\n" + names.read_text())
    with pytest.raises(UserError, match="cloth-change_id_test.txt is missing or was changed"):
        render("ltcc", tmp_path, processes=1, **SMALL)
    next((first.folder / "train").iterdir()).unlink()
    with pytest.raises(UserError, match=f"holds {first.pictures - 1} pictures"):
        render("ltcc", tmp_path, processes=1, **SMALL)


def test_binaries_are_written_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.synthetic.layouts.market1501 as layout

    def with_binary(data: bytes) -> str:
        folder = tmp_path / hashlib.sha256(data).hexdigest()[:8]
        monkeypatch.setattr(layout, "plan", lambda arguments: Plan((), {"a.json": [1]}, {}, {"exp/x.mat": data}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.synthetic.render._write_shots", lambda *rest: "none")
            result = render("market1501", folder, processes=1, **SMALL)
        assert (result.folder / "exp/x.mat").read_bytes() == data
        manifest = json.loads((result.folder / "manifest.json").read_text())
        assert manifest["annotations"]["exp/x.mat"] == hashlib.sha256(data).hexdigest()
        return result.digest

    assert with_binary(b"one") != with_binary(b"two")


def nearest_in_other_clothes(head: float, persons: Iterable[int]) -> float:
    """Share of persons whose nearest neighbour in another outfit, camera and pose is themselves, by colours around the
    head.
    """

    def features(person: int, outfit: int) -> numpy.ndarray:
        shot = Shot("a.jpg", person, outfit, Modality.RGB, outfit, View.FRONT, "market1501", 1 + outfit, head=head)
        pixels = numpy.asarray(draw_shot(shot, 0, (128, 64))[0], dtype=float)[:32, 12:52] / 255
        means = pixels.reshape(8, 4, 5, 8, 3).mean(axis=(1, 3)).ravel()
        colours = (pixels[:24, 6:34].reshape(-1, 3) * 3.99).astype(int) @ (16, 4, 1)
        return numpy.concatenate([0.3 * means, numpy.sqrt(numpy.bincount(colours, minlength=64) / len(colours))])

    first, second = (numpy.stack([features(person, outfit) for person in persons]) for outfit in (0, 1))
    distances = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == numpy.arange(len(first))).mean())


def test_identity_survives_a_change_of_clothes_at_the_rendered_size() -> None:
    persons = range(20_100_000, 20_100_050)
    enlarged = nearest_in_other_clothes(nuisance.HEAD_ZOOM, persons)
    assert enlarged >= 8 / 50 and enlarged > nearest_in_other_clothes(1.0, persons)
    # Outfits differ: two of one person have no more in common than those of two persons.
    pairs = [
        (make_outfit(0, make_person(0, person), 0), make_outfit(0, make_person(0, person), 1)) for person in persons
    ]
    assert sum(one.upper.words == two.upper.words for one, two in pairs) < 10


def test_templates_and_crops() -> None:
    photo = Shot("a.png", 5, 1, Modality.RGB, 3, View.BACK, "cocas", 2, head=1.4)
    whole, _ = draw_shot(photo, 0, (100, 50))
    fields = {
        name: getattr(photo, name)
        for name in ("path", "person", "outfit", "modality", "index", "view", "site", "camera", "head")
    }
    crop, _ = draw_shot(Shot(**fields, kind="crop"), 0, (100, 50))
    assert crop.size == (50, 40) and numpy.array_equal(numpy.asarray(crop), numpy.asarray(whole)[15:55])
    template, _ = draw_shot(Shot(**fields, kind="template"), 0, (128, 64))
    pixels = numpy.asarray(template).astype(int)
    assert template.size == (64, 64) and template.mode == "RGB" and (pixels[:, [0, -1]] == 244).all()
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3)}
    person = make_person(0, 5)
    outfit = make_outfit(0, person, 1)
    assert outfit.upper.colours[0] in colours and outfit.shoes.colour in colours
    skin = {
        "pale": (245, 216, 196),
        "fair": (232, 190, 160),
        "olive": (206, 160, 120),
        "tan": (176, 124, 86),
        "brown": (130, 86, 58),
        "dark": (84, 56, 42),
    }[person.skin]
    assert skin not in colours
    moved = {**fields, "index": 9, "view": View.FRONT, "camera": 7, "site": "x"}
    assert numpy.array_equal(numpy.asarray(draw_shot(Shot(**moved, kind="template"), 0, (128, 64))[0]), pixels)
    other = draw_shot(Shot(**{**fields, "outfit": 2}, kind="template"), 0, (128, 64))[0]
    assert not numpy.array_equal(numpy.asarray(other), pixels)


@pytest.mark.parametrize(("suffix", "start"), [(".jpg", b"\xff\xd8\xff"), (".png", b"\x89PNG"), (".bmp", b"BM")])
@pytest.mark.parametrize("modality", [Modality.RGB, Modality.NIR])
def test_the_suffix_decides_the_format(suffix: str, start: bytes, modality: Modality) -> None:
    assert encode_shot(Shot(f"x/y{suffix}", 0, 0, modality, 0, View.FRONT, "s", 1), 0, (32, 16)).startswith(start)


def test_texts_of_a_picture_and_of_an_outfit() -> None:
    shot = Shot("a.jpg", 5, 1, Modality.RGB, 3, View.BACK, "cocas", 2)
    assert caption_of(shot, 0) == caption_of(shot, 0) != caption_of(shot, 1)
    first, second = description_of(0, 5, 1), description_of(0, 5, 1, number=1)
    assert first != second and first != description_of(0, 5, 2) and first.endswith(".")


def test_arguments(tmp_path: Path) -> None:
    assert parse_layouts(["prcc,ltcc", "prcc", " nkup "]) == ("prcc", "ltcc", "nkup")
    for values, message in ((["prc"], "unknown layout 'prc'.*prcc"), ([","], "names no layout")):
        with pytest.raises(UserError, match=message):
            parse_layouts(values)
    wrong = (
        ({"shared_persons": 4}, r"--shared-persons is 4: give 0\.\.3"),
        ({"outfits": 0}, "--outfits is 0: give at least 1"),
        ({"outfits": 91}, "give at most 90"),
        ({"identities": 90_001}, "give at most 90000"),
        ({"shared_persons": -1}, "shared-persons is -1"),
    )
    for changes, message in wrong:
        with pytest.raises(UserError, match=message):
            RenderArguments("prcc", **{**SMALL, **changes})
    for layout in ("prcc", "ltcc", "vc-clothes", "last", "nkup"):
        with pytest.raises(
            UserError, match=f"--outfits is 1: people change clothes in the layout {layout}, give at least 2"
        ):
            plan_of(layout, outfits=1)
    for layout, most in (("market1501", 1501), ("cuhk03", 1467), ("ltcc", 152), ("prcc", 999)):
        with pytest.raises(
            UserError, match=f"{most + 1} identities are too many for {layout}: .* give fewer --identities"
        ):
            plan_of(layout, identities=most, test_identities=1, images_per_modality=1)
    assert draw_ids(0, "x", (9, 8, 9), 5, 6).keys() == {9, 8}


def test_command_line_takes_several_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "x",
        "--layout",
        "prcc,cuhk03",
        "--layout",
        "nkup",
        "--root",
        str(tmp_path),
        "--identities",
        "2",
        "--test-identities",
        "2",
        "--image-size",
        "32x16",
        "--images-per-modality",
        "1",
        "--outfits",
        "2",
        "--shared-persons",
        "1",
        "--processes",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", command)
    main()
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("nothing to do" in line for line in lines[3:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["NKUP", "cuhk03-np", "prcc"]
