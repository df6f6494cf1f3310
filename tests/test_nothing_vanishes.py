"""Covers: datasets/loading/suffixes, datasets/formats/listing, datasets/releases/folders,
datasets/formats/manifest_rows, solver/search/gallery, utils/folder_names, utils/texts. Nothing of a folder of one's
own vanishes without a word: suffixes, links, names.
"""

import os
import shutil
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from trees import not_mine, plant

from configs.schema.data import DataConfig
from configs.vocabulary import Modality
from datasets.catalogue import dataset_entry, read_release
from datasets.checks.run import CheckOptions, run_check
from datasets.loading.readers import open_image
from datasets.loading.suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_image_name, unread_notes
from datasets.releases.folders import DATASET as FOLDERS
from datasets.releases.manifest import DATASET as MANIFEST
from datasets.split import main as split_main
from datasets.structures import ReadOptions
from solver.search.gallery import folder_gallery
from solver.search.queries import read_queries
from utils.errors import UserError
from utils.folder_names import FolderNames

READ = ReadOptions(need_train=False)
COMPOSED, DECOMPOSED = "Jos\u00e9", "Jose\u0301"


def pictures(root: Path, *names: str) -> Path:
    """Pictures of the form that the suffix promises."""
    forms = {".jfif": "JPEG", ".jpe": "JPEG", ".gif": "GIF", ".ppm": "PPM", ".pgm": "PPM", ".avif": "AVIF"}
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "L" if path.suffix == ".pgm" else "RGB"
        Image.new(mode, (8, 16), (len(name),) * len(mode)).save(path, forms.get(path.suffix.lower(), "PNG"))
    return root


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jpeg"}))
def test_further_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path, f"query/anna/q{suffix.upper()}", f"gallery/anna/g{suffix}")
    release = FOLDERS.read(tmp_path, READ)
    assert [len(release.parts[part]) for part in ("query", "gallery")] == [1, 1]
    assert open_image(release.parts["gallery"][0].sources[Modality.RGB].value).size == (8, 16)
    assert len(folder_gallery(tmp_path).sources) == 2 and not folder_gallery(tmp_path).note


def test_images_that_are_not_read_are_named_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, "query/anna/1.png", "gallery/anna/1.png", "query/bob/1.png", "gallery/bob/1.png")
    for name in ("query/carl/1.HEIC", "gallery/carl/2.HEIC", "gallery/carl/3.jxl", "gallery/bob/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("gallery/bob/Thumbs.db", "gallery/bob/.DS_Store", "gallery/bob/.hidden.heic"):
        (tmp_path / name).write_bytes(b"x")
    report, _ = run_check(CheckOptions(dataset="folders", root=tmp_path, reading=READ))
    said = {finding.message: finding.level for finding in report.findings if finding.kind == "reader"}
    images, others, persons = (next(text for text in said if word in text) for word in ("HEIC", "notes", "folders"))
    assert images.startswith("3 files (.heic 2, .jxl 1) are of a form that is not read") and said[images] == "warning"
    assert "gallery/carl/2.HEIC" in images and "convert" in images and "hidden" not in images
    assert others.startswith("1 files (.txt 1) do not end like an image") and said[others] == "note"
    assert persons.startswith("2 folders of persons hold no image that is read: query/carl, gallery/carl")
    gallery = folder_gallery(tmp_path / "gallery")
    assert len(gallery.sources) == 2 and "2 files (.heic 1, .jxl 1)" in gallery.note and "notes.txt" in gallery.note
    (tmp_path / "all").mkdir()
    (tmp_path / "all/a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no image .*; 1 files \(.heic 1\) are of a form that is not read"):
        folder_gallery(tmp_path / "all")


def test_a_listed_image_of_an_unread_form(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "own.csv").write_text("path,person,split\na.heic,anna,gallery\n")
    with pytest.raises(UserError, match=r"own.csv line 2: 'a.heic' is of a form that is not read; convert it to .jpg"):
        MANIFEST.read(tmp_path / "own.csv", READ)


def test_official_releases_say_what_is_not_read_beside_their_images(tmp_path: Path) -> None:
    """Whoever converted some files would otherwise train on the others without a word."""
    plant(tmp_path, *(f"Market-1501/{folder}/0002_c1s1_000001_00.jpg" for folder in ("query", "bounding_box_test")))
    plant(tmp_path, "Market-1501/bounding_box_train/0001_c1s1_000001_00.jpg")
    for name in ("bounding_box_train/0001_c2s1_000002_00.heic", "query/0002_c2s1_000002_00.tga", "query/Thumbs.db"):
        (tmp_path / "Market-1501" / name).write_bytes(b"x")
    (tmp_path / "Market-1501" / "query" / "notes.txt").write_bytes(b"x")
    release = read_release(dataset_entry("market1501"), tmp_path, ReadOptions())
    (note,) = release.notes
    assert note.startswith("warning: 2 files (.heic 1, .tga 1) are of a form that is not read, and left out: ")
    assert "query/0002_c2s1_000002_00.tga" in note and "bounding_box_train/0001_c2s1_000002_00.heic" in note
    joint = read_release(dataset_entry("joint"), tmp_path, ReadOptions(data=DataConfig(dataset="joint")))
    assert [text for text in joint.notes if "not read" in text] == [f"market1501: {note}"]


def test_the_split_command_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path, *(f"photos/p{person}/{number}.png" for person in range(6) for number in range(3)))
    (tmp_path / "photos/p0/9.heic").write_bytes(b"x")
    arguments = ["split", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "own.csv"), "--val", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    split_main()
    assert "1 files (.heic 1) are of a form that is not read, and left out: p0/9.heic" in capsys.readouterr().out


