"""Covers: datasets/synthetic/render, datasets/synthetic/layouts/orbench, datasets/synthetic/person,
datasets/synthetic/wardrobe, datasets/synthetic/captions, datasets/synthetic/shots, datasets/synthetic/scenes,
datasets/synthetic/camera, datasets/synthetic/canvas, datasets/synthetic/figure, datasets/synthetic/head,
datasets/synthetic/patterns, datasets/synthetic/textures, datasets/synthetic/background, datasets/synthetic/palettes,
datasets/synthetic/photographs, datasets/synthetic/drawings, datasets/synthetic/nuisance. The rendered population:
layout on disk, byte identity, what each modality keeps, membership, query lists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import PIL
import pytest
from PIL import Image

from configs.vocabulary import Modality
from datasets.formats.query_lists import draw_query_lists
from datasets.synthetic import drawings, photographs
from datasets.synthetic.arguments import RenderArguments, parse_image_size
from datasets.synthetic.camera import make_camera
from datasets.synthetic.canvas import Layer, Scene
from datasets.synthetic.captions import SYNONYMS, make_caption
from datasets.synthetic.figure import draw_labels
from datasets.synthetic.layouts import orbench
from datasets.synthetic.nuisance import RENDERER_VERSION
from datasets.synthetic.person import Membership, View, make_person, membership, person_indices
from datasets.synthetic.render import render
from datasets.synthetic.shots import Shot, draw_shot
from datasets.synthetic.wardrobe import COLOURS, DYES, REFLECTANCE, Garment, make_outfit
from utils.errors import UserError
from utils.seeding import stream

SIZE = (64, 32)
SMALL: dict[str, Any] = {"identities": 5, "test_identities": 3, "seed": 7, "image_size": SIZE, "images_per_modality": 4}
NUMPY, PILLOW = numpy.__version__, PIL.__version__
GOLDEN_DIGEST = (3, "fab5fc6152f550da")

KEYS = """NIR CP SK TEXT NIR+CP CP+NIR NIR+SK SK+NIR NIR+TEXT TEXT+NIR CP+SK SK+CP CP+TEXT TEXT+CP SK+TEXT TEXT+SK
NIR+CP+SK CP+NIR+SK SK+NIR+CP NIR+CP+TEXT CP+NIR+TEXT TEXT+NIR+CP NIR+SK+TEXT SK+NIR+TEXT TEXT+NIR+SK CP+SK+TEXT
SK+CP+TEXT TEXT+CP+SK NIR+CP+SK+TEXT CP+NIR+SK+TEXT SK+NIR+CP+TEXT TEXT+NIR+CP+SK""".split()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendering by one process."""
    return render("orbench", tmp_path_factory.mktemp("one"), processes=1, **SMALL).folder


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_tree_and_names(rendered: Path) -> None:
    assert rendered.name == "ORBench"
    assert sorted(path.name for path in rendered.iterdir()) == [
        "cp",
        "manifest.json",
        "nir",
        "sk",
        "test_gallery_and_queries.json",
        "train_annos.json",
        "vis",
    ]
    grammar = {
        "vis": r"(\d{4})/\1_(sysu|llcm)_\d{4}_cam[1-9]_\d{4}_vis\.jpg",
        "nir": r"(\d{4})/\1_(sysu|llcm)_\d{4}_cam[1-9]_\d{4}_nir\.jpg",
        "cp": r"(\d{4})/\1_(sysu|llcm)_\d{4}_(front|back|side)_[1-6]_colorpencil\.jpg",
        "sk": r"(\d{4})/\1_(sysu|llcm)_\d{4}_(front|back|side)_[1-6]_sketch\.jpg",
    }
    for kind, pattern in grammar.items():
        names = sorted(str(path.relative_to(rendered / kind)) for path in (rendered / kind).rglob("*.jpg"))
        assert len(names) == 8 * 4
        assert all(re.fullmatch(pattern, name) for name in names), names[:3]
        assert sorted({name[:4] for name in names}) == [f"{number:04d}" for number in range(1, 9)]
        for name in names[:6]:
            with Image.open(rendered / kind / name) as image:
                assert image.format == "JPEG" and image.size == (32, 64)


