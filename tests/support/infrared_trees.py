"""SYSU-MM01, RegDB and LLCM: small trees in their official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from trees import plant, write_lines

SYSU_TRAINED = (
    "cam1/0007/0001.jpg",
    "cam4/0007/0002.jpg",
    "cam3/0007/0001.jpg",
    "cam2/0011/0005.jpg",
    "cam6/0011/0001.jpg",
)
SYSU_VALIDATED = ("cam5/0020/0001.jpg", "cam3/0020/0003.jpg")


def sysu_tree(root: Path, *tested: str) -> Path:
    """SYSU-MM01 with two training persons, one validation person, and the given test images."""
    folder = root / "SYSU-MM01"
    for camera in range(1, 7):
        (folder / f"cam{camera}").mkdir(parents=True)
    plant(folder, *SYSU_TRAINED, *SYSU_VALIDATED, *tested)
    write_lines(folder / "exp" / "train_id.txt", "7,11")
    write_lines(folder / "exp" / "val_id.txt", "20")
    write_lines(folder / "exp" / "test_id.txt", ",".join(sorted({str(int(name.split("/")[1])) for name in tested})))
    return folder


SYSU_SINGLE = (
    "cam1/0001/0001.jpg",
    "cam2/0001/0001.jpg",
    "cam4/0002/0001.jpg",
    "cam2/0003/0001.jpg",
    "cam5/0003/0001.jpg",
    "cam3/0001/0001.jpg",
    "cam6/0001/0001.jpg",
    "cam3/0002/0001.jpg",
    "cam3/0003/0001.jpg",
    "cam6/0003/0001.jpg",
)


OFFICIAL_TREE = (
    "cam1/0001/0001.jpg",
    "cam1/0001/0002.jpg",
    "cam1/0001/0003.jpg",
    "cam2/0001/0001.jpg",
    "cam2/0001/0002.jpg",
    "cam4/0002/0004.jpg",
    "cam4/0002/0009.jpg",
    "cam5/0002/0001.jpg",
    "cam1/0003/0001.jpg",
    "cam1/0003/0002.jpg",
    "cam3/0001/0001.jpg",
    "cam6/0001/0001.jpg",
    "cam3/0002/0001.jpg",
    "cam3/0003/0001.jpg",
    "cam6/0003/0001.jpg",
)
PERMUTED = {(1, 1): [3, 1, 2], (2, 1): [2, 1], (4, 2): [9, 4], (5, 2): [1], (1, 3): [1, 2]}
"""(camera, person) -> first row of the permutations; every further row is shifted by one more."""


def cells(permuted: dict[tuple[int, int], list[int]], persons: int = 3) -> np.ndarray:
    outer = np.empty((6, 1), dtype=object)
    for camera in range(1, 7):
        outer[camera - 1, 0] = np.empty((persons, 1), dtype=object)
        for person in range(1, persons + 1):
            row = permuted.get((camera, person), [])
            outer[camera - 1, 0][person - 1, 0] = np.array(
                [row[shift % max(len(row), 1) :] + row[: shift % max(len(row), 1)] for shift in range(10)],
                dtype=np.uint8,
            ).reshape(10, len(row))
    return outer


def regdb_tree(root: Path, trial: int = 1) -> Path:
    """RegDB with a training half of two persons and a test half of three, both labelled from 0."""
    folder = root / "RegDB"
    for split, persons in (("train", {4: 1, 9: 1}), ("test", {1: 2, 5: 2, 7: 1})):
        for side, letter in (("Visible", "v"), ("Thermal", "t")):
            lines = []
            for label, (person, count) in enumerate(persons.items()):
                # In the test half the thermal images are one, two and two.
                count = {1: 1, 5: 2, 7: 2}[person] if split == "test" and letter == "t" else count
                names = [
                    f"{side}/{person}/{'fe' if person == 5 else ''}male_front_{letter}_0000{place}_{person}.bmp"
                    for place in range(count)
                ]
                plant(folder, *names)
                lines += [f"{name} {label}" for name in names]
            write_lines(folder / "idx" / f"{split}_{side.lower()}_{trial}.txt", *lines)
    return folder


def llcm_name(modality: str, camera: int, person: int, frame: int = 1) -> str:
    return f"test_{modality}/cam{camera}/{person:04d}/{person:04d}_c{camera:02d}_s1_f{frame}_{modality}.jpg"


def llcm_tree(root: Path, *tested: str) -> Path:
    """LLCM with two training persons and the given test images."""
    folder = root / "LLCM"
    tested = tested or tuple(
        llcm_name(modality, camera, person)
        for modality in ("vis", "nir")
        for person, camera in ((5, 1), (5, 2), (9, 1))
    )
    for modality in ("vis", "nir"):
        names = [
            f"{modality}/{person:04d}/{person:04d}_c0{camera}_s2_f{place}_{modality}.jpg"
            for person, camera in ((351, 6), (20, 2))
            for place in range(2)
        ]
        plant(folder, *names)
        write_lines(
            folder / "idx" / f"train_{modality}.txt", *[f"{name} {place // 2}" for place, name in enumerate(names)]
        )
        write_lines(
            folder / "idx" / f"test_{modality}.txt",
            *[f"{name} 0" for name in tested if name.startswith(f"test_{modality}")],
        )
    plant(folder, *tested)
    write_lines(folder / "idx" / "test_id.txt", ",".join(sorted({str(int(name.split("/")[2])) for name in tested})))
    return folder
