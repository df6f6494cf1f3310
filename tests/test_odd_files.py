"""Covers: utils/files, configs/load, datasets/formats/listing, datasets/loading/readers. What lies where a file is
expected: pipes, devices, links to themselves, names that are not UTF-8, names that no file system takes.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_experiment
from datasets.formats.listing import find_folder, read_lines
from datasets.formats.manifest_rows import read_manifest
from datasets.formats.matlab_files import load_matlab
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import open_image
from solver.run_directory import check_free
from solver.runs import open_run
from solver.search.queries import read_queries
from utils.checkpoint_io import load_tensors
from utils.errors import UserError
from utils.files import ordinary, read_json, sha256_of, write_json, write_text
from utils.tables import write_csv

READERS: dict[str, Callable[[Path], object]] = {
    "a.jpg": open_image,
    "a.json": lambda path: read_json(path, "a list"),
    "q.json": read_queries,
    "a.txt": lambda path: list(read_lines(path, "a list")),
    "a.csv": read_manifest,
    "a.mat": load_matlab,
    "a.pth": load_tensors,
    "a.yaml": load_experiment,
}
SMOKE = Path(__file__).resolve().parent.parent / "configs" / "reid5o" / "smoke.yaml"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_pipes_devices_and_loops_are_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(UserError, match=name):
        READERS[name](path)


def test_a_pipe_is_no_picture_of_a_cache_and_no_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(OSError, match="pipe or a device"):
        sha256_of(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="no run"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="no config.yaml"):
        open_run(tmp_path)
    assert ordinary(tmp_path) == tmp_path and build_cache([], (4, 4), tmp_path / "cache", 1).rows == {}


@pytest.mark.parametrize("value", ['"a\\0b"', '["a\\0b"]'])
def test_a_nul_is_refused_where_it_stands(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {value}\n")
    for read in (
        lambda: load_experiment(tmp_path / "a.yaml"),
        lambda: load_experiment(SMOKE, [f"data.root={value}"]),
    ):
        with pytest.raises(UserError, match="NUL"):
            read()


def test_names_that_are_not_utf8_are_written_as_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"Zo\xeb.jpg")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}
    write_text(tmp_path / "a.txt", name)
    write_csv(tmp_path / "a.csv", [{"task": name}])
    assert "\\udceb" in (tmp_path / "a.txt").read_text() and "\\udceb" in (tmp_path / "a.csv").read_text()


@pytest.mark.parametrize("doubled", [True, False])
def test_a_folder_unpacked_into_one_of_its_name_is_found(tmp_path: Path, doubled: bool) -> None:
    inner = tmp_path / "Market" / "Market" if doubled else tmp_path / "Market"
    (inner / "query").mkdir(parents=True)
    if doubled:
        with pytest.raises(UserError, match=rf"set data.root={tmp_path / 'Market'}$"):
            find_folder(tmp_path, ["Market"], ["query"], "Market-1501")
    assert find_folder(inner.parent, ["Market"], ["query"], "Market-1501") == inner