def test_train_annotations(rendered: Path) -> None:
    annotations = load(rendered / "train_annos.json")
    assert len(annotations) == 5 * 4
    assert sorted({entry["id"] for entry in annotations}) == [1, 2, 3, 4, 5]
    folders: dict[int, set[str]] = {}
    for entry in annotations:
        assert set(entry) == {"id", "file_path", "caption", "split"} and entry["split"] == "train"
        assert isinstance(entry["id"], int) and isinstance(entry["caption"], str) and entry["caption"]
        assert (rendered / entry["file_path"]).is_file() and entry["file_path"].startswith("vis/")
        folders.setdefault(entry["id"], set()).add(entry["file_path"].split("/")[1])
    assert all(len(found) == 1 for found in folders.values()) and len(set.union(*folders.values())) == 5


def test_gallery_and_queries(rendered: Path) -> None:
    test = load(rendered / "test_gallery_and_queries.json")
    assert list(test) == ["RGB_GALLERY", *KEYS]
    gallery = test["RGB_GALLERY"]
    assert len(gallery) == 12 and len({path for _, path in gallery}) == 12
    train_folders = {entry["file_path"].split("/")[1] for entry in load(rendered / "train_annos.json")}
    folder_of: dict[int, str] = {}
    for person_id, path in gallery:
        folder = path.split("/")[1]
        assert folder_of.setdefault(person_id, folder) == folder
        assert person_id != int(folder) and folder not in train_folders and person_id > 5
    kinds = {"NIR": "nir", "CP": "cp", "SK": "sk"}
    for key in KEYS:
        assert len(test[key]) == 12
        anchors = [row[1] for row in test[key]]
        if not key.startswith("TEXT"):
            assert len(set(anchors)) == 12
        for row in test[key]:
            assert type(row[0]) is int and len(row) == 1 + len(key.split("+"))
            for member, item in zip(key.split("+"), row[1:]):
                if member == "TEXT":
                    assert ".jpg" not in item
                else:
                    assert item.startswith(f"{kinds[member]}/{folder_of[row[0]]}/") and (rendered / item).is_file()


def test_same_bytes_for_any_number_of_processes_and_any_run(rendered: Path, tmp_path: Path) -> None:
    render("orbench", tmp_path, processes=2, **SMALL)
    assert checksums(tmp_path / "ORBench") == checksums(rendered)


def test_other_seed_other_pictures(rendered: Path, tmp_path: Path) -> None:
    render("orbench", tmp_path, processes=1, **{**SMALL, "seed": 8})
    one, two = checksums(rendered), checksums(tmp_path / "ORBench")
    assert not set(one.values()) & set(two.values())


@pytest.mark.skipif(
    (NUMPY, PILLOW, platform.machine()) != ("2.4.6", "13.0.0", "x86_64"), reason="the digest is of other versions"
)
def test_pictures_change_only_with_the_renderer_version(tmp_path: Path) -> None:
    digest = render("orbench", tmp_path, processes=1, **SMALL).digest
    assert (RENDERER_VERSION, digest) == GOLDEN_DIGEST, (
        "raise RENDERER_VERSION when pictures or captions change, then pin the new digest"
    )


