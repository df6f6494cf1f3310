"""Covers: datasets/releases/market1501, datasets/releases/msmt17, datasets/releases/cuhk03,
datasets/releases/cuhk03_mat, datasets/formats/listing, datasets/formats/image_folders. Market-1501, MSMT17 and CUHK03:
files in their official layouts, and one hand-worked 5 x 5 case each.
"""

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from measure import place, read, rows, score
from PIL import Image
from scipy.io import savemat
from scripts import module_exit_code
from trees import plant

from configs.vocabulary import Modality, Task
from datasets.catalogue import dataset_entry
from datasets.releases.cuhk03_mat import extract
from utils.errors import UserError

MARKET_QUERY = [
    "query/0001_c1s1_000001_00.jpg",
    "query/0001_c2s1_000002_00.jpg",
    "query/0002_c2s1_000003_00.jpg",
    "query/0002_c3s1_000004_00.jpg",
    "query/0003_c1s1_000005_00.jpg",
]
MARKET_GALLERY = [
    "bounding_box_test/0000_c1s1_000011_00.jpg",
    "bounding_box_test/0001_c1s2_000012_01.jpg",
    "bounding_box_test/0001_c3s2_000013_01.jpg",
    "bounding_box_test/0002_c1s3_000014_02.jpg",
    "bounding_box_test/0002_c2s3_000015_02.jpg",
]
MARKET_TRAIN = ["bounding_box_train/1500_c6s4_000151_01.jpg", "bounding_box_train/0007_c1s1_000152_01.jpg"]
MARKET = "Market-1501-v15.09.15"


def market(root: Path, folder: str = MARKET) -> Path:
    plant(root / folder, *MARKET_QUERY, *MARKET_GALLERY, *MARKET_TRAIN, "bounding_box_test/-1_c4s1_000021_00.jpg")
    for part in ("query", "bounding_box_test", "bounding_box_train"):
        (root / folder / part / "Thumbs.db").write_bytes(b"thumbs")
    return root


def test_market(tmp_path: Path) -> None:
    release = read("market1501", market(tmp_path))
    assert release.root == tmp_path / MARKET and release.notes == () and release.variant == ""
    assert rows(release, "train") == [("0007_c1s1_000152_01.jpg", 7, 1, -1), ("1500_c6s4_000151_01.jpg", 1500, 6, -1)]
    assert [row[1:3] for row in rows(release, "query")] == [(1, 1), (1, 2), (2, 2), (2, 3), (3, 1)]
    assert [row[1:3] for row in rows(release, "gallery")] == [(0, 1), (1, 1), (1, 3), (2, 1), (2, 2)]
    assert release.dropped == {"junk images, pid -1": 1}
    record = release.parts["query"][0]
    assert (record.dataset, record.task, record.name) == ("market1501", Task.TRAD, MARKET_QUERY[0])
    assert Path(record.sources[Modality.RGB].value).is_file() and record.sources[Modality.RGB].record == record.name


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        (MARKET, MARKET),
        ("market1501", ""),
        ("market1501", "market1501"),
        ("Market-1501/" + MARKET, ""),
        ("Market-1501/" + MARKET, "Market-1501"),
    ],
)
def test_market_folder_names(tmp_path: Path, folder: str, root: str) -> None:
    assert read("market1501", market(tmp_path, folder) / root).root == tmp_path / folder
    assert dataset_entry("market1501").recognise(tmp_path / root)


