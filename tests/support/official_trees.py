"""One small, whole copy of each data set in its official layout, written by hand: every picture differs from every
other.
"""

import json
from collections.abc import Callable
from pathlib import Path

from trees import plant, write_lines


def market1501(root: Path) -> Path:
    """Persons 2 and 7 in training; 1 and 3 searched, with one junk image and one of nobody."""
    folder = root / "Market-1501-v15.09.15"
    plant(
        folder,
        *(
            f"bounding_box_train/{person:04d}_c{camera}s1_000151_0{camera}.jpg"
            for person in (2, 7)
            for camera in (1, 2)
        ),
    )
    plant(folder, "query/0001_c1s1_001051_00.jpg", "query/0003_c2s1_001051_00.jpg")
    plant(
        folder,
        "bounding_box_test/0001_c3s1_001051_01.jpg",
        "bounding_box_test/0003_c5s1_000051_01.jpg",
        "bounding_box_test/0000_c1s1_000001_01.jpg",
        "bounding_box_test/-1_c1s1_000002_01.jpg",
    )
    return folder


def msmt17(root: Path) -> Path:
    """One person in each of list_train and list_val; persons 0 and 1 searched, numbered anew."""
    folder = root / "MSMT17_V1"
    for part, place, names in (
        ("train", "train", ("0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_001_04_0303noon_0015_0.jpg")),
        ("val", "train", ("0001/0001_000_02_0303morning_0015_0.jpg",)),
        ("query", "test", ("0000/0000_000_05_0303morning_0015_0.jpg", "0001/0001_000_06_0303morning_0015_0.jpg")),
        ("gallery", "test", ("0000/0000_000_07_0303morning_0015_0.jpg", "0001/0001_000_08_0303morning_0015_0.jpg")),
    ):
        plant(folder, *(f"{place}/{name}" for name in names))
        write_lines(folder / f"list_{part}.txt", *(f"{name} {int(name[:4])}" for name in names))
    return folder


def cuhk03(root: Path) -> Path:
    """Labeled boxes in market format."""
    folder = root / "cuhk03-np"
    for place, person in (("bounding_box_train", 5), ("query", 9), ("bounding_box_test", 9)):
        plant(folder / "labeled" / place, f"{person:04d}_c{2 if place == 'bounding_box_test' else 1}_1.png")
    return folder


def prcc(root: Path) -> Path:
    folder = root / "prcc"
    plant(
        folder / "rgb",
        "train/005/A_cropped_rgb001.jpg",
        "train/005/C_cropped_rgb002.jpg",
        "train/009/B_cropped_rgb001.jpg",
        "val/005/A_cropped_rgb003.jpg",
    )
    plant(folder / "rgb" / "test", *(f"{room}/{person:03d}/cropped_rgb001.jpg" for room in "ABC" for person in (1, 2)))
    return folder


def vc_clothes(root: Path) -> Path:
    folder = root / "VC-Clothes"
    plant(folder, "train/0300-01-01-01.jpg", "train/0301-02-01-01.jpg")
    plant(folder, *(f"query/0001-0{camera}-0{clothes}-01.jpg" for camera, clothes in ((1, 1), (2, 1), (3, 1), (4, 2))))
    plant(
        folder, *(f"gallery/0001-0{camera}-0{clothes}-02.jpg" for camera, clothes in ((1, 1), (2, 1), (3, 1), (4, 2)))
    )
    return folder


def ltcc(root: Path) -> Path:
    folder = root / "LTCC_ReID"
    plant(folder, "train/100_1_c1_000001.png", "train/101_2_c12_000001.png")
    plant(folder, "query/1_1_c1_000001.png", "query/2_1_c2_000001.png")
    plant(
        folder, "test/1_1_c2_000002.png", "test/1_2_c3_000003.png", "test/2_1_c4_000002.png", "test/2_2_c5_000002.png"
    )
    for name, persons in (
        ("cloth-change_id_train", ("100",)),
        ("cloth-unchange_id_train", ("101",)),
        ("cloth-change_id_test", ("1", "2")),
        ("cloth-unchange_id_test", ()),
    ):
        write_lines(folder / "info" / f"{name}.txt", *persons)
    return folder


