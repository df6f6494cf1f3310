"""Covers: solver/run_directory, solver/run_names, solver/reports/features_file, solver/reports/merging, utils/files.
Where commands may write; and what a killed start set aside is found by every command that names a run.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from scripts import exit_code

from solver.reports.features_file import check_export, export_path, write_arrays
from solver.reports.merging import _made
from solver.run_directory import check_free, check_no_artefact, claimed
from solver.run_names import find_checkpoint, find_run
from solver.training.checkpoint import take_weights
from utils.errors import UserError
from utils.files import check_folder

CONFIG = "{family: reid5o, data: {}, train: {}}"


@pytest.mark.parametrize("name", ["f", "f.npz", "F.NPZ", "sub/f.npz"])
def test_exported_arrays_lie_in_the_named_file_alone(tmp_path: Path, name: str) -> None:
    path = write_arrays(export_path(str(tmp_path / name)), {"a": np.arange(3)})
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "x.npz").mkdir()
    check_folder(tmp_path / "new" / "deep", "--output")
    for place in ("file", "file/sub", "file/sub/deep"):
        with pytest.raises(UserError, match=f"^--output: {tmp_path / 'file'} is a file, not a folder"):
            check_folder(tmp_path / place, "--output")
    with pytest.raises(UserError, match="x.npz is a folder"):
        check_export(str(tmp_path / "x"))
    with pytest.raises(UserError, match="output_dir: .*file is a file, not a folder"):
        check_free(tmp_path / "file" / "run", overwrite=False)


def test_files_of_a_run_are_no_place_for_a_picture_or_an_export(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    for name in ("results.json", "report.html", "per_query.npz"):
        with pytest.raises(UserError, match=f"--output: {tmp_path / name} is a file of training or testing"):
            check_no_artefact(tmp_path / name, "--output")
    for free in (tmp_path / "retrieval.json", tmp_path / "mine.json", tmp_path / "elsewhere" / "results.json"):
        check_no_artefact(free, "--output")


def killed(directory: Path) -> Path:
    """A run whose replacing start was killed before its first checkpoint."""
    (directory / ".previous").mkdir(parents=True)
    for name, text in {"config.yaml": CONFIG, "best.pth": "old", "results.json": "{}"}.items():
        (directory / ".previous" / name).write_text(text)
    (directory / "config.yaml").write_text(CONFIG)
    return directory


@pytest.mark.parametrize("named", ["", "best.pth"])
def test_a_run_that_a_killed_start_set_aside_is_found(tmp_path: Path, named: str) -> None:
    run = killed(tmp_path / "run")
    directory, checkpoint = find_run(str(run / named) if named else str(run))
    assert find_checkpoint(Path(directory), checkpoint).read_text() == "old"
    assert (run / "results.json").is_file() and not (run / ".previous").exists()


def test_a_start_after_a_killed_one_gives_back_the_run_before_both(tmp_path: Path) -> None:
    run = killed(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), claimed(run, overwrite=True):
        assert not (run / "best.pth").exists()
        raise ZeroDivisionError
    assert (run / "best.pth").read_text() == "old" and not (run / ".previous").exists()


@pytest.mark.parametrize("name", ["config.yaml", "train.log", "metrics.jsonl"])
def test_a_file_of_that_name_alone_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no run" if overwrite else "not empty"):
            check_free(tmp_path, overwrite)


def test_initial_weights_come_from_it_too(tmp_path: Path) -> None:
    """The file is no checkpoint, which is said only once it was found."""
    with pytest.raises(UserError, match="best.pth"):
        take_weights(None, None, str(killed(tmp_path / "run")))  # type: ignore[arg-type]
    assert (tmp_path / "run" / "best.pth").read_text() == "old"


def test_merged_results_say_what_all_runs_were_asked() -> None:
    documents = {
        f"trial {trial}": {"made": {"date": f"day {trial}", "overrides": ["eval.ap=sum", f"data.trial={trial}"]}}
        for trial in (1, 2)
    }
    assert _made(documents) == {"date": "day 1", "overrides": ["eval.ap=sum"]}
    assert _made({"trial 1": {}}) == {}


def test_a_comparison_takes_no_other_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rows": [], "averages": []}))
    both = ("--compare", tmp_path / "a.json", tmp_path / "a.json")
    for more in (["--output", "x"], ["--checkpoint", "best"], ["--export", "f"], ["eval.ap=sum"]):
        assert exit_code("test", *both, *more) == 2
        assert "--compare reads two results; leave out" in capsys.readouterr().err