def test_reuse_and_refusals(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {
        "identities": 1,
        "test_identities": 1,
        "image_size": (32, 16),
        "images_per_modality": 1,
        "processes": 1,
    }
    first = render("orbench", tmp_path, **tiny)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    again = render("orbench", tmp_path, **tiny)
    assert again.reused and not first.reused and (again.digest, again.pictures) == (first.digest, 8)
    with pytest.raises(UserError, match=r"seed = 0, now it is 1: choose another --root, or delete"):
        render("orbench", tmp_path, **{**tiny, "seed": 1})
    with pytest.raises(UserError, match=r"identities = 1, now it is 2 \(image_size too\)"):
        render("orbench", tmp_path, **{**tiny, "identities": 2, "image_size": (32, 32)})
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    annotations = first.folder / "train_annos.json"
    text = annotations.read_text()
    annotations.write_text(text.replace("train", "val", 1))
    with pytest.raises(UserError, match="train_annos.json is missing or was changed"):
        render("orbench", tmp_path, **tiny)
    annotations.write_text(text)
    assert render("orbench", tmp_path, **tiny).reused
    next(first.folder.rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="holds 7 pictures where its manifest counts 8"):
        render("orbench", tmp_path, **tiny)


def test_interrupted_rendering_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny: dict[str, Any] = {
        "identities": 1,
        "test_identities": 1,
        "image_size": (32, 16),
        "images_per_modality": 1,
        "processes": 1,
    }
    expected = checksums(render("orbench", tmp_path / "whole", **tiny).folder)
    calls = []

    def fail_at_fourth(*arguments: Any) -> bytes:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    import datasets.synthetic.render as module

    original = module.encode_shot
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_shot", fail_at_fourth)
        with pytest.raises(KeyboardInterrupt):
            render("orbench", tmp_path / "part", **tiny)
    folder = tmp_path / "part" / "ORBench"
    assert not (folder / "manifest.json").exists() and len(list(folder.rglob("*.jpg"))) == 3
    with pytest.raises(UserError, match="seed = 0, now it is 5"):
        render("orbench", tmp_path / "part", **{**tiny, "seed": 5})
    assert not render("orbench", tmp_path / "part", **tiny).reused
    assert checksums(folder) == expected


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "ORBench"
    folder.mkdir()
    (folder / "train_annos.json").write_text("[]")
    with pytest.raises(UserError, match="was not rendered by this command"):
        render("orbench", tmp_path, processes=1, **SMALL)
    assert [path.name for path in folder.iterdir()] == ["train_annos.json"]


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file is a file: choose another --root"):
            render("orbench", root, processes=1, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "orbensh"}, "did you mean 'orbench'"),
        ({"identities": 0}, "--identities is 0"),
        ({"images_per_modality": 0}, "--images-per-modality"),
        ({"image_size": (8, 8)}, "--image-size is 8x8"),
        ({"identities": 9990, "test_identities": 10}, "four digits"),
        ({"processes": 0}, "--processes is 0"),
    ],
)
def test_wrong_arguments(tmp_path: Path, change: dict, message: str) -> None:
    arguments: dict[str, Any] = {"layout": "orbench", **SMALL, **change}
    with pytest.raises(UserError, match=message):
        render(root=tmp_path, **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["128", "128x64x3", "ax64", "-3x4", ""])