def last(root: Path) -> Path:
    folder = root / "last"
    plant(folder, "train/000001/000001_a_1_0.jpg", "train/000002/000002_b_1_1.jpg")
    for place, persons in (("val", (7000, 7001)), ("test", (8000, 8001))):
        plant(
            folder / place,
            *(f"query/{person:06d}_a_1_x.jpg" for person in persons),
            *(f"gallery/{person:06d}/{person:06d}_b_2_y.jpg" for person in persons),
        )
    return folder


def nkup(root: Path) -> Path:
    folder = root / "NKUP"
    plant(
        folder,
        "bounding_box_train/0005_D0912_C03S01_00151.jpg",
        "bounding_box_train/0006_D0912_C04S01_00151.jpg",
        "query/0001_D0912_C03S01_00151.jpg",
        "bounding_box_test/0001_D0913_C05S02_00001.jpg",
    )
    return folder


def nkup_plus(root: Path) -> Path:
    folder = root / "NKUP2"
    plant(
        folder,
        "bounding_box_train/0005/1/0005_D0912_C03S01_00151.jpg",
        "bounding_box_train/0006/1/0006_D0912_C03S01_00151.jpg",
        "bounding_box_test/query/0001/1/0001_D0912_C03S01_00151.jpg",
    )
    plant(
        folder / "bounding_box_test",
        *(
            f"{place}/0001/{outfit}/0001_D091{outfit}_C0{outfit}S01_00151.jpg"
            for outfit, place in (
                (4, "gallery_sameapp"),
                (5, "gallery_crossapp_moderate"),
                (6, "gallery_crossapp_dramatic"),
            )
        ),
    )
    return folder


def llcm(root: Path) -> Path:
    folder = root / "LLCM"
    for side in ("vis", "nir"):
        names = [
            f"{side}/{person:04d}/{person:04d}_c0{camera}_s2_f1_{side}.jpg" for person, camera in ((351, 6), (20, 2))
        ]
        tested = [
            f"test_{side}/cam{camera}/{person:04d}/{person:04d}_c0{camera}_s1_f1_{side}.jpg"
            for person in (5, 9)
            for camera in (1, 2)
        ]
        plant(folder, *names, *tested)
        write_lines(folder / "idx" / f"train_{side}.txt", *(f"{name} {label}" for label, name in enumerate(names)))
        write_lines(folder / "idx" / f"test_{side}.txt", *(f"{name} 0" for name in tested))
    write_lines(folder / "idx" / "test_id.txt", "5,9")
    return folder


def sysu(root: Path) -> Path:
    folder = root / "SYSU-MM01"
    for person in (7, 11, 20, 1, 2):
        plant(folder, *(f"cam{camera}/{person:04d}/0001.jpg" for camera in range(1, 7)))
    for split, persons in (("train", "7,11"), ("val", "20"), ("test", "1,2")):
        write_lines(folder / "exp" / f"{split}_id.txt", persons)
    return folder


def regdb(root: Path) -> Path:
    folder = root / "RegDB"
    for split, persons in (("train", (4, 9)), ("test", (1, 5))):
        for side, letter in (("Visible", "v"), ("Thermal", "t")):
            names = [
                f"{side}/{person}/male_front_{letter}_0000{place}_{person}.bmp"
                for person in persons
                for place in (1, 2)
            ]
            plant(folder, *names)
            for trial in range(1, 11):
                write_lines(
                    folder / "idx" / f"{split}_{side.lower()}_{trial}.txt",
                    *(f"{name} {label // 2}" for label, name in enumerate(names)),
                )
    return folder


CAPTIONED = (
    ("train", 1, "a.jpg"),
    ("train", 2, "b.jpg"),
    ("val", 11004, "c.jpg"),
    ("test", 12004, "d.jpg"),
    ("test", 12005, "e.jpg"),
)


def _captions(root: Path, folder: str, file: str, key: str, count: int) -> Path:
    plant(root / folder / "imgs", *(f"cam_a/{name}" if folder != "RSTPReid" else name for _, _, name in CAPTIONED))
    content = [
        {
            "split": split,
            "id": person,
            key: f"cam_a/{name}" if folder != "RSTPReid" else name,
            "captions": [f"coat {name}", f"hat {name}"][:count],
        }
        for split, person, name in CAPTIONED
    ]
    (root / folder / file).write_text(json.dumps(content), encoding="utf-8")
    return root / folder