def test_market_by_hand(tmp_path: Path) -> None:
    # Query 1 (person 1, camera 1): order 1 2 3 4 5, item 2 does not count, match 3 at rank 2: 1/2.
    # Query 2 (1, 2): 5 4 3 2 1, matches at ranks 3 and 4: 5/12. Query 3 (2, 2): 2 3 1 5 4 without 5, match at rank 4:
    # 1/4.
    # Query 4 (2, 3): 5 3 4 1 2, ranks 1 and 3: 5/6. Query 5 has no match.
    (result,) = score("market1501", market(tmp_path), "market1501", MARKET_QUERY, MARKET_GALLERY).values()
    assert result.per_query["mAP"] == pytest.approx([50, 500 / 12, 25, 500 / 6, np.nan], nan_ok=True)
    assert result.mAP == pytest.approx(50) and result.R1 == pytest.approx(25) and result.unmatched == (4,)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("query/0000_c1s1_000151_01.jpg", "distractor"),
        ("bounding_box_train/0000_c1s1_000151_01.jpg", "distractor"),
        ("bounding_box_test/0001_c7s1_000151_01.jpg", "does not have the form"),
        ("query/0001_c1.jpg", "does not have the form"),
        ("query/holiday.jpg", "holiday.jpg"),
        ("bounding_box_test/1502_c1s1_000151_01.jpg", "1502 is outside -1..1501"),
        ("query/x0001_c1s1_000151_01.jpg", "does not have the form"),
        ("bounding_box_train/0001_c1s1_000151_01.jpg.png", "does not have the form"),
    ],
)
def test_market_bad_names(tmp_path: Path, path: str, message: str) -> None:
    plant(market(tmp_path) / MARKET, path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read("market1501", tmp_path)
    assert (
        path.split("/")[0] in str(caught.value)
        and path.split("/")[1] in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_market_extras_are_left_alone(tmp_path: Path) -> None:
    base = market(tmp_path) / MARKET
    plant(base, "images/0000_c1s1_000151_01.jpg", "gt_bbox/0001_c1s1_000151_00.jpg", "query/.hidden.jpg")
    release = read("market1501", tmp_path)
    assert [len(release.parts[part]) for part in ("train", "query", "gallery")] == [2, 5, 5]
    assert len(release.notes) == 1 and "distractors are not used" in release.notes[0]


def test_market_wrong_root(tmp_path: Path) -> None:
    market(tmp_path / "a")
    with pytest.raises(UserError, match=f"one level too high.*set data.root={re.escape(str(tmp_path / 'a'))}$"):
        read("market1501", tmp_path)
    with pytest.raises(UserError, match=f"one level too low.*set data.root={re.escape(str(tmp_path / 'a' / MARKET))}$"):
        read("market1501", tmp_path / "a" / MARKET / "query")
    with pytest.raises(UserError, match="no such data root"):
        read("market1501", tmp_path / "nowhere")
    (tmp_path / "a" / MARKET / "query").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not a whole Market-1501: query missing"):
        read("market1501", tmp_path / "a")
    (tmp_path / "a" / MARKET / "query").mkdir()
    with pytest.raises(UserError, match="no query images"):
        read("market1501", tmp_path / "a")


def test_test_parts_are_enough_for_a_test(tmp_path: Path) -> None:
    plant(tmp_path / MARKET, *MARKET_QUERY, *MARKET_GALLERY)
    assert read("market1501", tmp_path, need_train=False).parts["train"] == ()
    with pytest.raises(UserError, match="bounding_box_train missing"):
        read("market1501", tmp_path)


@pytest.mark.parametrize("options", [{"variant": "v1"}, {"merge_val": False}, {"trial": 2}, {"members": ("prcc",)}])
def test_options_of_other_data_sets_are_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(UserError, match="does not belong to market1501.*remove the option"):
        read("market1501", market(tmp_path), **options)


MSMT_QUERY = [
    ("0000/0000_000_01_0303morning_0015_0.jpg", 0),
    ("0000/0000_001_15_0303noon_0016_1.jpg", 0),
    ("0001/0001_002_02_0113afternoon_0017_0_ex.jpg", 1),
    ("0001/0001_003_03_0114morning_0018_0.jpg", 1),
    ("0002/0002_000_05_0302noon_0019_2.jpg", 2),
]
MSMT_GALLERY = [
    ("0000/0000_004_01_0303morning_1015_0.jpg", 0),
    ("0000/0000_005_02_0303noon_1016_1.jpg", 0),
    ("0001/0001_006_02_0113afternoon_1017_0.jpg", 1),
    ("0001/0001_007_15_0114morning_1018_0.jpg", 1),
    ("0002/0002_008_04_0302noon_1019_2.jpg", 2),
]
# The list's pid counts, not the folder's: train image 2 is person 1040.
MSMT_TRAIN = [("0000/0000_000_07_0303morning_0001_0.jpg", 0), ("0003/0003_000_08_0303noon_0002_0.jpg", 1040)]
MSMT_VAL = [("0000/0000_001_09_0303morning_0003_0.jpg", 0)]
MSMT_FOLDERS = {"v1": ("MSMT17_V1", "train", "test"), "v2": ("MSMT17_V2", "mask_train_v2", "mask_test_v2")}


def msmt(root: Path, variant: str = "v1") -> Path:
    base, train, test = MSMT_FOLDERS[variant]
    for name, folder, lines in (
        ("train", train, MSMT_TRAIN),
        ("val", train, MSMT_VAL),
        ("query", test, MSMT_QUERY),
        ("gallery", test, MSMT_GALLERY),
    ):
        plant(root / base / folder, *(path for path, _ in lines))
        (root / base / f"list_{name}.txt").write_text("".join(f"{path} {person}\n" for path, person in lines))
    return root


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_msmt(tmp_path: Path, variant: str) -> None:
    release = read("msmt17", msmt(tmp_path, variant))
    assert release.variant == variant and release.root.name == MSMT_FOLDERS[variant][0]
    assert [(place(record, release), record.person_id, record.camera_id) for record in release.parts["train"]] == [
        (f"{MSMT_FOLDERS[variant][1]}/{path}", person, camera)
        for (path, person), camera in zip(MSMT_TRAIN + MSMT_VAL, (7, 8, 9))
    ]
    assert [row[1:3] for row in rows(release, "query")] == [(0, 1), (0, 15), (1, 2), (1, 3), (2, 5)]
    assert [row[1:3] for row in rows(release, "gallery")] == [(0, 1), (0, 2), (1, 2), (1, 15), (2, 4)]
    assert release.parts["train"][2].name == "list_val.txt line 1" and "list_train and list_val" in release.notes[-1]
    assert dataset_entry("msmt17").separate_ids and dataset_entry("msmt17").published[variant]["train"].images == 32621


def test_msmt_without_val(tmp_path: Path) -> None:
    (msmt(tmp_path) / "MSMT17_V1/list_val.txt").unlink()
    release = read("msmt17", tmp_path, merge_val=False)
    assert [record.name for record in release.parts["train"]] == ["list_train.txt line 1", "list_train.txt line 2"]
    assert "list_train only" in release.notes[0]
    assert dataset_entry("msmt17").published[release.variant]["train"].images == 30248
    with pytest.raises(UserError, match="list_val.txt missing"):
        read("msmt17", tmp_path)


def test_msmt_variants(tmp_path: Path) -> None:
    msmt(msmt(tmp_path, "v1"), "v2")
    release = read("msmt17", tmp_path)
    assert release.variant == "v1" and "V1 is taken" in release.notes[0]
    release = read("msmt17", tmp_path, variant="v2")
    assert release.variant == "v2" and not any("is taken" in note for note in release.notes)
    with pytest.raises(UserError, match="variant=labeled does not belong to msmt17: its variants are v1, v2"):
        read("msmt17", tmp_path, variant="labeled")


def test_msmt_by_hand(tmp_path: Path) -> None:
    # 1 (0, camera 1): without item 1 the match 2 is first: 1. 2 (0, 15): 5 4 3 2 1, ranks 4, 5: 13/40. 3 (1, 2): 2 3 1
    # 5 4
    # without 3, match 4 at rank 4: 1/4. 4 (1, 3): 5 3 4 1 2, ranks 2, 3: 7/12. 5 (2, 5): 4 1 2 5 3, rank 4: 1/4.
    (result,) = score(
        "msmt17",
        msmt(tmp_path),
        "msmt17",
        [f"test/{path}" for path, _ in MSMT_QUERY],
        [f"test/{path}" for path, _ in MSMT_GALLERY],
    ).values()
    assert result.per_query["mAP"] == pytest.approx([100, 1300 / 40, 25, 700 / 12, 25])
    assert result.mAP == pytest.approx(28900 / 600) and result.R1 == pytest.approx(20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/0000_000_01_0303morning_0015_0.jpg", "1 columns instead of 2"),
        ("0000/a b.jpg 0", "3 columns instead of 2"),
        ("0000/0000_009_01_0303morning_0015_0.jpg x", "pid = 'x' is not a whole number"),
        ("0000/0000_009_01_0303morning_0015_0.jpg 3060", "pid = 3060 is outside 0..3059"),
        ("0000/0000_009_01_0303morning_0015_0.jpg -1", "pid = -1 is outside"),
        ("0000/0000_009_16_0303morning_0015_0.jpg 0", "camera = 16 is outside 1..15"),
        ("0000/0000_c1.jpg 0", "does not have the form"),
        ("../0000_009_01_0303morning_0015_0.jpg 0", "is not a path inside"),
        ("0000/0000_009_01_0303morning_0015_0.jpg 0", "no such image"),
        ("0000/0000_000_01_0303morning_0015_0.jpg 0", "already listed in list_query.txt line 1"),
    ],
)
def test_msmt_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = msmt(tmp_path) / "MSMT17_V1/list_query.txt"
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read("msmt17", tmp_path)
    assert "list_query.txt line 7" in str(caught.value)


def test_msmt_train_ids_have_a_range_of_their_own(tmp_path: Path) -> None:
    path = msmt(tmp_path) / "MSMT17_V1/list_train.txt"
    path.write_text(path.read_text().replace(" 1040", " 1041"))
    with pytest.raises(UserError, match="list_train.txt line 2: pid = 1041 is outside 0..1040"):
        read("msmt17", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: (base / "list_query.txt").unlink(), "not a whole MSMT17 V1: list_query.txt missing"),
        (
            lambda base: [path.unlink() for path in base.glob("list_*")],
            "list_train.txt, list_val.txt, list_query.txt, list_gallery.txt missing",
        ),
        (
            lambda base: (base / "list_gallery.txt").write_text("\n"),
            "list_gallery.txt (list of image and pid) is empty",
        ),
        (
            lambda base: (base / "test/0000/0000_000_01_0303morning_0015_0.jpg").unlink(),
            "list_query.txt line 1: no such image",
        ),
    ],
)
def test_msmt_missing(tmp_path: Path, change, message: str) -> None:
    change(msmt(tmp_path) / "MSMT17_V1")
    with pytest.raises(UserError, match=re.escape(message)):
        read("msmt17", tmp_path)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_msmt_wrong_root(tmp_path: Path, variant: str) -> None:
    msmt(tmp_path / "a", variant)
    base, _, test = MSMT_FOLDERS[variant]
    with pytest.raises(UserError, match="one level too high"):
        read("msmt17", tmp_path)
    with pytest.raises(UserError, match="one level too low"):
        read("msmt17", tmp_path / "a" / base / test)
    with pytest.raises(UserError, match="some levels too low|holds no MSMT17"):
        read("msmt17", tmp_path / "a" / base / test / "0000")


