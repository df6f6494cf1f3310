"""Covers: train, test, infer, solver/run_names, solver/search/named, utils/device_words. A script says what it
begins, and refuses what is known to be wrong, before it imports the heavy libraries.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT

QUICKSTART = ROOT / "configs" / "reid5o" / "quickstart.yaml"
HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib"}


def start(*command: str) -> tuple[list[str], list[str], int]:
    """Return (what was imported before the first line that the script says, its lines, exit code)."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    said = [number for number, line in enumerate(lines) if not line.startswith("import time:")]
    imported = [line.rpartition("|")[2].strip() for line in lines[: said[0]]]
    return imported, [lines[number] for number in said], done.returncode


@pytest.fixture
def damaged_run(tmp_path: Path) -> Path:
    """A run whose checkpoint cannot be read, which only torch's side finds out."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(QUICKSTART.read_text(encoding="utf-8"), encoding="utf-8")
    (run / "best.pth").write_bytes(b"no weights")
    return run


@pytest.mark.parametrize("script", ["train.py", "test.py", "infer.py"])
def test_the_first_line_comes_before_torch(script: str, damaged_run: Path, tmp_path: Path) -> None:
    options = {
        "train.py": ["--config", str(QUICKSTART), f"data.root={tmp_path}/none", f"output_dir={tmp_path}", "name=a"],
        "test.py": ["--run", str(damaged_run), "--output", f"{tmp_path}/out"],
        "infer.py": ["--run", str(damaged_run), "--text", "a red coat", "--output", f"{tmp_path}/x.png"],
    }[script]
    source = str(QUICKSTART) if script == "train.py" else f"{damaged_run}/best.pth"
    target = {"train.py": "a", "test.py": "out", "infer.py": "x.png"}[script]
    imported, said, code = start(script, *options)
    assert "argparse" in imported and not HEAVY & set(imported)
    assert said[0].endswith(f" {script}: {source} -> {tmp_path}/{target}")
    assert code == 2 and said[-1].startswith("error: ") and not (tmp_path / target).exists()


@pytest.mark.parametrize("script", ["test.py", "infer.py"])
def test_wrong_runs_and_options_are_refused_without_torch(script: str, damaged_run: Path, tmp_path: Path) -> None:
    asked = ["--text", "a"] if script == "infer.py" else []
    for options, word in (
        (["--run", f"{tmp_path}/none"], "no such run directory"),
        (["--run", str(damaged_run), "--checkpoint", "last"], "no checkpoint last"),
        (["--run", str(damaged_run), "eval.batch_sice=3"], "eval.batch_sice"),
    ):
        imported, said, code = start(script, *options, *asked)
        assert code == 2 and len(said) == 1 and said[0].startswith("error: ") and word in said[0]
        assert not HEAVY & set(imported)


@pytest.mark.parametrize("script", ["train.py", "test.py", "infer.py"])
def test_a_word_that_is_no_device_is_refused_without_torch(script: str, damaged_run: Path, tmp_path: Path) -> None:
    runs = {
        "train.py": [["--config", str(QUICKSTART), f"output_dir={tmp_path}", "name=a"]],
        "test.py": [["--run", str(damaged_run)], ["--run", str(damaged_run), "--trials", "1"]],
        "infer.py": [["--run", str(damaged_run), "--text", "a red coat"]],
    }[script]
    for options in runs:
        imported, said, code = start(script, *options, "--device", "cuda:x")
        assert code == 2 and said == ["error: unknown device 'cuda:x': use auto, cpu, cuda, cuda:N or mps"]
        assert not HEAVY & set(imported)


def test_wrong_query_files_and_galleries_are_refused_without_torch(damaged_run: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('[{"text": "a"}, {"nri": "a.png"}]')
    for options, word in (
        (["--queries", f"{tmp_path}/none.json"], "no such file"),
        (["--queries", f"{tmp_path}/q.json"], "q.json entry 1: unknown key 'nri'"),
        (["--nir", f"{tmp_path}/none.png"], "no such image"),
        (["--text", "a", "--gallery", f"{tmp_path}/none"], "no such gallery folder"),
        (["--text", "a", "--gallery", f"{tmp_path}/none.csv"], "no such gallery folder"),
    ):
        imported, said, code = start("infer.py", "--run", str(damaged_run), *options)
        assert code == 2 and len(said) == 1 and said[0].startswith("error: ") and word in said[0]
        assert not HEAVY & set(imported)


def test_a_place_that_holds_a_run_is_refused_without_torch(damaged_run: Path) -> None:
    options = ["--config", str(QUICKSTART), f"output_dir={damaged_run.parent}", f"name={damaged_run.name}"]
    imported, said, code = start("train.py", *options)
    assert code == 2 and len(said) == 1 and "--overwrite" in said[0] and not HEAVY & set(imported)
