"""Covers: datasets/releases/sysu, datasets/formats/matlab_files, datasets/formats/visible_infrared. SYSU-MM01: the
official layout written by hand, protocols worked out on paper.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from infrared_trees import OFFICIAL_TREE, PERMUTED, SYSU_SINGLE, cells, sysu_tree
from measure import gallery_of, list_named, measure, read, shown, split_of
from scipy.io import savemat
from trees import plant

from configs.vocabulary import Modality, Task
from datasets.benchmark import build_from_release
from datasets.catalogue import dataset_entry


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
