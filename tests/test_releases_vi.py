"""SYSU-MM01, RegDB and LLCM: official layouts written by hand, protocols worked out on paper, damaged copies."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from release_cases import gallery_of, list_named, measure, plant, read, shown, split_of, write
from scipy.io import savemat

from configs.vocabulary import Modality, Task
from datasets.benchmark import build_from_release
from datasets.catalogue import dataset_entry
from datasets.structures import ReadOptions
from utils.errors import UserError

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
    write(folder / "exp" / "train_id.txt", ["7,11"])
    write(folder / "exp" / "val_id.txt", ["20"])
    write(folder / "exp" / "test_id.txt", [",".join(sorted({str(int(name.split("/")[1])) for name in tested}))])
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


def test_sysu_is_read_as_listed(tmp_path: Path) -> None:
    folder = sysu_tree(tmp_path, *SYSU_SINGLE)
    (folder / "cam1" / "0001" / "Thumbs.db").write_bytes(b"x")
    plant(folder, "cam1/0400/0001.jpg")
    release = read("sysu", tmp_path)
    assert release.root == folder and not release.notes and not release.dropped
    assert {part: [record.name for record in records] for part, records in release.parts.items()} == {
        "train": [
            "cam1/0007/0001.jpg",
            "cam3/0007/0001.jpg",
            "cam4/0007/0002.jpg",
            "cam2/0011/0005.jpg",
            "cam6/0011/0001.jpg",
        ],
        "val": ["cam3/0020/0003.jpg", "cam5/0020/0001.jpg"],
        "val_query": ["cam3/0020/0003.jpg"],
        "val_gallery": ["cam5/0020/0001.jpg"],
        "query": list(SYSU_SINGLE[5:]),
        "gallery": list(SYSU_SINGLE[:5]),
    }
    for records in release.parts.values():
        for record in records:
            camera = int(record.name[3])
            expected = Modality.NIR if camera in (3, 6) else Modality.RGB
            assert (record.camera_id, record.person_id) == (camera, int(record.name[5:9]))
            assert list(record.sources) == [expected] and record.task is Task.VI and record.dataset == "sysu"
            assert (
                Path(record.sources[expected].value) == folder / record.name
                and record.sources[expected].record == record.name
            )
    assert read("sysu", folder).parts == release.parts


def test_sysu_trains_on_validation_persons_unless_they_validate(tmp_path: Path) -> None:
    sysu_tree(tmp_path, *SYSU_SINGLE)
    entry = dataset_entry("sysu")
    release = read("sysu", tmp_path)
    assert build_from_release(entry, release).num_identities == 3
    kept = build_from_release(entry, release, select_val=True)
    assert kept.num_identities == 2
    assert [len(queries.entries) for queries in kept.splits["val"].query_lists] == [1] and kept.splits[
        "val"
    ].gallery_ids == (20,)
    assert kept.splits["val"].query_lists[0].exclusion_rule == "sysu"
    alone = read("sysu", tmp_path, merge_val=False)
    assert build_from_release(entry, alone).num_identities == 2
    assert build_from_release(entry, alone, select_val=True).splits["val"].gallery_ids == (20,)
    tested = build_from_release(entry, release).splits["test"]
    assert len(tested.query_lists) == 4 * 10 and len({queries.group for queries in tested.query_lists}) == 4


def test_sysu_all_single_by_hand(tmp_path: Path) -> None:
    folder = sysu_tree(tmp_path, *SYSU_SINGLE)
    split = split_of(read("sysu", tmp_path), "sysu-all-single-seeded")
    # Camera 3 does not see camera 2. First identity 2, 2, 2, 2, 1; AP 1/2, (1/3 + 2/5)/2, 1/2, 1/2, 1.
    result = measure(
        split,
        "sysu-all-single-seeded draw 0",
        folder,
        """
                          cam1/0001/0001.jpg cam2/0001/0001.jpg cam4/0002/0001.jpg cam2/0003/0001.jpg cam5/0003/0001.jpg
        cam3/0001/0001.jpg .5 .9 .8 .7 .1
        cam6/0001/0001.jpg .2 .6 .3 .9 .8
        cam3/0002/0001.jpg .3 .9 .4 .8 .5
        cam3/0003/0001.jpg .6 .1 .2 .9 .4
        cam6/0003/0001.jpg .1 .2 .3 .7 .6""",
    )
    assert result.first_rank.tolist() == [2, 2, 2, 2, 1]
    assert result.R1 == pytest.approx(20) and result.mAP == pytest.approx(
        100 * (1 / 2 + 11 / 30 + 1 / 2 + 1 / 2 + 1) / 5
    )
    assert [queries.name for queries in split.query_lists] == [
        f"sysu-all-single-seeded draw {draw}" for draw in range(10)
    ]
    assert {(queries.group, queries.protocol, queries.cmc) for queries in split.query_lists} == {
        ("sysu-all-single-seeded",) * 2 + ("identity",)
    }


def test_sysu_all_multi_by_hand(tmp_path: Path) -> None:
    folder = sysu_tree(
        tmp_path,
        "cam1/0001/0001.jpg",
        "cam1/0001/0002.jpg",
        "cam5/0001/0001.jpg",
        "cam2/0002/0001.jpg",
        "cam2/0002/0002.jpg",
        "cam3/0001/0001.jpg",
        "cam6/0001/0001.jpg",
        "cam3/0002/0001.jpg",
        "cam6/0002/0001.jpg",
        "cam6/0002/0002.jpg",
    )
    split = split_of(read("sysu", tmp_path), "sysu-all-multi-seeded")
    # The third query's only matches are in camera 2: it does not count. AP 1, (1 + 2/4 + 3/5)/3, -, (1/4 + 2/5)/2, 1.
    result = measure(
        split,
        "sysu-all-multi-seeded draw 4",
        folder,
        """
                          cam1/0001/0001.jpg cam1/0001/0002.jpg cam5/0001/0001.jpg cam2/0002/0001.jpg cam2/0002/0002.jpg
        cam3/0001/0001.jpg .3 .2 .1 .9 .8
        cam6/0001/0001.jpg .4 .9 .1 .8 .7
        cam3/0002/0001.jpg .1 .2 .3 .9 .8
        cam6/0002/0001.jpg .9 .8 .7 .6 .5
        cam6/0002/0002.jpg .1 .2 .3 .5 .4""",
    )
    assert result.first_rank.tolist() == [1, 1, 0, 2, 1] and result.unmatched == (2,)
    assert result.R1 == pytest.approx(75) and result.mAP == pytest.approx(100 * (1 + 0.7 + 0.325 + 1) / 4)


def test_sysu_indoor_single_by_hand(tmp_path: Path) -> None:
    folder = sysu_tree(
        tmp_path,
        "cam1/0001/0001.jpg",
        "cam2/0001/0001.jpg",
        "cam1/0002/0001.jpg",
        "cam2/0002/0001.jpg",
        "cam1/0003/0001.jpg",
        "cam4/0003/0001.jpg",
        "cam5/0004/0001.jpg",
        "cam3/0001/0001.jpg",
        "cam6/0001/0001.jpg",
        "cam6/0002/0001.jpg",
        "cam3/0003/0001.jpg",
        "cam6/0004/0001.jpg",
    )
    split = split_of(read("sysu", tmp_path), "sysu-indoor-single-seeded")
    # Person 4 is outdoors only: no match. AP 1/3, (1 + 2/3)/2, (1 + 2/3)/2, 1/2.
    result = measure(
        split,
        "sysu-indoor-single-seeded draw 9",
        folder,
        """
                          cam1/0001/0001.jpg cam2/0001/0001.jpg cam1/0002/0001.jpg cam2/0002/0001.jpg cam1/0003/0001.jpg
        cam3/0001/0001.jpg .2 .95 .9 .8 .5
        cam6/0001/0001.jpg .6 .9 .8 .1 .2
        cam6/0002/0001.jpg .1 .2 .9 .3 .8
        cam3/0003/0001.jpg .7 .9 .1 .8 .6
        cam6/0004/0001.jpg .5 .4 .3 .2 .1""",
    )
    assert result.first_rank.tolist() == [3, 1, 1, 2, 0] and result.absent == (4,)
    assert result.R1 == pytest.approx(50) and result.mAP == pytest.approx(62.5)


def test_sysu_indoor_multi_by_hand(tmp_path: Path) -> None:
    folder = sysu_tree(
        tmp_path,
        "cam1/0001/0001.jpg",
        "cam1/0001/0002.jpg",
        "cam2/0001/0001.jpg",
        "cam1/0002/0001.jpg",
        "cam1/0002/0002.jpg",
        "cam5/0003/0001.jpg",
        "cam3/0001/0001.jpg",
        "cam6/0001/0001.jpg",
        "cam3/0002/0001.jpg",
        "cam6/0002/0001.jpg",
        "cam6/0003/0001.jpg",
    )
    split = split_of(read("sysu", tmp_path), "sysu-indoor-multi-seeded")
    # AP (1/2 + 2/4)/2, (1 + 1 + 3/5)/3, (1/3 + 2/4)/2, 1; the third query finds its person as the second identity,
    # third image.
    result = measure(
        split,
        "sysu-indoor-multi-seeded draw 0",
        folder,
        """
                          cam1/0001/0001.jpg cam1/0001/0002.jpg cam2/0001/0001.jpg cam1/0002/0001.jpg cam1/0002/0002.jpg
        cam3/0001/0001.jpg .2 .8 .99 .9 .7
        cam6/0001/0001.jpg .9 .1 .8 .5 .4
        cam3/0002/0001.jpg .9 .8 .95 .3 .2
        cam6/0002/0001.jpg .1 .2 .3 .8 .7
        cam6/0003/0001.jpg .1 .2 .3 .8 .7""",
    )
    assert result.first_rank.tolist() == [2, 1, 2, 1, 0]
    assert result.R1 == pytest.approx(50) and result.mAP == pytest.approx(100 * (1 / 2 + 13 / 15 + 5 / 12 + 1) / 4)


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


@pytest.mark.parametrize("place", ["exp/rand_perm_cam.mat", "rand_perm_cam.mat"])
def test_sysu_official_single_by_hand(tmp_path: Path, place: str) -> None:
    folder = sysu_tree(tmp_path, *OFFICIAL_TREE)
    savemat(folder / place, {"rand_perm_cam": cells(PERMUTED)})
    split = split_of(read("sysu", tmp_path), "sysu-all-single-official")
    # AP 1/3, (1 + 2/5)/2, (1/2 + 2/3)/2, 1, 1/5; distinct identities before the match: person 2 twice in the first row
    # counts once.
    result = measure(
        split,
        "sysu-all-single-official draw 1",
        folder,
        """
                          cam1/0001/0003.jpg cam2/0001/0002.jpg cam4/0002/0009.jpg cam5/0002/0001.jpg cam1/0003/0001.jpg
        cam3/0001/0001.jpg .4 .95 .8 .7 .1
        cam6/0001/0001.jpg .9 .1 .2 .3 .8
        cam3/0002/0001.jpg .9 .99 .5 .4 .1
        cam3/0003/0001.jpg .2 .9 .3 .4 .5
        cam6/0003/0001.jpg .9 .8 .7 .6 .5""",
    )
    assert result.first_rank.tolist() == [2, 1, 2, 1, 3]
    assert result.R1 == pytest.approx(40) and result.mAP == pytest.approx(100 * (1 / 3 + 0.7 + 7 / 12 + 1 + 0.2) / 5)
    second = list_named(split, "sysu-all-single-official draw 2")
    assert [shown(split.gallery[index], folder) for index in gallery_of(split, second)] == [
        "cam1/0001/0001.jpg",
        "cam2/0001/0001.jpg",
        "cam4/0002/0004.jpg",
        "cam5/0002/0001.jpg",
        "cam1/0003/0002.jpg",
    ]
    assert split.query_lists[-1].name == "sysu-all-single-official draw 10"


def test_sysu_official_indoor_multi_by_hand(tmp_path: Path) -> None:
    tree = [name for name in OFFICIAL_TREE if name not in ("cam2/0001/0001.jpg", "cam1/0001/0002.jpg")]
    folder = sysu_tree(tmp_path, *tree)
    # A permutation shorter than ten is used whole; one with more numbers than ten is cut.
    savemat(folder / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells(PERMUTED | {(1, 1): [3, 1], (2, 1): [2]})})
    split = split_of(read("sysu", tmp_path), "sysu-indoor-multi-official")
    # Camera 3 does not see camera 2; person 2 is outdoors only. AP (1/3 + 2/4)/2, 1, -, (1/2 + 2/4)/2, (1/4 + 2/5)/2.
    result = measure(
        split,
        "sysu-indoor-multi-official draw 7",
        folder,
        """
                          cam1/0001/0001.jpg cam1/0001/0003.jpg cam2/0001/0002.jpg cam1/0003/0001.jpg cam1/0003/0002.jpg
        cam3/0001/0001.jpg .3 .1 .95 .9 .8
        cam6/0001/0001.jpg .9 .8 .7 .2 .1
        cam3/0002/0001.jpg .5 .4 .3 .2 .1
        cam3/0003/0001.jpg .9 .3 .95 .4 .2
        cam6/0003/0001.jpg .9 .8 .7 .6 .5""",
    )
    assert result.first_rank.tolist() == [2, 1, 0, 2, 2]
    assert result.R1 == pytest.approx(25) and result.mAP == pytest.approx(100 * (5 / 12 + 1 + 1 / 2 + 13 / 40) / 4)


def test_a_seeded_draw_is_agws_from_the_files(tmp_path: Path) -> None:
    tested = [
        f"cam{camera}/{person:04d}/{frame:04d}.jpg"
        for person in (2, 10, 13)
        for camera, count in ((1, 14), (2, 3), (4, 12), (5, person))
        for frame in range(1, count + 1)
    ]
    folder = sysu_tree(tmp_path, *tested, "cam3/0002/0001.jpg", "cam6/0013/0001.jpg")
    split = split_of(read("sysu", tmp_path), "sysu-all-single-seeded", "sysu-all-multi-seeded")
    for trial in range(10):
        for shots, size in (("single", 12), ("multi", 10 * 3 + 3 * 3 + 10 * 3 + 2 + 10 + 10)):
            random.seed(trial)
            expected = []
            for person in ("0002", "0010", "0013"):
                for camera in ("cam1", "cam2", "cam4", "cam5"):
                    files = sorted(path.relative_to(folder).as_posix() for path in (folder / camera / person).iterdir())
                    expected += (
                        [random.choice(files)] if shots == "single" else random.sample(files, min(10, len(files)))
                    )
            queries = list_named(split, f"sysu-all-{shots}-seeded draw {trial}")
            drawn = [shown(split.gallery[index], folder) for index in gallery_of(split, queries)]
            assert drawn == expected and len(set(drawn)) == size


def test_sysu_lists_may_be_matlab_files(tmp_path: Path) -> None:
    folder = sysu_tree(tmp_path, *SYSU_SINGLE)
    expected = read("sysu", tmp_path).parts
    (folder / "exp" / "test_id.txt").unlink()
    savemat(folder / "exp" / "test_id.mat", {"id": np.array([[1, 2, 3]], dtype=np.uint16)})
    assert read("sysu", tmp_path).parts == expected
    shutil.rmtree(folder / "cam3" / "0007")
    for name in ("train_id.txt", "val_id.txt"):
        (folder / "exp" / name).unlink()
    assert set(read("sysu", tmp_path, need_train=False).parts) == {"query", "gallery"}


def test_a_person_of_one_modality_is_left_out_and_listed(tmp_path: Path) -> None:
    folder = sysu_tree(tmp_path / "s", *SYSU_SINGLE)
    plant(folder, "cam1/0030/0001.jpg", "cam1/0030/0002.jpg", "cam3/0031/0001.jpg", "cam3/zz 0011/0001.jpg")
    write(folder / "exp" / "train_id.txt", ["7,11,30,31,32"])
    sysu = read("sysu", folder)
    assert {record.person_id for record in sysu.parts["train"]} == {7, 11} and list(sysu.dropped.values()) == [3]
    assert [note for note in sysu.notes if "visible" in note] == [
        "train: 1 identities without any visible image left out: 31"
    ]
    assert [note for note in sysu.notes if "infrared" in note] == [
        "train: 1 identities without any infrared image left out: 30"
    ]
    assert [note.partition(":")[0] for note in sysu.notes if "zz 0011" in note] == ["warning"]
    assert [note for note in sysu.notes if "train_id" in note] == [
        "exp/train_id: 1 listed identities have no image: 32"
    ]
    for name, tree, file, count in (
        ("regdb", regdb_tree, "train_thermal_1.txt", 1),
        ("llcm", llcm_tree, "train_nir.txt", 2),
    ):
        folder = tree(tmp_path / name)
        lines = (folder / "idx" / file).read_text().splitlines()
        write(folder / "idx" / file, [line for line in lines if not line.endswith(" 1")])
        release = read(name, folder)
        assert {record.person_id for record in release.parts["train"]} == {0} and list(release.dropped.values()) == [
            count
        ]
        assert any("1 identities without any infrared image left out: 1" in note for note in release.notes)


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
            write(folder / "idx" / f"{split}_{side.lower()}_{trial}.txt", lines)
    return folder


def test_regdb_is_read_as_listed(tmp_path: Path) -> None:
    folder = regdb_tree(tmp_path, trial=3)
    release = read("regdb", tmp_path, trial=3)
    assert {part: len(records) for part, records in release.parts.items()} == {
        "train": 4,
        "test_visible": 5,
        "test_infrared": 5,
    }
    thermal = release.parts["test_infrared"][1]
    assert (thermal.person_id, thermal.camera_id, list(thermal.sources), thermal.name) == (
        1,
        1,
        [Modality.NIR],
        "idx/test_thermal_3.txt line 2",
    )
    assert thermal.sources[Modality.NIR].value == str(folder / "Thermal/5/female_front_t_00000_5.bmp")
    assert {record.camera_id for record in release.parts["test_visible"]} == {2} and release.variant == "trial 3"
    assert (
        release.trials == {"regdb": 3} and "RegDB trial 3: " in release.notes[0] and dataset_entry("regdb").separate_ids
    )
    benchmark = build_from_release(dataset_entry("regdb"), release)
    assert benchmark.num_identities == 2 and [queries.name for queries in benchmark.splits["test"].query_lists] == [
        "regdb-visible-to-thermal trial 3",
        "regdb-thermal-to-visible trial 3",
    ]
    for path in folder.glob("idx/train_*"):
        path.unlink()
    assert set(read("regdb", tmp_path, trial=3, need_train=False).parts) == {"test_visible", "test_infrared"}


def test_regdb_both_directions_by_hand(tmp_path: Path) -> None:
    folder = regdb_tree(tmp_path)
    split = split_of(read("regdb", tmp_path), "regdb-visible-to-thermal", "regdb-thermal-to-visible")
    visible = [
        "Visible/1/male_front_v_00000_1.bmp",
        "Visible/1/male_front_v_00001_1.bmp",
        "Visible/5/female_front_v_00000_5.bmp",
        "Visible/5/female_front_v_00001_5.bmp",
        "Visible/7/male_front_v_00000_7.bmp",
    ]
    thermal = [
        "Thermal/1/male_front_t_00000_1.bmp",
        "Thermal/5/female_front_t_00000_5.bmp",
        "Thermal/5/female_front_t_00001_5.bmp",
        "Thermal/7/male_front_t_00000_7.bmp",
        "Thermal/7/male_front_t_00001_7.bmp",
    ]
    scores = [
        [".9", ".85", ".15", ".2", ".3"],
        [".4", ".95", ".8", ".1", ".2"],
        [".95", ".8", ".1", ".7", ".2"],
        [".1", ".9", ".75", ".65", ".2"],
        [".5", ".4", ".9", ".8", ".25"],
    ]
    forward = "\n".join([" ".join(thermal), *(" ".join([name, *row]) for name, row in zip(visible, scores))])
    backward = "\n".join([" ".join(visible), *(" ".join([name, *row]) for name, row in zip(thermal, zip(*scores)))])
    # AP 1, 1/3, (1/2 + 2/5)/2, 1, (1/2 + 2/5)/2, and the other way (1/2 + 2/4)/2 twice, (1/3 + 2/5)/2, 1, 1/2.
    result = measure(split, "regdb-visible-to-thermal trial 1", folder, forward)
    assert result.first_rank.tolist() == [1, 3, 2, 1, 2]
    assert result.R1 == pytest.approx(40) and result.mAP == pytest.approx(100 * (1 + 1 / 3 + 0.45 + 1 + 0.45) / 5)
    result = measure(split, "regdb-thermal-to-visible trial 1", folder, backward)
    assert result.first_rank.tolist() == [2, 2, 3, 1, 2]
    assert result.R1 == pytest.approx(20) and result.mAP == pytest.approx(
        100 * (1 / 2 + 1 / 2 + 11 / 30 + 1 + 1 / 2) / 5
    )


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
        write(folder / "idx" / f"train_{modality}.txt", [f"{name} {place // 2}" for place, name in enumerate(names)])
        write(
            folder / "idx" / f"test_{modality}.txt",
            [f"{name} 0" for name in tested if name.startswith(f"test_{modality}")],
        )
    plant(folder, *tested)
    write(folder / "idx" / "test_id.txt", [",".join(sorted({str(int(name.split("/")[2])) for name in tested}))])
    return folder


def test_llcm_is_read_as_listed(tmp_path: Path) -> None:
    folder = llcm_tree(tmp_path)
    plant(folder, llcm_name("vis", 3, 800), "vis/0020/other_name.jpg")
    with (folder / "idx" / "train_vis.txt").open("a") as stream:
        stream.write("vis/0020/other_name.jpg 1\n")
    release = read("llcm", tmp_path)
    assert [(record.name, record.person_id, record.camera_id) for record in release.parts["train"]] == [
        ("idx/train_vis.txt line 1", 0, 6),
        ("idx/train_vis.txt line 2", 0, 6),
        ("idx/train_vis.txt line 3", 1, 2),
        ("idx/train_vis.txt line 4", 1, 2),
        ("idx/train_vis.txt line 5", 1, -1),
        ("idx/train_nir.txt line 1", 0, 6),
        ("idx/train_nir.txt line 2", 0, 6),
        ("idx/train_nir.txt line 3", 1, 2),
        ("idx/train_nir.txt line 4", 1, 2),
    ]
    assert [
        (record.name, record.person_id, record.camera_id, *record.sources) for record in release.parts["test_infrared"]
    ] == [
        (llcm_name("nir", 1, 5), 5, 1, Modality.NIR),
        (llcm_name("nir", 2, 5), 5, 2, Modality.NIR),
        (llcm_name("nir", 1, 9), 9, 1, Modality.NIR),
    ]
    assert release.notes == ("test_vis: 1 identities that idx/test_id.txt does not list left out",)
    for path in (folder / "vis", folder / "nir"):
        shutil.rmtree(path)
    assert set(read("llcm", tmp_path, need_train=False).parts) == {"test_visible", "test_infrared"}


def test_a_person_of_both_llcm_halves_is_noted(tmp_path: Path) -> None:
    llcm_tree(tmp_path, *(llcm_name(modality, 1, person) for modality in ("vis", "nir") for person in (20, 40)))
    assert [
        note for note in read("llcm", tmp_path).notes if "both train and test: " in note and note.endswith(": 0020")
    ]


LLCM_CAMERAS = {"vis": ((5, 1), (5, 2), (9, 1), (9, 3), (9, 7)), "nir": ((5, 1), (5, 2), (5, 4), (9, 1), (9, 7))}


def test_llcm_both_directions_by_hand(tmp_path: Path) -> None:
    names = {
        modality: [llcm_name(modality, camera, person) for person, camera in places]
        for modality, places in LLCM_CAMERAS.items()
    }
    folder = llcm_tree(tmp_path, *names["vis"], *names["nir"])
    split = split_of(read("llcm", tmp_path), "llcm-ir-to-vis", "llcm-vis-to-ir")
    scores = [
        [".9", ".5", ".8", ".7", ".1"],
        [".6", ".9", ".7", ".2", ".1"],
        [".8", ".3", ".4", ".1", ".2"],
        [".1", ".2", ".9", ".8", ".3"],
        [".7", ".4", ".5", ".6", ".9"],
    ]
    forward = "\n".join([" ".join(names["vis"]), *(" ".join([name, *row]) for name, row in zip(names["nir"], scores))])
    backward = "\n".join(
        [" ".join(names["nir"]), *(" ".join([name, *row]) for name, row in zip(names["vis"], zip(*scores)))]
    )
    # The same person in the same camera is dropped. AP 1/3, 1/2, (1 + 2/3)/2, 1, (1/2 + 2/3)/2.
    result = measure(split, "llcm-ir-to-vis draw 0", folder, forward)
    assert result.first_rank.tolist() == [2, 2, 1, 1, 2]
    assert result.R1 == pytest.approx(40) and result.mAP == pytest.approx(65)
    # AP (1 + 2/3)/2 twice, 1/3, (1 + 2/3)/2, 1.
    result = measure(split, "llcm-vis-to-ir draw 9", folder, backward)
    assert result.first_rank.tolist() == [1, 1, 2, 1, 1]
    assert result.R1 == pytest.approx(80) and result.mAP == pytest.approx(100 * (3 * 5 / 6 + 1 / 3 + 1) / 5)


def test_llcm_swapped_by_hand(tmp_path: Path) -> None:
    visible = [
        llcm_name("vis", 1, 5),
        llcm_name("vis", 1, 5, 2),
        llcm_name("vis", 1, 9),
        llcm_name("vis", 3, 9),
        llcm_name("vis", 3, 9, 2),
    ]
    infrared = [llcm_name("nir", camera, person) for person, camera in ((5, 1), (5, 2), (9, 1), (9, 3), (9, 4))]
    folder = llcm_tree(tmp_path, *visible, *infrared)
    split = split_of(read("llcm", tmp_path), "llcm-vis-to-ir-swapped", "llcm-vis-to-ir", "llcm-ir-to-vis")
    rows = [".9 .8 .1 .2 .3", ".7 .2 .9 .8 .1", ".5 .4 .9 .3 .6", ".9 .5 .7 .95 .8", ".1 .2 .9 .8 .7"]
    table = "\n".join([" ".join(visible), *(f"{name} {row}" for name, row in zip(infrared, rows))])
    # The first query's only matches are in its camera. AP -, (1/3 + 2/4)/2, (1 + 2/4)/2, 1/2, 1.
    result = measure(split, "llcm-vis-to-ir-swapped draw 3", folder, table)
    assert result.first_rank.tolist() == [0, 2, 1, 2, 1]
    assert result.R1 == pytest.approx(50) and result.mAP == pytest.approx(100 * (5 / 12 + 3 / 4 + 1 / 2 + 1) / 4)
    # Straight, every visible image is a query, and the gallery has one image per person and camera.
    for name, queries, gallery in (("vis-to-ir", 5, 5), ("ir-to-vis", 5, 3)):
        straight = list_named(split, f"llcm-{name} draw 3")
        assert (len(straight.entries), len(gallery_of(split, straight))) == (queries, gallery)
        assert {entry[0].modality for entry in straight.entries} == {
            Modality.RGB if name == "vis-to-ir" else Modality.NIR
        }


def test_llcm_draws_are_the_authors(tmp_path: Path) -> None:
    tested = [
        llcm_name(modality, camera, person, frame)
        for modality in ("vis", "nir")
        for person in (5, 40, 41)
        for camera in (2, 1, 9)
        for frame in range(1, camera + 5)
    ]
    folder = llcm_tree(tmp_path, *tested)
    split = split_of(read("llcm", tmp_path), "llcm-vis-to-ir", "llcm-vis-to-ir-swapped")
    for trial in range(10):
        random.seed(trial)
        expected = [
            random.choice(
                sorted(
                    path.relative_to(folder).as_posix() for path in (folder / "test_nir" / camera / person).iterdir()
                )
            )
            for person in ("0005", "0040", "0041")
            for camera in ("cam1", "cam2", "cam9")
        ]
        straight, swapped = (list_named(split, f"llcm-vis-to-ir{suffix} draw {trial}") for suffix in ("", "-swapped"))
        assert [shown(split.gallery[index], folder) for index in gallery_of(split, straight)] == expected
        assert [shown(entry[0], folder) for entry in swapped.entries] == expected
        assert len(gallery_of(split, swapped)) == len(straight.entries) == len(tested) // 2


def _replace_line(file: str, number: int, line: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        lines = (folder / "idx" / file).read_text().splitlines()
        write(folder / "idx" / file, [*lines[: number - 1], line, *lines[number:]])

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def _save(**content: object) -> Callable[[Path], None]:
    return lambda folder: savemat(folder / "exp" / "rand_perm_cam.mat", content)


DAMAGED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "sysu lacks a camera": ("sysu", _remove("cam3"), ("SYSU-MM01: cam3 missing", "restore")),
    "sysu lacks exp": ("sysu", _remove("exp"), ("exp missing",)),
    "sysu lacks a list": ("sysu", _remove("exp/val_id.txt"), ("no such file", "val_id.txt", "identities of val")),
    "sysu list holds a word": (
        "sysu",
        lambda folder: write(folder / "exp/test_id.txt", ["1,x,3"]),
        ("test_id.txt line 1", "'x'"),
    ),
    "sysu list is empty": ("sysu", lambda folder: write(folder / "exp/test_id.txt", []), ("test_id.txt", "empty")),
    "sysu person in two lists": (
        "sysu",
        lambda folder: write(folder / "exp/val_id.txt", ["20,3"]),
        ("identity 3", "val_id", "test_id"),
    ),
    "sysu list of no image": (
        "sysu",
        lambda folder: write(folder / "exp/test_id.txt", ["77"]),
        ("exp/test_id", "no image"),
    ),
    "sysu file name": ("sysu", lambda folder: plant(folder, "cam1/0001/img1.jpg"), ("cam1/0001", "'img1.jpg'")),
    "sysu without infrared test images": (
        "sysu",
        lambda folder: [shutil.rmtree(folder / f"cam{c}/000{p}") for c, p in ((3, 1), (3, 2), (3, 3), (6, 1), (6, 3))],
        ("no query image", "exp/test_id"),
    ),
    "sysu list in a bad .mat": (
        "sysu",
        lambda folder: [(folder / "exp/test_id.txt").unlink(), (folder / "exp/test_id.mat").write_bytes(b"MATLAB 5")],
        ("test_id.mat", "MATLAB file"),
    ),
    "sysu list in a .mat of two": (
        "sysu",
        lambda folder: [
            (folder / "exp/test_id.txt").unlink(),
            savemat(folder / "exp/test_id.mat", {"a": [1], "b": [2]}),
        ],
        ("test_id.mat", "one array"),
    ),
    "no folder at all": ("sysu", lambda folder: shutil.rmtree(folder), ("holds no SYSU-MM01", "data.root")),
    "regdb lacks thermal": ("regdb", _remove("Thermal"), ("RegDB: Thermal missing",)),
    "regdb list missing": ("regdb", _remove("idx/test_thermal_1.txt"), ("test_thermal_1.txt", "trial 1")),
    "regdb label out of range": (
        "regdb",
        _replace_line("train_visible_1.txt", 2, "Visible/9/male_front_v_00000_9.bmp 206"),
        ("idx/train_visible_1.txt line 2", "206", "0..205"),
    ),
    "regdb label is no number": (
        "regdb",
        _replace_line("test_visible_1.txt", 1, "Visible/1/male_front_v_00000_1.bmp x"),
        ("test_visible_1.txt line 1", "'x'"),
    ),
    "regdb line without label": (
        "regdb",
        _replace_line("test_visible_1.txt", 1, "Visible/1/male_front_v_00000_1.bmp"),
        ("line 1", "1 fields"),
    ),
    "regdb lists exchanged": (
        "regdb",
        _replace_line("test_thermal_1.txt", 1, "Visible/1/male_front_v_00000_1.bmp 0"),
        ("test_thermal_1.txt line 1", "Thermal/"),
    ),
    "regdb visible file in Thermal": (
        "regdb",
        _replace_line("test_thermal_1.txt", 1, "Thermal/1/male_front_v_00000_1.bmp 0"),
        ("line 1", "its name says otherwise"),
    ),
    "regdb image missing": (
        "regdb",
        _remove("Thermal/7/male_front_t_00001_7.bmp"),
        ("test_thermal_1.txt line 5", "no such image"),
    ),
    "regdb person in both halves": (
        "regdb",
        _replace_line("test_visible_1.txt", 5, "Visible/9/male_front_v_00000_9.bmp 2"),
        ("test_visible_1.txt line 5", "Visible/9", "train_visible_1.txt line 2"),
    ),
    "regdb person with two labels": (
        "regdb",
        _replace_line("test_visible_1.txt", 2, "Visible/1/male_front_v_00001_1.bmp 2"),
        ("test_visible_1.txt line 2", "label 2 here and 0"),
    ),
    "regdb path outside": (
        "regdb",
        _replace_line("test_visible_1.txt", 1, "Visible/../../1/male_front_v_00000_1.bmp 0"),
        ("line 1", "not a path inside"),
    ),
    "llcm lacks test_nir": ("llcm", _remove("test_nir"), ("LLCM: test_nir missing",)),
    "llcm lacks a list": ("llcm", _remove("idx/train_nir.txt"), ("train_nir.txt",)),
    "llcm lacks test_id": ("llcm", _remove("idx/test_id.txt"), ("test_id.txt",)),
    "llcm label out of range": (
        "llcm",
        _replace_line("train_vis.txt", 1, "vis/0351/0351_c06_s2_f0_vis.jpg 713"),
        ("idx/train_vis.txt line 1", "713", "0..712"),
    ),
    "llcm person with two labels": (
        "llcm",
        _replace_line("train_vis.txt", 2, "vis/0351/0351_c06_s2_f1_vis.jpg 1"),
        ("line 2", "vis/0351"),
    ),
    "llcm name against list": (
        "llcm",
        _replace_line("train_vis.txt", 1, "vis/0351/0351_c06_s2_f0_nir.jpg 0"),
        ("train_vis.txt line 1", "says nir"),
    ),
    "llcm name against folder": (
        "llcm",
        lambda folder: plant(folder, "test_vis/cam1/0005/0006_c01_s1_f1_vis.jpg"),
        ("0006_c01_s1_f1_vis.jpg", "person 5"),
    ),
    "llcm foreign folder": (
        "llcm",
        lambda folder: plant(folder, "test_vis/camera/0005/a.jpg"),
        ("test_vis", "'camera'"),
    ),
    "llcm only one modality in train": (
        "llcm",
        lambda folder: (
            write(folder / "idx/train_nir.txt", ["nir/0077/0077_c06_s2_f0_nir.jpg 7"])
            or plant(folder, "nir/0077/0077_c06_s2_f0_nir.jpg")
        ),
        ("no identity of train has both",),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    name, damage, expected = DAMAGED[case]
    folder = (
        sysu_tree(tmp_path, *SYSU_SINGLE)
        if name == "sysu"
        else {"regdb": regdb_tree, "llcm": llcm_tree}[name](tmp_path)
    )
    damage(folder)
    with pytest.raises(UserError) as error:
        read(name, tmp_path)
    assert not [part for part in expected if part not in str(error.value)], str(error.value)
    assert "\n" not in str(error.value)


def _wrong_row(value: object) -> np.ndarray:
    content = cells(PERMUTED)
    content[0, 0][0, 0] = value
    return content


PERMUTATION_DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "absent": (lambda folder: None, ("exp/rand_perm_cam.mat", "seeded")),
    "no MATLAB file": (
        lambda folder: (folder / "exp/rand_perm_cam.mat").write_bytes(b"x" * 300),
        ("rand_perm_cam.mat", "MATLAB file"),
    ),
    "another variable": (_save(perm=cells(PERMUTED)), ("holds perm",)),
    "five cameras": (_save(rand_perm_cam=cells(PERMUTED)[:5]), ("(5, 1)", "6 x 1 cells")),
    "numbers, not cells": (_save(rand_perm_cam=np.ones((6, 1))), ("6 x 1 cells",)),
    "cells of a matrix": (_save(rand_perm_cam=cells(PERMUTED, persons=3).reshape(1, 6)), ("(1, 6)",)),
    "too few persons": (_save(rand_perm_cam=cells(PERMUTED, persons=2)), ("2 identities", "identity 3")),
    "nine trials": (
        _save(rand_perm_cam=_wrong_row(np.ones((9, 3), dtype=np.uint8))),
        ("camera 1, identity 1", "(9, 3)"),
    ),
    "a file that is not there": (
        _save(rand_perm_cam=_wrong_row(np.full((10, 3), 8, dtype=np.uint8))),
        ("cam1/0001", "0008.jpg does not exist"),
    ),
    "an empty permutation": (
        _save(rand_perm_cam=_wrong_row(np.ones((10, 0), dtype=np.uint8))),
        ("cam1/0001", "no permutation"),
    ),
}


@pytest.mark.parametrize("case", PERMUTATION_DAMAGE)
def test_a_wrong_permutation_file_is_named(tmp_path: Path, case: str) -> None:
    damage, expected = PERMUTATION_DAMAGE[case]
    folder = sysu_tree(tmp_path, *OFFICIAL_TREE)
    damage(folder)
    release = read("sysu", tmp_path)
    with pytest.raises(UserError) as error:
        split_of(release, "sysu-all-single-official")
    assert not [part for part in expected if part not in str(error.value)], str(error.value)


def test_options_of_other_data_sets_are_refused(tmp_path: Path) -> None:
    for name in ("sysu", "llcm", "regdb"):
        with pytest.raises(UserError, match="data.variant"):
            read(name, tmp_path, variant="v1")
    for name, trial in (("sysu", 2), ("llcm", 2)):
        with pytest.raises(UserError, match="data.trial"):
            read(name, tmp_path, trial=trial)


def test_the_trees_are_told_apart_by_name(tmp_path: Path) -> None:
    folders = {
        "sysu": sysu_tree(tmp_path / "a", *SYSU_SINGLE),
        "regdb": regdb_tree(tmp_path / "b"),
        "llcm": llcm_tree(tmp_path / "c"),
    }
    for name, folder in folders.items():
        for root in (folder, folder.parent):
            assert [other for other in folders if dataset_entry(other).recognise(root)] == [name]


def test_an_image_that_is_absent_is_no_error_when_files_are_not_checked(tmp_path: Path) -> None:
    folder = regdb_tree(tmp_path)
    (folder / "Thermal/7/male_front_t_00001_7.bmp").unlink()
    assert len(dataset_entry("regdb").read(tmp_path, ReadOptions(check_files=False)).parts["test_infrared"]) == 5