def test_a_gallery_is_sorted_by_folder_and_then_by_name(tmp_path: Path) -> None:
    plant(tmp_path, "a-b/1.png", "a/2.png", "a/10.png", "a.png")
    found = [os.path.relpath(source.value, tmp_path) for source in folder_gallery(tmp_path).sources]
    assert found == ["a/10.png", "a/2.png", "a-b/1.png", "a.png"]


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png", "gallery/c.png", "gallery/z/d.png")
    (tmp_path / "gallery/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "gallery/again").symlink_to(tmp_path / "gallery/z")
    (tmp_path / "gallery/z/up").symlink_to(tmp_path / "gallery")
    (tmp_path / "gallery/self").symlink_to(tmp_path / "gallery/self")
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "elsewhere")
    found = [
        os.path.relpath(source.value, tmp_path / "gallery") for source in folder_gallery(tmp_path / "gallery").sources
    ]
    assert found == ["again/d.png", "c.png", "linked/a.png", "linked/deep/b.png"]


def test_linked_folders_of_persons_are_read(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/1.png", "own/query/anna/1.png", "own/gallery/bob/1.png")
    (tmp_path / "own/gallery/anna").symlink_to(tmp_path / "elsewhere")
    assert len({record.person_id for record in FOLDERS.read(tmp_path / "own", READ).parts["gallery"]}) == 2


def test_names_that_differ_in_their_unicode_form_are_one_person(tmp_path: Path) -> None:
    assert COMPOSED != DECOMPOSED and unicodedata.normalize("NFC", DECOMPOSED) == COMPOSED
    plant(tmp_path, f"own/query/{DECOMPOSED}/1.png", f"own/gallery/{COMPOSED}/1.png", "own/gallery/bob/1.png")
    release = FOLDERS.read(tmp_path / "own", READ)
    assert [record.person_id for record in release.parts["query"]] == [release.parts["gallery"][0].person_id]
    assert len({record.person_id for record in release.parts["gallery"]}) == 2
    # A path stays as the file is called.
    shutil.copy(tmp_path / f"own/gallery/{COMPOSED}/1.png", tmp_path / f"{DECOMPOSED}.png")
    plant(tmp_path, "b.png")
    rows = f"path,person,camera,clothes,split\n{DECOMPOSED}.png,{DECOMPOSED},{COMPOSED},{DECOMPOSED},query\n"
    rows += f"b.png,{COMPOSED},{DECOMPOSED},{COMPOSED},gallery\n"
    (tmp_path / "own.csv").write_text(rows, encoding="utf-8")
    parts = MANIFEST.read(tmp_path / "own.csv", READ).parts
    query, image = parts["query"][0], parts["gallery"][0]
    assert (query.person_id, query.camera_id, query.clothes_id) == (image.person_id, image.camera_id, image.clothes_id)
    (tmp_path / "q.json").write_text(f'[{{"text": "x", "person_id": "{DECOMPOSED}"}}]', encoding="utf-8")
    assert read_queries(tmp_path / "q.json")[0].person_id == COMPOSED


def test_a_path_in_another_unicode_form_is_found(tmp_path: Path) -> None:
    plant(tmp_path, f"{DECOMPOSED}/{DECOMPOSED}.png", f"{COMPOSED}2.png", "b.png")
    (tmp_path / f"{DECOMPOSED}2.png").write_bytes((tmp_path / "b.png").read_bytes())
    rows = f"path,person,split\n{COMPOSED}/{COMPOSED}.png,anna,query\n{COMPOSED}2.png,anna,gallery\nb.png,bo,gallery\n"
    (tmp_path / "own.csv").write_text(rows, encoding="utf-8")
    there = str(tmp_path / DECOMPOSED / f"{DECOMPOSED}.png")
    for reading in (READ, replace(READ, check_files=False)):
        parts = MANIFEST.read(tmp_path / "own.csv", reading).parts
        assert parts["query"][0].sources[Modality.RGB].value == there
        # The name that is there as it was written is meant.
        assert parts["gallery"][0].sources[Modality.RGB].value == str(tmp_path / f"{COMPOSED}2.png")
    (tmp_path / "q.json").write_text(f'[{{"nir": "{COMPOSED}/{COMPOSED}.png"}}]', encoding="utf-8")
    assert read_queries(tmp_path / "q.json")[0].sources[0].value == there
    (tmp_path / "own.csv").write_text(rows.replace(f"{COMPOSED}2", "Jos\u00e8"), encoding="utf-8")
    with pytest.raises(UserError, match="own.csv line 3: no such image"):
        MANIFEST.read(tmp_path / "own.csv", READ)
    assert MANIFEST.read(tmp_path / "own.csv", replace(READ, check_files=False)).parts["gallery"][0].sources[
        Modality.RGB
    ].value == str(tmp_path / "Jos\u00e8.png")


@pytest.mark.parametrize("closed", ["gallery", "gallery/bob"])
def test_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    plant(tmp_path, "query/anna/1.png", "gallery/anna/1.png", "gallery/bob/1.png")
    (tmp_path / "own.csv").write_text("path,person,split\ngallery/bob/1.png,bob,gallery\n")
    monkeypatch.chdir(tmp_path)
    with not_mine(Path(closed), 0):
        for read in (
            lambda: FOLDERS.read(Path(), READ),
            lambda: MANIFEST.read(Path("own.csv"), READ),
            lambda: folder_gallery("gallery"),
        ):
            with pytest.raises(UserError, match=rf"cannot list .*{closed}.*: Permission denied"):
                read()
    # A folder may also be listed and not entered.
    with not_mine(Path(closed), 0o444), pytest.raises(UserError, match="Permission denied"):
        open_image("gallery/bob/1.png")


def test_of_names_that_differ_in_their_form_alone_it_is_always_the_same(tmp_path: Path) -> None:
    """Asked for is a third form; which of the two there is meant cannot be told, and must not change."""
    for number in range(12):
        plant(tmp_path, f"{DECOMPOSED}{COMPOSED}{number}.png", f"{DECOMPOSED}{DECOMPOSED}{number}.png")
        found = FolderNames().find(str(tmp_path / f"{COMPOSED}{COMPOSED}{number}.png"))
        assert found == str(tmp_path / f"{DECOMPOSED}{DECOMPOSED}{number}.png")


def test_every_suffix_is_read_or_said() -> None:
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES and {".heic", ".gif", ".jfif"} <= IMAGE_SUFFIXES | UNREAD_SUFFIXES
    assert ".avif" in IMAGE_SUFFIXES | UNREAD_SUFFIXES and is_image_name("A.GIF") and not is_image_name(".a.gif")
    assert unread_notes([]) == ()
