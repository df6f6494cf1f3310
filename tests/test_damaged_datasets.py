"""Covers: datasets/check, datasets/releases, datasets/formats. More than thirty kinds of damaged data sets: each ends
in one clear sentence that names the culprit, and in exit code 2.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from official_trees import TREES, root_of
from tiny_orbench import write_orbench
from trees import plant, write_lines

from datasets import check
from datasets.catalogue import dataset_entry
from datasets.loading.readers import PillowReader
from datasets.structures import ReadOptions
from utils.errors import run_script

Spoil = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """dataset: whose whole copy is spoilt. spoil: gets the data set's own folder (the manifest's, for a manifest).
    says: what the sentence must hold, a regular expression. arguments: further ones of the command; {root} and {folder}
    are filled in.
    """

    dataset: str
    spoil: Spoil
    says: str
    arguments: tuple[str, ...] = ()


def nothing(folder: Path) -> None:
    """The place is wrong, not the data."""


def remove(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def rename(old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)

    return spoil


def add(name: str) -> Spoil:
    return lambda folder: plant(folder, name)


def text(name: str, *content: str) -> Spoil:
    return lambda folder: write_lines(folder / name, *content)


def append(name: str, line: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")

    return spoil


def content(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, keep: float = 0.6) -> Spoil:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(keep * (folder / name).stat().st_size)]
    )


def entry(name: str, number: int, **changes: Any) -> Spoil:
    """Change keys of one entry of a JSON list; None takes the key away."""

    def spoil(folder: Path) -> None:
        listed = json.loads((folder / name).read_text(encoding="utf-8"))
        for key, value in changes.items():
            listed[number].pop(key) if value is None else listed[number].update({key: value})
        (folder / name).write_text(json.dumps(listed), encoding="utf-8")

    return spoil


MSMT = "0000/0000_000_05_0303morning_0015_0.jpg"
REFUSED: dict[str, Case] = {
    # The wrong place.
    "no such folder": Case("market1501", nothing, "no such data root: .*absent", ("--root", "{root}/absent")),
    "an empty folder": Case("market1501", lambda folder: shutil.rmtree(folder), "holds no Market-1501"),
    "one level too high": Case(
        "market1501",
        lambda folder: shutil.move(folder, folder.parent / "below" / folder.name),
        "one level too high.*below",
    ),
    "one level too low": Case("market1501", nothing, "one level too low", ("--root", "{folder}/query")),
    "another data set": Case("ltcc", nothing, "this looks like LTCC: use --dataset ltcc", ("--dataset", "market1501")),
    "another version": Case("msmt17", nothing, "MSMT17", ("--variant", "v2")),
    "a variant that is not there": Case("cuhk03", nothing, "detected", ("--variant", "detected")),
    "an option of another data set": Case(
        "prcc", nothing, "data.variant=v1 does not belong to prcc", ("--variant", "v1")
    ),
    "a misspelt data set": Case("prcc", nothing, "did you mean 'prcc'", ("--dataset", "prrc")),
    "a misspelt protocol": Case("prcc", nothing, "did you mean 'prcc-cc-multi'", ("--protocols", "prcc-cc-mutli")),
    "a protocol without its file": Case("sysu", nothing, "rand_perm_cam", ("--protocols", "sysu-all-single-official")),
    # Missing folders and lists.
    "missing folder": Case("market1501", remove("query"), "query missing"),
    "missing list": Case("msmt17", remove("list_query.txt"), "list_query.txt missing"),
    "missing room": Case("prcc", remove("rgb/test/C"), "rgb/test/C missing"),
    "missing gallery of three": Case("nkup-plus", remove("bounding_box_test/gallery_sameapp"), "gallery_sameapp"),
    "missing camera": Case("sysu", remove("cam5"), "cam5 missing"),
    "missing list of ids": Case("sysu", remove("exp/test_id.txt"), "test_id.txt"),
    "missing trial": Case("regdb", remove("idx/train_visible_3.txt"), "train_visible_3.txt", ("--trial", "3")),
    "missing annotations": Case("icfg-pedes", remove("ICFG-PEDES.json"), "ICFG-PEDES.json"),
    "missing test lists": Case("orbench", remove("test_gallery_and_queries.json"), "test_gallery_and_queries.json"),
    "missing template list": Case("cocas", remove("query.txt"), "query.txt missing"),
    "missing captions": Case("omnireid", remove("cuhk_pedes/caption_t2i_v2.json"), "caption_t2i_v2.json"),
    "half a test set": Case("omnireid", remove("market/gallery.txt"), "gallery.txt"),
    "a folder without images": Case(
        "market1501", remove("query/0001_c1s1_001051_00.jpg", "query/0003_c2s1_001051_00.jpg"), "query"
    ),
    # Names.
    "a bad file name": Case("market1501", add("query/photo.jpg"), "query: file name 'photo.jpg'"),
    "pid out of range": Case("market1501", add("query/1502_c1s1_001051_00.jpg"), "1502.*outside"),
    "camera out of range": Case("ltcc", add("query/3_1_c13_000001.png"), "c13|13 is outside"),
    "a folder that is no person": Case(
        "prcc", rename("rgb/train/009", "rgb/train/nine"), "'nine' is not a whole number"
    ),
    "a name without its room": Case("prcc", add("rgb/train/009/cropped_rgb009.jpg"), "'cropped_rgb009.jpg'"),
    "names of another data set": Case("nkup", add("query/0001_c1s1_001051_00.jpg"), "'0001_c1s1_001051_00.jpg'"),
    "clothes that are no number": Case("vc-clothes", add("query/0001-01-red-01.jpg"), "'0001-01-red-01.jpg'"),
    "a name without a person": Case("last", add("test/query/face.jpg"), "'face.jpg'"),
    "a file number of five digits": Case("sysu", add("cam1/0001/00001.jpg"), "'00001.jpg'"),
    # Lines of lists.
    "a line with three columns": Case(
        "msmt17", append("list_query.txt", f"{MSMT} 0 7"), "list_query.txt line 3: 3 columns"
    ),
    "a pid that is no number": Case(
        "msmt17", text("list_query.txt", f"{MSMT} zero"), "list_query.txt line 1: pid = 'zero' is not a whole number"
    ),
    "a pid beyond the last": Case(
        "msmt17", text("list_query.txt", f"{MSMT} 3060"), "list_query.txt line 1: pid = 3060 is outside"
    ),
    "an image in two lists": Case(
        "msmt17",
        append("list_val.txt", "0000/0000_000_01_0303morning_0015_0.jpg 0"),
        "list_val.txt line 2: .*list_train.txt line 1",
    ),
    "an empty list": Case("msmt17", content("list_gallery.txt", b"\n\n"), "list_gallery.txt .*is empty"),
    "a list that is no text": Case("msmt17", content("list_gallery.txt", b"\xff\xd8\xff\xe0"), "list_gallery.txt"),
    "a path out of the folder": Case(
        "msmt17", append("list_query.txt", f"../../{MSMT} 0"), "list_query.txt line 3: .*is not a path inside"
    ),
    "a line without a folder": Case(
        "llcm", append("idx/train_vis.txt", ". 0"), "train_vis.txt line 3: '.' must lie in vis/"
    ),
    "a label beyond the last": Case(
        "llcm",
        append("idx/train_vis.txt", "vis/0351/0351_c06_s2_f1_vis.jpg 713"),
        "train_vis.txt line 3: label = 713 is outside 0..712",
    ),
    "exchanged lists": Case(
        "llcm",
        text("idx/train_vis.txt", "nir/0351/0351_c06_s2_f1_nir.jpg 0"),
        "train_vis.txt line 1: .*must lie in vis/",
    ),
    "ids that are no numbers": Case(
        "llcm", text("idx/test_id.txt", "5;9"), "test_id.txt line 1: .*'5;9' is not a whole number"
    ),
    "an id in two lists": Case("sysu", text("exp/val_id.txt", "20,7"), "identity 7 stands in train_id and in val_id"),
    "ids of nobody": Case("sysu", text("exp/test_id.txt", "500"), "exp/test_id"),
    "a line without its label": Case(
        "regdb",
        append("idx/test_visible_1.txt", "Visible/1/male_front_v_00001_1.bmp"),
        "test_visible_1.txt line 5: expected a path and a label",
    ),
    "one folder with two labels": Case(
        "regdb",
        append("idx/test_visible_1.txt", "Visible/1/male_front_v_00009_1.bmp 1"),
        "line 5: .*label 1 here and 0",
    ),
    "a datalist with too few columns": Case(
        "omnireid", append("market/query.txt", "a.jpg do_not_change 7"), "query.txt line 2: expected .*found 3 fields"
    ),
    "an unreadable number in a datalist": Case(
        "omnireid",
        append("market/query.txt", "a.jpg x seven 0"),
        "query.txt line 2: pid = 'seven' is not a whole number",
    ),
    "a caption key that is missing": Case(
        "omnireid",
        append("cuhk_pedes/query_t2i_v2.txt", "imgs/e.jpg key9 5 0"),
        "query_t2i_v2.txt line 2: no caption 'key9'",
    ),
    "a line without its template": Case(
        "cocas", append("query.txt", "images/1.jpg 1 0 3"), "query.txt line 3: expected 5 fields"
    ),
    # Annotations.
    "truncated JSON": Case("cuhk-pedes", cut("reid_raw.json"), "reid_raw.json .*not valid JSON.*truncated"),
    "an entry without captions": Case(
        "cuhk-pedes", entry("reid_raw.json", 3, captions=None), "reid_raw.json entry 3: no key 'captions'"
    ),
    "an empty list of captions": Case(
        "cuhk-pedes", entry("reid_raw.json", 0, captions=[]), "reid_raw.json entry 0: captions"
    ),
    "a caption that is no text": Case(
        "cuhk-pedes", entry("reid_raw.json", 0, captions=[7]), "entry 0: caption 7 is not a text"
    ),
    "an unknown split": Case("cuhk-pedes", entry("reid_raw.json", 1, split="dev"), 'entry 1: split = "dev"'),
    "an id that is no number": Case("cuhk-pedes", entry("reid_raw.json", 1, id="two"), 'entry 1: id = "two"'),
    "the key of another data set": Case(
        "rstpreid", entry("data_captions.json", 2, img_path=None, file_path="c.jpg"), "entry 2: no key 'img_path'"
    ),
    "one image, two persons": Case(
        "icfg-pedes", entry("ICFG-PEDES.json", 1, file_path="cam_a/a.jpg"), "entry 1: .*shows person 2 here and 1"
    ),
    "captions in another form": Case("icfg-pedes", text("ICFG-PEDES.json", '{"images": []}'), "must be a list"),
    "a query list of another form": Case(
        "orbench",
        lambda folder: (folder / "test_gallery_and_queries.json").write_text('{"RGB_GALLERY": []}'),
        "RGB_GALLERY is missing or empty",
    ),
    # A user's own data.
    "a misspelt column": Case(
        "manifest",
        text("own.csv", "path,preson", "i/a0.jpg,a"),
        "own.csv line 1: unknown column 'preson': did you mean 'person'",
    ),
    "a row with too many cells": Case(
        "manifest",
        append("own.csv", "i/a0.jpg,a,1,train,red"),
        "own.csv line 18: 5 cells, but the header has 4 columns",
    ),
    "an image of two persons": Case(
        "manifest",
        append("own.csv", "i/a0.jpg,b,1,train"),
        "own.csv line 18: i/a0.jpg shows 'b', but own.csv line 2 says 'a'",
    ),
    "a manifest in another encoding": Case(
        "manifest", content("own.csv", "path,person\ni/a0.jpg,Zoë\n".encode("latin-1")), "own.csv: not UTF-8"
    ),
    "a misspelt split": Case(
        "manifest", append("own.csv", "i/c0.jpg,c,1,tset"), "own.csv line 18: split = 'tset': did you mean 'test'"
    ),
    "loose images": Case("folders", add("train/loose.jpg"), "1 images lie beside the folders, for instance loose.jpg"),
    "a person beside the splits": Case("folders", add("anna/1.jpg"), "anna/ stands beside train/"),
    # The list of images to leave out.
    "an exclusion of nothing": Case(
        "market1501",
        lambda folder: write_lines(folder.parent / "out.txt", "# none", "query/typo.jpg"),
        "out.txt line 2: .*typo.jpg is no image",
        ("--exclude", "{root}/out.txt"),
    ),
    "no list of exclusions": Case(
        "market1501", nothing, "no such file: .*out.txt .*correct data.exclude", ("--exclude", "{root}/out.txt")
    ),
}

FOUND: dict[str, Case] = {
    "one file truncated": Case(
        "market1501", cut("query/0001_c1s1_001051_00.jpg"), r"0001_c1s1_001051_00.jpg( \(.*\))?: cannot be decoded"
    ),
    "an empty file": Case(
        "ltcc", content("query/1_1_c1_000001.png", b""), r"1_1_c1_000001.png( \(.*\))?: an empty file"
    ),
    "a page instead of an image": Case(
        "llcm",
        content("vis/0351/0351_c06_s2_f1_vis.jpg", b"<html>not found</html>"),
        r"0351_c06_s2_f1_vis.jpg( \(.*\))?: not an image",
    ),
    "a picture that claims too much": Case(
        "regdb",
        content(
            "Visible/1/male_front_v_00001_1.bmp",
            b"BM" + bytes(12) + b"\x28" + bytes(3) + b"\x40\x1f\x00\x00" * 2 + b"\x01\x00\x18" + bytes(25),
        ),
        "pixels, more than the limit",
    ),
    "a listed image that is absent": Case(
        "msmt17",
        remove(f"test/{MSMT}"),
        r"list_query.txt line 1.*0000_000_05_0303morning_0015_0.jpg|0000_000_05_0303morning_0015_0.jpg "
        r"\(list_query.txt line 1\)",
    ),
    "an absent image of a caption": Case("cuhk-pedes", remove("imgs/cam_a/d.jpg"), "cam_a/d.jpg"),
    "an absent image of a manifest": Case("manifest", remove("i/c1.jpg"), "i/c1.jpg"),
}
"""Damage of single images: the check goes on, lists all of them and ends with 1; whoever needs the image stops with
2.
"""


def spoilt(case: Case, place: Path) -> list[str]:
    """Write the damaged copy; return the arguments of the check."""
    made = write_orbench(place) / "ORBench" if case.dataset == "orbench" else TREES[case.dataset](place)
    folder = made.parent if case.dataset == "manifest" else made
    root = root_of(case.dataset, made, place)
    case.spoil(folder)
    return [
        "--dataset",
        case.dataset,
        "--root",
        str(root),
        *(text.format(root=place, folder=folder) for text in case.arguments),
    ]


def ended(main: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    return (int(caught.value.code or 0), *capsys.readouterr())


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_damage_that_reading_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    monkeypatch.setattr(sys, "argv", ["check", *spoilt(case, tmp_path)])
    code, out, err = ended(check.main, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert re.search(case.says, err), err
    # One sentence, with the remedy behind it.
    assert len(err) < 700 and "Traceback" not in err


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND)
def test_damage_of_single_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    arguments = spoilt(case, tmp_path)
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    code, out, err = ended(check.main, capsys)
    assert (code, err) == (1, "")
    said = [place for place, line in enumerate(out.splitlines()) if line.startswith("defect: ")]
    assert len(said) == 1 and re.search(case.says, out.splitlines()[said[0] + 1])

    def need_every_image() -> None:
        release = dataset_entry(case.dataset).read(Path(arguments[3]), ReadOptions())
        reader = PillowReader((16, 8))
        for records in release.parts.values():
            for record in records:
                for source in record.sources.values():
                    if source.modality != "text":
                        reader(source)

    code, out, err = ended(need_every_image, capsys)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and re.search(case.says, err)


def test_every_layout_is_among_the_damaged() -> None:
    assert {case.dataset for case in (*REFUSED.values(), *FOUND.values())} >= {*TREES, "orbench"}