CUHK_QUERY = ["0001_c1_1.png", "0001_c2_1.png", "0002_c1_1.png", "0003_c2_9.png", "0004_c1_1.png"]
CUHK_GALLERY = ["0001_c1_2.png", "0001_c2_2.png", "0002_c2_3.png", "0003_c1_4.png", "0003_c2_5.png"]
CUHK_TRAIN = ["1467_c2_1.png", "0100_c1_1.png"]


def cuhk(root: Path, variant: str = "labeled") -> Path:
    for part, names in (("query", CUHK_QUERY), ("bounding_box_test", CUHK_GALLERY), ("bounding_box_train", CUHK_TRAIN)):
        plant(root / "cuhk03-np" / variant / part, *names)
    return root


def test_cuhk03(tmp_path: Path) -> None:
    release = read("cuhk03", cuhk(tmp_path, "detected"))
    assert release.variant == "detected" and release.notes == ()
    assert [row[:3] for row in rows(release, "train")] == [("0100_c1_1.png", 100, 1), ("1467_c2_1.png", 1467, 2)]
    cuhk(tmp_path, "labeled")
    release = read("cuhk03", tmp_path)
    assert release.variant == "labeled" and "labeled is taken" in release.notes[0]
    assert place(release.parts["query"][0], release) == "labeled/query/0001_c1_1.png"
    release = read("cuhk03", tmp_path / "cuhk03-np", variant="detected")
    assert release.variant == "detected" and release.notes == ()
    published = dataset_entry("cuhk03").published
    assert [published[variant]["gallery"].images for variant in ("labeled", "detected")] == [5328, 5332]


