"""Covers: datasets/releases/regdb, datasets/releases/llcm, datasets/formats/visible_infrared. RegDB and LLCM: official
layouts written by hand, protocols worked out on paper.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from infrared_trees import llcm_name, llcm_tree, regdb_tree
from measure import gallery_of, list_named, measure, read, shown, split_of
from trees import plant

from configs.vocabulary import Modality
from datasets.benchmark import build_from_release
from datasets.catalogue import dataset_entry


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