def test_wrong_image_size(text: str) -> None:
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        parse_image_size(text)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "datasets.synthetic"]
    render_it = [
        *command,
        "--root",
        str(tmp_path),
        "--identities",
        "1",
        "--test-identities",
        "1",
        "--image-size",
        "32x16",
        "--processes",
        "1",
    ]
    assert "32 pictures" in subprocess.run(render_it, capture_output=True, text=True, check=True).stdout
    assert "nothing to do" in subprocess.run(render_it, capture_output=True, text=True, check=True).stdout
    refused = subprocess.run([*render_it, "--seed", "9"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


def test_rendering_does_not_load_torch() -> None:
    code = "import sys, datasets.synthetic.render, datasets.synthetic.layouts.orbench; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_membership_is_a_property_of_the_person() -> None:
    small = RenderArguments("orbench", 5, 3, 7, SIZE, 1)
    other = dataclasses.replace(small, identities=50, test_identities=20, images_per_modality=3)
    seen: dict[int, Membership] = {}
    for arguments in (small, other):
        plan = orbench.plan(arguments)
        trained = {path for path in (entry["file_path"] for entry in plan.annotations["train_annos.json"])}
        for shot in plan.shots:
            if shot.modality is Modality.RGB:
                part = Membership.TRAIN if shot.path in trained else Membership.TEST
                assert seen.setdefault(shot.person, part) is part is membership(shot.person)
                assert make_person(7, shot.person).membership is part
    assert len(seen) == 70
    blocks = [set(person_indices(Membership.TEST, 100, block)) for block in range(3)]
    assert not blocks[0] & blocks[1] and not blocks[1] & blocks[2]
    ranges = [set(person_indices(part, 100)) for part in Membership]
    assert not set.intersection(*ranges) and len(set.union(*ranges)) == 300
    # The person does not depend on the layout's arguments, the outfit not on the person's other outfits.
    assert make_person(7, 3) == make_person(7, 3) != make_person(8, 3)
    assert make_outfit(7, make_person(7, 3), 1) != make_outfit(7, make_person(7, 3), 0)


def plain(garment: Garment, colour: str, reflectance: float) -> Garment:
    return dataclasses.replace(
        garment,
        pattern="plain",
        words=(colour, colour),
        colours=(COLOURS[colour],) * 2,
        reflectances=(reflectance,) * 2,
    )


def pictures_of(colour: str, reflectance: float, index: int) -> dict[str, numpy.ndarray]:
    """Person `index` in a plain upper garment, in every modality, each from the same stream whatever the colour."""
    person = make_person(3, index)
    outfit = make_outfit(3, person, 0)
    outfit = dataclasses.replace(outfit, upper=plain(outfit.upper, colour, reflectance))
    camera, night = make_camera(3, "sysu", 1), make_camera(3, "sysu", 3, infrared=True)
    size = (128, 64)
    found = {
        "rgb": photographs.visible_photo(person, outfit, camera, View.FRONT, size, stream("rgb", index)),
        "nir": photographs.infrared_photo(person, outfit, night, View.FRONT, size, stream("nir", index)),
        "cp": drawings.colour_pencil(person, outfit, View.FRONT, size, stream("drawing", index)),
        "sk": drawings.sketch(person, outfit, View.FRONT, size, stream("drawing", index), stream("pen", index)),
    }
    return {name: numpy.asarray(image, dtype=float) for name, image in found.items()}


def test_near_infrared_sees_the_material_and_not_the_colour() -> None:
    for index in range(4):
        red, green, dark = (
            pictures_of("red", 0.6, index),
            pictures_of("green", 0.6, index),
            pictures_of("red", 0.15, index),
        )
        assert red["nir"].ndim == 2 and red["rgb"].ndim == red["cp"].ndim == 3
        assert abs(red["nir"] - green["nir"]).mean() == 0
        assert abs(red["nir"] - dark["nir"]).mean() > 3
        assert abs(red["rgb"] - green["rgb"]).mean() > 4 and abs(red["cp"] - green["cp"]).mean() > 1.5
        assert abs(red["rgb"] - dark["rgb"]).mean() == 0


def test_colour_pencil_keeps_the_hue_on_white_paper() -> None:
    for index in range(4):
        pictures = {name: pictures_of(name, 0.5, index)["cp"] for name in ("red", "blue")}
        differing = abs(pictures["red"] - pictures["blue"]).sum(axis=2) > 40
        assert differing.mean() > 0.03
        mean = {name: picture[differing].mean(axis=0) for name, picture in pictures.items()}
        assert mean["red"][0] > mean["red"][2] + 20 and mean["blue"][2] > mean["blue"][0] + 20
        for picture in pictures.values():
            border = numpy.concatenate([picture[:, 0], picture[:, -1]])
            assert numpy.median(border) > 245


def test_sketch_is_lines_on_white() -> None:
    for index in range(6):
        pictures = pictures_of("black", 0.5, index)
        sketch = pictures["sk"]
        assert sketch.ndim == 2 and numpy.median(sketch) > 235 and numpy.percentile(sketch, 4) < 140
        # No fill is left: inside a black garment, away from its outline, the sketch is far lighter than the drawing.
        person = make_person(3, index)
        labels = drawings.drawn_labels(
            person, make_outfit(3, person, 0), View.FRONT, (128, 64), stream("drawing", index)
        )
        torso = (labels[::2, ::2] == Layer.UPPER) | (labels[::2, ::2] == Layer.UPPER_SECOND)
        inside = numpy.lib.stride_tricks.sliding_window_view(numpy.pad(torso, 2), (5, 5)).all(axis=(2, 3))
        assert inside.sum() > 20 and sketch[inside].mean() > max(165, pictures["cp"][inside].mean() + 30)


def test_sketch_has_the_geometry_of_its_drawing() -> None:
    def edges(shot: Shot) -> list[int]:
        columns = numpy.flatnonzero(
            (numpy.asarray(draw_shot(shot, 1, (128, 64))[0].convert("L"), dtype=float) < 170).any(axis=0)
        )
        return [columns[0], columns[-1]]

    drawn = [
        [edges(Shot("", person, 0, modality, index, view)) for person in range(6) for index, view in enumerate(View)]
        for modality in (Modality.CP, Modality.SK)
    ]
    difference = abs(numpy.array(drawn[0]) - numpy.array(drawn[1]))
    assert difference.max() <= 2 and difference.mean() < 0.5


def test_test_ids_never_equal_the_folder() -> None:
    for seed in range(60):
        folders, ids = orbench._numbers(3, 4, seed)
        assert sorted(folders) == [1, 2, 3, 4, 5, 6, 7] and len(set(ids)) == 4 and min(ids) > 3
        assert all(folder != test_id for folder, test_id in zip(folders[3:], ids))


def test_figure_geometry() -> None:
    scene = Scene(view=View.FRONT, left=False, phase=0.0, arm=0.0, scale=0.96, centre=0.5, top=0.02)
    kinds: dict[str, list[int]] = {}
    for index in range(300):
        person = make_person(0, index)
        outfit = make_outfit(0, person, 0)
        labels = draw_labels(person, outfit, scene, (128, 64), stream("wobble", index))
        assert labels.shape == (256, 128) and labels.dtype == numpy.uint8
        rows = numpy.flatnonzero((labels != Layer.BACKGROUND).any(axis=1))
        assert rows[0] < 18 and rows[-1] > 240
        kinds.setdefault(outfit.lower.kind if outfit.lower else "dress", []).append(
            (labels == Layer.SKIN)[170:220].sum()
        )
        if person.head.beard:
            assert (labels == Layer.BEARD).any()
        if outfit.bag.kind != "none":
            assert (labels == Layer.BAG).sum() > 60
        if outfit.scarf.kind != "none":
            assert (labels == Layer.SCARF).any()
    # Bare shins below shorts, none below trousers.
    assert numpy.mean(kinds["shorts"]) > 300 > 5 > numpy.mean(kinds["trousers"])
    person = next(make_person(0, index) for index in range(300) if make_person(0, index).head.glasses == "sunglasses")
    outfit = make_outfit(0, person, 0)
    front, back = (
        draw_labels(person, outfit, dataclasses.replace(scene, view=view), (128, 64), stream("w"))
        for view in (View.FRONT, View.BACK)
    )
    assert (front == Layer.GLASSES).any() and not (back == Layer.GLASSES).any() and not (back == Layer.EYES).any()


def test_wardrobe() -> None:
    order = sorted(REFLECTANCE, key=lambda material: REFLECTANCE[material])
    assert order[0] == "leather" and set(DYES) == set(REFLECTANCE)
    for index in range(200):
        person = make_person(5, index)
        outfit = make_outfit(5, person, 0)
        garments = [outfit.upper] + ([outfit.lower] if outfit.lower else [])
        assert (outfit.lower is None) == (outfit.upper.kind == "dress")
        for garment in garments:
            assert garment.words[0] in DYES[garment.material] and garment.words[0] != garment.words[1]
            assert abs(garment.reflectances[0] - REFLECTANCE[garment.material]) <= 0.06
            assert all(abs(a - b) <= 16 for a, b in zip(garment.colours[0], COLOURS[garment.words[0]]))
        if person.sex == "man":
            assert (
                outfit.upper.kind != "dress"
                and outfit.lower is not None
                and "skirt" not in outfit.lower.kind
                and person.head.hair not in ("bob", "bun")
            )


def test_captions_agree_with_the_person() -> None:
    words_of = {name: SYNONYMS.get(name, (name,)) for name in COLOURS}
    lengths, named, other = [], 0, 0
    for index in range(400):
        person = make_person(2, index)
        outfit = make_outfit(2, person, 0)
        caption = make_caption(person, outfit, View.BACK, stream("caption", index))
        assert caption == make_caption(person, outfit, View.BACK, stream("caption", index))
        assert (
            caption.isascii()
            and "  " not in caption
            and "{}" not in caption
            and " ." not in caption
            and caption.endswith(".")
        )
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", caption), caption
        assert "glasses" not in caption and "beard" not in caption
        spoken = set(re.findall(r"[a-z-]+", caption.lower()))
        allowed = {
            outfit.upper.words[0],
            outfit.upper.words[1],
            outfit.bag.word,
            outfit.shoes.word,
            outfit.scarf.word,
            person.head.hair_colour,
            person.head.headwear_colour,
        } | (set(outfit.lower.words) if outfit.lower else set())
        for name, synonyms in words_of.items():
            if spoken & set(synonyms) and name not in allowed:
                other += 1
        named += bool(spoken & set(words_of[outfit.upper.words[0]]))
        lengths.append(len(caption.split()))
    assert other == 0
    assert 0.75 < named / 400 < 1.0, "most captions name the garment's colour, some leave it out"
    # A CLIP token is at most one word or mark, so more than 77 words exceed 77 tokens.
    assert max(lengths) > 77 and 45 < numpy.mean(lengths) < 75 and min(lengths) < 35


def test_query_lists_worked_by_hand() -> None:
    items = {
        9: {Modality.NIR: ["n1", "n2"], Modality.CP: ["c1"], Modality.SK: ["s1"], Modality.TEXT: ["t1"]},
        4: {Modality.NIR: ["n3"], Modality.CP: ["c2"], Modality.SK: ["s2"], Modality.TEXT: ["t2", "t3"]},
        6: {Modality.NIR: ["n4"], Modality.CP: [], Modality.TEXT: ["t4"]},
    }
    lists = {"+".join(member.name for member in key): rows for key, rows in draw_query_lists(items, seed=0).items()}
    assert list(lists) == KEYS
    assert lists["NIR"] == [(4, ("n3",)), (6, ("n4",)), (9, ("n1",)), (9, ("n2",))]
    assert lists["NIR+CP"] == [(4, ("n3", "c2")), (9, ("n1", "c1")), (9, ("n2", "c1"))]
    assert lists["CP+SK"] == [(4, ("c2", "s2")), (9, ("c1", "s1"))]
    assert lists["TEXT+SK"] == [(4, ("t2", "s2")), (4, ("t3", "s2")), (9, ("t1", "s1"))]
    assert [person for person, _ in lists["TEXT+NIR"]] == [4, 4, 6, 9]
    assert {row[1][3] for row in lists["SK+NIR+CP+TEXT"] if row[0] == 4} <= {"t2", "t3"}


def test_query_lists_draw_every_partner_and_depend_on_the_person_only() -> None:
    def person(name: str) -> dict[Modality, list[str]]:
        return {
            modality: [f"{name}{modality.name}{index}" for index in range(4)]
            for modality in (Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT)
        }

    many = {number: person(f"p{number}") for number in range(200)}
    lists = draw_query_lists(many, seed=1)
    key = (Modality.NIR, Modality.CP)
    counts = [sum(parts[1].endswith(f"CP{index}") for _, parts in lists[key]) for index in range(4)]
    assert sum(counts) == 800 and min(counts) > 150
    alone = draw_query_lists({17: many[17]}, seed=1)
    assert alone[key] == [row for row in lists[key] if row[0] == 17]
    assert draw_query_lists(many, seed=2)[key] != lists[key]
    assert lists[key] != [(number, (nir, cp)) for number, (cp, nir) in lists[(Modality.CP, Modality.NIR)]]
