"""PRCC, VC-Clothes, LTCC, LaST, NKUP, NKUP+: small trees in their official layouts, and a hand-worked 5 x 5 case."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from measure import score
from trees import plant


def check(
    name: str,
    root: Path,
    protocol: str,
    queries: Sequence[str],
    gallery: Sequence[str],
    ap: Sequence[float],
    rank1: float,
) -> None:
    """ap: by hand, for the queries that have a match, in order. rank1: number of hits."""
    (result,) = score(name, root, protocol, queries, gallery).values()
    assert [value for value in result.per_query["mAP"] if value == value] == pytest.approx(
        [100 * value for value in ap]
    )
    assert result.mAP == pytest.approx(100 * sum(ap) / len(ap)) and result.R1 == pytest.approx(100 * rank1 / len(ap))


PRCC_A = [
    f"rgb/test/A/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "001/cropped_rgb002",
        "006/cropped_rgb001",
        "006/cropped_rgb002",
        "320/cropped_rgb001",
    )
]
PRCC_B = [
    f"rgb/test/B/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "006/cropped_rgb001",
        "006/cropped_rgb002",
        "006/cropped_rgb003",
        "320/cropped_rgb001",
    )
]
PRCC_C = [
    f"rgb/test/C/{name}.jpg"
    for name in (
        "001/cropped_rgb001",
        "001/cropped_rgb002",
        "006/cropped_rgb001",
        "320/cropped_rgb001",
        "320/cropped_rgb002",
    )
]


def prcc(root: Path) -> Path:
    plant(
        root / "prcc",
        *PRCC_A,
        *PRCC_B,
        *PRCC_C,
        "rgb/train/004/A_cropped_rgb001.jpg",
        "rgb/train/004/B_cropped_rgb001.jpg",
        "rgb/train/004/C_cropped_rgb001.jpg",
        "rgb/train/010/C_cropped_rgb001.jpg",
        "rgb/val/004/B_cropped_rgb009.jpg",
        "sketch/train/004/A.jpg",
    )
    (root / "prcc/rgb/test/A/001/Thumbs.db").write_bytes(b"thumbs")
    return root


VC_QUERY = [
    f"query/{name}.jpg"
    for name in ("0001-02-01-11", "0001-03-01-12", "0001-04-02-13", "0002-02-01-14", "0002-04-02-15")
]
VC_GALLERY = [
    f"gallery/{name}.jpg"
    for name in ("0001-02-01-01", "0001-03-01-02", "0001-04-02-03", "0002-01-01-04", "0002-03-01-05")
]


def vc_clothes(root: Path) -> Path:
    plant(root / "VC-Clothes", *VC_QUERY, *VC_GALLERY, "train/0512-04-03-21.jpg", "train/0300-01-01-01.jpg")
    (root / "VC-Clothes/query/Thumbs.db").write_bytes(b"thumbs")
    return root


LTCC_QUERY = [
    f"query/{name}.png"
    for name in ("3_1_c10_000011", "3_1_c1_000012", "3_2_c2_000013", "7_2_c2_000014", "9_1_c3_000015")
]
LTCC_GALLERY = [
    f"test/{name}.png"
    for name in ("3_1_c10_000001", "3_1_c2_000002", "3_2_c10_000003", "7_1_c12_000004", "9_1_c1_000005")
]


def ltcc(root: Path) -> Path:
    plant(root / "LTCC_ReID", *LTCC_QUERY, *LTCC_GALLERY, "train/140_2_c5_002106.png", "train/151_1_c12_000001.png")
    (root / "LTCC_ReID/query/Thumbs.db").write_bytes(b"thumbs")
    (root / "LTCC_ReID/info").mkdir(exist_ok=True)
    (root / "LTCC_ReID/info/cloth-change_id_test.txt").write_text("3\n7\n")
    return root


LAST_QUERY = [
    f"test/query/{name}.jpg" for name in ("000001_a_10", "000002_a_11", "000002_b_12", "000003_a_13", "000004_a_14")
]
LAST_GALLERY = [
    f"test/gallery/{name}.jpg"
    for name in ("000001/000001_a_1", "000001/000001_a_2", "000002/000002_a_3", "000002/000002_a_4", "x/000003_a_5")
]
LAST_TRAIN = [
    f"train/{name}.jpg"
    for name in (
        "000007/000007_f01_000001_b",
        "000007/000007_f01_000002_a",
        "000007/000007_f02_000003_b",
        "000009/000009_10",
        "000009/000009_9",
    )
]


def last(root: Path) -> Path:
    plant(
        root / "last",
        *LAST_QUERY,
        *LAST_GALLERY,
        *LAST_TRAIN,
        "val/query/000008_a_1.jpg",
        "val/gallery/000008/000008_a_2.jpg",
    )
    (root / "last/test/query/Thumbs.db").write_bytes(b"thumbs")
    return root


NKUP_QUERY = [
    f"query/{name}.jpg"
    for name in (
        "0005_D1012_C03S01_00151",
        "0005_D1012_C04S01_00152",
        "0006_D1012_C02S01_00153",
        "0007_D1012_C01S01_00154",
        "0007_D1012_C15S01_00155",
    )
]
NKUP_GALLERY = [
    f"bounding_box_test/{name}.jpg"
    for name in (
        "0005_D0912_C01S01_00151",
        "0005_D0912_C03S01_00152",
        "0006_D0912_C01S01_00153",
        "0006_D0912_C02S01_00154",
        "0007_D0912_C15S01_00155",
    )
]


def nkup(root: Path) -> Path:
    plant(
        root / "NKUP",
        *NKUP_QUERY,
        *NKUP_GALLERY,
        "bounding_box_train/0100_D0912_C08S02_00001.jpg",
        "bounding_box_test/-1_D0912_C01S01_00009.jpg",
        "query/-1_D0912_C01S01_00009.jpg",
    )
    (root / "NKUP/query/Thumbs.db").write_bytes(b"thumbs")
    return root


def plus(folder: str, *images: tuple[int, str, int]) -> list[str]:
    return [
        f"{folder}/{person:04d}/{appearance}/{person:04d}_D0912_C{camera:02d}S01_{100 + number:05d}.jpg"
        for number, (person, appearance, camera) in enumerate(images)
    ]


PLUS_QUERY = plus("bounding_box_test/query", (1, "1A", 3), (1, "1A", 4), (2, "2A", 5), (2, "2C", 6), (3, "3A", 7))
PLUS_SAME = plus(
    "bounding_box_test/gallery_sameapp", (1, "1A", 3), (1, "1A", 8), (2, "2A", 5), (2, "2C", 9), (3, "3A", 1)
)
PLUS_MODERATE = plus("bounding_box_test/gallery_crossapp_moderate", (1, "1B", 3), (2, "2B", 6), (3, "3B", 1))
PLUS_DRAMATIC = plus("bounding_box_test/gallery_crossapp_dramatic", (1, "1C", 9), (2, "2D", 1))


def nkup_plus(root: Path, folder: str = "NKUP2_0126/NKUP2") -> Path:
    plant(
        root / folder,
        *PLUS_QUERY,
        *PLUS_SAME,
        *PLUS_MODERATE,
        *PLUS_DRAMATIC,
        *plus("bounding_box_train", (9, "9A", 29), (9, "9B", 2)),
    )
    (root / folder / "bounding_box_train/0009/9A/Thumbs.db").write_bytes(b"thumbs")
    return root


BUILDERS = [
    ("prcc", prcc),
    ("vc-clothes", vc_clothes),
    ("ltcc", ltcc),
    ("last", last),
    ("nkup", nkup),
    ("nkup-plus", nkup_plus),
]