def test_cuhk03_by_hand(tmp_path: Path) -> None:
    # 1 (1, camera 1): without item 1 the match 2 is first: 1. 2 (1, 2): 5 4 3 2 1 without 2, match 1 at rank 4: 1/4.
    # 3 (2, 1): 2 3, rank 2: 1/2. 4 (3, 2): 5 3 4 without 5, match 4 at rank 2: 1/2. 5: no match.
    (result,) = score(
        "cuhk03",
        cuhk(tmp_path),
        "cuhk03",
        [f"labeled/query/{name}" for name in CUHK_QUERY],
        [f"labeled/bounding_box_test/{name}" for name in CUHK_GALLERY],
    ).values()
    assert result.per_query["mAP"] == pytest.approx([100, 25, 50, 50, np.nan], nan_ok=True)
    assert result.mAP == pytest.approx(900 / 16) and result.R1 == pytest.approx(25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0001_c3_1.png", "does not have the form"),
        ("0001_c12_1.png", "does not have the form"),
        ("1468_c1_1.png", "1468 is outside 1..1467"),
        ("0001_c1_1.jpg", "does not have the form"),
    ],
)
def test_cuhk03_bad_names(tmp_path: Path, name: str, message: str) -> None:
    plant(cuhk(tmp_path) / "cuhk03-np/labeled/query", name)
    with pytest.raises(UserError, match=message):
        read("cuhk03", tmp_path)


