"""Covers: datasets/releases/omnireid. The clothes-changing sets among the paper's thirteen, and their descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import plant, write_lines

from configs.schema.data import DataConfig
from configs.vocabulary import AnnotationKind, Task
from datasets.catalogue import dataset_entry
from datasets.structures import ReadOptions, Release
from utils.errors import UserError

FOLDERS = {"ltcc": "ltcc", "prcc": "prcc", "vc_clothes": "vc_clothes", "last": "last", "nkup": "nkup"}
FOLDERS |= {"nkup_plus": "NKUP+"}


def tree(root: Path, name: str) -> Path:
    """A folder with three pictures of two persons, in lists of both tasks; person 1 has two outfits."""
    folder = root / FOLDERS[name]
    plant(folder, "i/a.jpg", "i/b.jpg", "i/c.jpg", "c/a.jpg")
    (folder / "datalist").mkdir()
    write_lines(
        folder / "datalist/train.txt", "i/a.jpg c/a.jpg 1 0 2", "i/b.jpg c/a.jpg 1 1 3", "i/c.jpg c/a.jpg 2 0 2"
    )
    write_lines(folder / "datalist/train_attr.txt", "i/a.jpg i/a.jpg 1 0 2", "i/b.jpg key 1 1 3")
    captions = {"i/a.jpg": "a red coat", "key": "a blue coat"}
    (folder / f"datalist/runner_{name}_v1_gpt.json").write_text(json.dumps(captions), encoding="utf-8")
    return root


def read(root: Path, *members: str) -> Release:
    return dataset_entry("omnireid").read(root, ReadOptions(data=DataConfig(members=members)))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_clothes_changing_set_and_its_descriptions_are_of_the_same_persons(name: str, tmp_path: Path) -> None:
    assert dataset_entry("omnireid").recognise(tree(tmp_path, name))
    release = read(tmp_path)
    assert set(release.parts) == {f"{name}/train", f"{name}_attr/train", "train"}
    changing, described = release.parts[f"{name}/train"], release.parts[f"{name}_attr/train"]
    assert {record.task for record in changing} == {Task.CC} and {record.task for record in described} == {Task.LI}
    assert [record.annotations[AnnotationKind.DESCRIPTION].value for record in described] == [
        "a red coat",
        "a blue coat",
    ]
    for one, other in zip(changing, described):
        assert (one.person_id, one.clothes_id, one.sources) == (other.person_id, other.clothes_id, other.sources)
    assert len({record.person_id for record in release.parts["train"]}) == 2
    assert set(read(tmp_path, name).parts) == {f"{name}/train", "train"}
    assert set(read(tmp_path, "li").parts) == {f"{name}_attr/train", "train"}


def test_persons_of_several_sets_are_kept_apart(tmp_path: Path) -> None:
    for name in FOLDERS:
        tree(tmp_path, name)
    assert len({record.person_id for record in read(tmp_path).parts["train"]}) == 2 * len(FOLDERS)


def test_lists_of_descriptions_without_a_file_of_them_name_it(tmp_path: Path) -> None:
    (tree(tmp_path, "last") / "last/datalist/runner_last_v1_gpt.json").unlink()
    with pytest.raises(UserError, match=r"the lists of last_attr need captions, and runner_\*_v1_gpt.json is neither"):
        read(tmp_path)
    (tmp_path / "last/runner_x_v1_gpt.json").write_text('{"i/a.jpg": "x"}', encoding="utf-8")
    with pytest.raises(UserError, match="train_attr.txt line 2: no caption 'key' in .*runner_x_v1_gpt.json"):
        read(tmp_path)