def cuhk_pedes(root: Path) -> Path:
    return _captions(root, "CUHK-PEDES", "reid_raw.json", "file_path", 2)


def icfg_pedes(root: Path) -> Path:
    return _captions(root, "ICFG-PEDES", "ICFG-PEDES.json", "file_path", 1)


def rstpreid(root: Path) -> Path:
    return _captions(root, "RSTPReid", "data_captions.json", "img_path", 2)


def cocas(root: Path) -> Path:
    """Two persons in two outfits; a query of each in the first asks for the second by its template."""
    folder = root / "COCAS+_Real2"
    plant(
        folder,
        "templates/1.jpg",
        "templates/2.jpg",
        *(f"images/{person}_{outfit}.jpg" for person in (1, 2) for outfit in (0, 1)),
    )
    write_lines(
        folder / "query.txt", *(f"images/{person}_0.jpg templates/{person}.jpg {person} 1 1" for person in (1, 2))
    )
    write_lines(folder / "gallery.txt", *(f"images/{person}_1.jpg {person} 1 2" for person in (1, 2)))
    return folder


def omnireid(root: Path) -> Path:
    """The authors' lists of one set by sentence and one by captions."""
    folder = root / "data"
    plant(folder / "market", "train/1.jpg", "train/2.jpg", "query/3.jpg", "gallery/3.jpg")
    write_lines(folder / "market" / "train.txt", "train/1.jpg - 1 0 1", "train/2.jpg - 2 0 1")
    write_lines(folder / "market" / "query.txt", "query/3.jpg - 3 0 1")
    write_lines(folder / "market" / "gallery.txt", "gallery/3.jpg - 3 0 2")
    plant(folder / "cuhk_pedes", "imgs/a.jpg", "imgs/b.jpg", "imgs/c.jpg")
    write_lines(folder / "cuhk_pedes" / "train_t2i_v2.txt", "imgs/a.jpg key1 1 0", "imgs/b.jpg key2 2 0")
    write_lines(folder / "cuhk_pedes" / "query_t2i_v2.txt", "imgs/c.jpg key3 3 0")
    write_lines(folder / "cuhk_pedes" / "gallery_t2i_v2.txt", "imgs/c.jpg key3 3 0")
    (folder / "cuhk_pedes" / "caption_t2i_v2.json").write_text(
        json.dumps({f"key{number}": f"coat {number}" for number in (1, 2, 3)}), encoding="utf-8"
    )
    return folder


def manifest(root: Path) -> Path:
    """own.csv beside its images; returns the file."""
    rows = [
        f"i/{person}{number}.jpg,{person},{number % 2},{split}"
        for person, split in (("a", "train"), ("b", "train"), ("c", "test"), ("d", "test"))
        for number in range(4)
    ]
    plant(root, *(row.split(",")[0] for row in rows))
    write_lines(root / "own.csv", "path,person,camera,split", *rows)
    return root / "own.csv"


def folders(root: Path) -> Path:
    plant(
        root,
        *(
            f"{split}/{person}/{number}.jpg"
            for split, person in (("train", "a"), ("train", "b"), ("test", "c"), ("test", "d"))
            for number in range(2)
        ),
    )
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "market1501": market1501,
    "msmt17": msmt17,
    "cuhk03": cuhk03,
    "prcc": prcc,
    "vc-clothes": vc_clothes,
    "ltcc": ltcc,
    "last": last,
    "nkup": nkup,
    "nkup-plus": nkup_plus,
    "llcm": llcm,
    "sysu": sysu,
    "regdb": regdb,
    "cuhk-pedes": cuhk_pedes,
    "icfg-pedes": icfg_pedes,
    "rstpreid": rstpreid,
    "cocas": cocas,
    "omnireid": omnireid,
    "manifest": manifest,
    "folders": folders,
}
"""Name -> writer; each returns the data set's own folder, or the manifest."""


def root_of(name: str, made: Path, place: Path) -> Path:
    """What is given as data.root: the folder above, or the manifest itself."""
    return made if name == "manifest" else place