def test_cuhk03_wrong_root(tmp_path: Path) -> None:
    cuhk(tmp_path / "a")
    with pytest.raises(UserError, match="one level too high"):
        read("cuhk03", tmp_path)
    with pytest.raises(UserError, match="one level too low"):
        read("cuhk03", tmp_path / "a/cuhk03-np/labeled")
    with pytest.raises(UserError, match="detected/bounding_box_train.*missing"):
        read("cuhk03", tmp_path / "a", variant="detected")


FILES = ["1_001_1_01.png", "1_001_1_02.png", "1_001_2_06.png", "3_002_1_05.png", "3_002_2_10.png", "5_001_1_01.png"]


def write_mat(root: Path, variant: str = "labeled", **changes) -> dict[str, np.ndarray]:
    """cuhk-03.mat as MATLAB 7.3 writes it: cells are references, axes are reversed, an empty cell is two numbers.
    Return the pictures.
    """
    rng = np.random.default_rng(5)
    pictures = {name: rng.integers(0, 256, (9, 4, 3), dtype=np.uint8) for name in FILES}
    (root / "cuhk03_release").mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "cuhk03_release/cuhk-03.mat", "a") as file:
        outer = file.create_dataset(variant, (1, 5), dtype=h5py.ref_dtype)
        for pair in range(5):
            cells = file.create_dataset(f"#refs#/{variant}{pair}", (10, 2), dtype=h5py.ref_dtype)
            outer[0, pair] = cells.ref
            for person, image in np.ndindex(2, 10):
                view = 1 if image < 5 else 2
                pixels = pictures.get(f"{pair + 1}_{person + 1:03d}_{view}_{image + 1:02d}.png")
                value = np.zeros(2, np.uint64) if pixels is None else pixels.transpose(2, 1, 0)
                cells[image, person] = file.create_dataset(f"#refs#/{variant}{pair}_{person}_{image}", data=value).ref
    fields: dict[str, Any] = {
        "filelist": FILES,
        "labels": [1, 1, 1, 900, 900, 1467],
        "camId": [1, 1, 2, 1, 2, 1],
        "train_idx": [6],
        "query_idx": [1, 4],
        "gallery_idx": [2, 3, 5],
    } | changes
    document = {
        name: np.array(values, dtype=np.float64).reshape(-1, 1) for name, values in fields.items() if name != "filelist"
    }
    names = np.empty((len(fields["filelist"]), 1), dtype=object)
    names[:, 0] = fields["filelist"]
    savemat(root / f"cuhk03_new_protocol_config_{variant}.mat", document | {"filelist": names})
    return pictures


