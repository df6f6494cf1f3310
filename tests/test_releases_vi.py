"""Covers: datasets/releases/sysu, datasets/releases/regdb, datasets/releases/llcm, datasets/formats/visible_infrared,
datasets/dataset_entry. SYSU-MM01, RegDB and LLCM: what holds for all three, damaged copies, files of other places.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infrared_trees import OFFICIAL_TREE, PERMUTED, SYSU_SINGLE, cells, llcm_tree, regdb_tree, sysu_tree
from measure import read, split_of
from scipy.io import savemat
from trees import plant, write_lines

from datasets.catalogue import dataset_entry
from datasets.structures import ReadOptions
from utils.errors import UserError


def test_a_person_of_one_modality_is_left_out_and_listed(tmp_path: Path) -> None:
    folder = sysu_tree(tmp_path / "s", *SYSU_SINGLE)
    plant(folder, "cam1/0030/0001.jpg", "cam1/0030/0002.jpg", "cam3/0031/0001.jpg", "cam3/zz 0011/0001.jpg")
    write_lines(folder / "exp" / "train_id.txt", "7,11,30,31,32")
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
        write_lines(folder / "idx" / file, *[line for line in lines if not line.endswith(" 1")])
        release = read(name, folder)
        assert {record.person_id for record in release.parts["train"]} == {0} and list(release.dropped.values()) == [
            count
        ]
        assert any("1 identities without any infrared image left out: 1" in note for note in release.notes)


def _replace_line(file: str, number: int, line: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        lines = (folder / "idx" / file).read_text().splitlines()
        write_lines(folder / "idx" / file, *lines[: number - 1], line, *lines[number:])

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def _save(**content: Any) -> Callable[[Path], None]:
    return lambda folder: savemat(folder / "exp" / "rand_perm_cam.mat", content)


def _in_turn(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for step in steps:
            step(folder)

    return damage


DAMAGED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "sysu lacks a camera": ("sysu", _remove("cam3"), ("SYSU-MM01: cam3 missing", "restore")),
    "sysu lacks exp": ("sysu", _remove("exp"), ("exp missing",)),
    "sysu lacks a list": ("sysu", _remove("exp/val_id.txt"), ("no such file", "val_id.txt", "identities of val")),
    "sysu list holds a word": (
        "sysu",
        lambda folder: write_lines(folder / "exp/test_id.txt", "1,x,3"),
        ("test_id.txt line 1", "'x'"),
    ),
    "sysu list is empty": ("sysu", lambda folder: write_lines(folder / "exp/test_id.txt"), ("test_id.txt", "empty")),
    "sysu person in two lists": (
        "sysu",
        lambda folder: write_lines(folder / "exp/val_id.txt", "20,3"),
        ("identity 3", "val_id", "test_id"),
    ),
    "sysu list of no image": (
        "sysu",
        lambda folder: write_lines(folder / "exp/test_id.txt", "77"),
        ("exp/test_id", "no image"),
    ),
    "sysu file name": ("sysu", lambda folder: plant(folder, "cam1/0001/img1.jpg"), ("cam1/0001", "'img1.jpg'")),
    "sysu without infrared test images": (
        "sysu",
        _in_turn(*(_remove(f"cam{camera}/000{person}") for camera, person in ((3, 1), (3, 2), (3, 3), (6, 1), (6, 3)))),
        ("no query image", "exp/test_id"),
    ),
    "sysu list in a bad .mat": (
        "sysu",
        _in_turn(_remove("exp/test_id.txt"), lambda folder: (folder / "exp/test_id.mat").write_bytes(b"MATLAB 5")),
        ("test_id.mat", "MATLAB file"),
    ),
    "sysu list in a .mat of two": (
        "sysu",
        _in_turn(
            _remove("exp/test_id.txt"),
            lambda folder: savemat(folder / "exp/test_id.mat", {"a": [1], "b": [2]}),
        ),
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
    "regdb person in both halves by thermal images alone": (
        "regdb",
        _replace_line("test_thermal_1.txt", 5, "Thermal/9/male_front_t_00000_9.bmp 2"),
        ("test_thermal_1.txt line 5", "Thermal/9", "train_thermal_1.txt line 2"),
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
        _in_turn(
            lambda folder: write_lines(folder / "idx/train_nir.txt", "nir/0077/0077_c06_s2_f0_nir.jpg 7"),
            lambda folder: plant(folder, "nir/0077/0077_c06_s2_f0_nir.jpg"),
        ),
        ("no identity of train has both",),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    name, damage, expected = DAMAGED[case]
    trees: dict[str, Callable[[Path], Path]] = {"regdb": regdb_tree, "llcm": llcm_tree}
    folder = sysu_tree(tmp_path, *SYSU_SINGLE) if name == "sysu" else trees[name](tmp_path)
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