def test_cuhk03_from_the_originals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = write_mat(tmp_path)
    with pytest.raises(
        UserError,
        match=re.escape(f"python -m datasets.releases.cuhk03 --mat {tmp_path} --output {tmp_path} --variant labeled"),
    ):
        read("cuhk03", tmp_path)
    given = ("--mat", tmp_path, "--output", tmp_path / "out", "--variant", "labeled")
    assert module_exit_code("datasets.releases.cuhk03", *given) == 0
    assert "train 1 images, query 2 images, gallery 3 images" in capfd.readouterr().out
    release = read("cuhk03", tmp_path / "out")
    expected = {
        "train": [(FILES[5], 1467, 1)],
        "query": [(FILES[0], 1, 1), (FILES[3], 900, 1)],
        "gallery": [(FILES[1], 1, 1), (FILES[2], 1, 2), (FILES[4], 900, 2)],
    }
    for part, images in expected.items():
        assert [record.person_id for record in release.parts[part]] == [person for _, person, _ in images]
        assert [record.camera_id for record in release.parts[part]] == [camera for _, _, camera in images]
        for record, (name, _, _) in zip(release.parts[part], images):
            assert np.array_equal(np.asarray(Image.open(record.sources[Modality.RGB].value)), pictures[name])
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))
    assert extract(tmp_path, tmp_path / "out", "labeled").reused
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*")) == before


def test_cuhk03_extraction_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mat(tmp_path)
    save, calls = Image.Image.save, []

    def stop(self: Image.Image, *args, **options) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path, tmp_path, "labeled")
    with pytest.raises(UserError, match="python -m datasets.releases.cuhk03"):
        read("cuhk03", tmp_path)
    assert extract(tmp_path, tmp_path, "labeled").counts == {"train": 1, "query": 2, "gallery": 3}
    assert len(calls) == 3 + 4 and sum(map(len, read("cuhk03", tmp_path).parts.values())) == 6
    assert not list((tmp_path / "cuhk03-np").glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_idx": [1, 7]}, "query_idx 7 is outside 1..6"),
        ({"query_idx": [1, 0]}, "query_idx 0 is outside"),
        ({"gallery_idx": [1, 2]}, "gallery_idx 1 is listed twice"),
        ({"camId": [2, 1, 2, 1, 2, 1]}, "'1_001_1_01.png' with label 1 and camera 2"),
        ({"labels": [1468, 1, 1, 900, 900, 1467]}, "label 1468"),
        ({"labels": [1, 1, 1]}, "have 6, 3 and 6 entries"),
        ({"labels": [1.5, 1, 1, 900, 900, 1467]}, "labels does not hold whole numbers"),
        ({"filelist": ["a.png", *FILES[1:]]}, "'a.png'"),
        ({"filelist": ["1_001_1_03.png", *FILES[1:]]}, "holds no picture"),
        ({"filelist": ["1_009_1_01.png", *FILES[1:]]}, "has no cell for 1_009_1_01.png"),
    ],
)
def test_cuhk03_damaged_configuration(tmp_path: Path, changes: dict, message: str) -> None:
    write_mat(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        extract(tmp_path, tmp_path, "labeled")


def test_cuhk03_damaged_originals(tmp_path: Path) -> None:
    write_mat(tmp_path)
    config, mat = tmp_path / "cuhk03_new_protocol_config_labeled.mat", tmp_path / "cuhk03_release/cuhk-03.mat"
    whole, images = config.read_bytes(), mat.read_bytes()
    savemat(config, {"labels": [1]})
    with pytest.raises(UserError, match="filelist, camId, train_idx, query_idx, gallery_idx missing"):
        extract(tmp_path, tmp_path, "labeled")
    for damaged in (b"", whole[:-40], b"text"):
        config.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read .*config_labeled.mat"):
            extract(tmp_path, tmp_path, "labeled")
    config.write_bytes(whole)
    for damaged in (b"", images[: len(images) // 2], b"text"):
        mat.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read .*cuhk-03.mat"):
            extract(tmp_path, tmp_path, "labeled")
    with h5py.File(mat, "w") as file:
        file["labeled"] = np.zeros((1, 5))
    with pytest.raises(UserError, match="'labeled' is not a cell of 5 pairs"):
        extract(tmp_path, tmp_path, "labeled")
    with pytest.raises(UserError, match="no cuhk03_new_protocol_config_detected.mat"):
        extract(tmp_path, tmp_path, "detected")
    with pytest.raises(UserError, match="holds no cuhk03_release/cuhk-03.mat"):
        extract(tmp_path / "cuhk03_release/none", tmp_path, "labeled")


@pytest.mark.parametrize("above", ["run_c2", "2024-01-02-03", "0009_c5s1", "query"])
@pytest.mark.parametrize(("name", "build"), [("market1501", market), ("msmt17", msmt), ("cuhk03", cuhk)])
def test_parent_folders_mean_nothing(tmp_path: Path, above: str, name: str, build) -> None:
    here, there = read(name, build(tmp_path / "plain")), read(name, build(tmp_path / above))
    for part in here.parts:
        assert rows(here, part) == rows(there, part)


@pytest.mark.parametrize(("name", "build"), [("market1501", market), ("msmt17", msmt), ("cuhk03", cuhk)])
def test_order_of_the_listing_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, build) -> None:
    build(tmp_path)
    expected, listdir = read(name, tmp_path), os.listdir
    monkeypatch.setattr(os, "listdir", lambda *where: sorted(listdir(*where), reverse=True))
    assert read(name, tmp_path).parts == expected.parts


def test_data_sets_with_the_same_folders_are_told_apart(tmp_path: Path) -> None:
    for folder, build in (("a", market), ("b", msmt), ("c", cuhk), ("d", write_mat)):
        build(tmp_path / folder)
    found = {
        name: [folder for folder in ("a", "b", "c", "d", ".") if dataset_entry(name).recognise(tmp_path / folder)]
        for name in ("market1501", "msmt17", "cuhk03", "nkup")
    }
    assert found == {"market1501": ["a"], "msmt17": ["b"], "cuhk03": ["c", "d"], "nkup": []}
    market(tmp_path / "cuhk", "cuhk03-np/labeled")
    with pytest.raises(UserError, match="does not have the form"):
        read("cuhk03", tmp_path / "cuhk")
