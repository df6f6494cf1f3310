"""Covers: utils/errors, solver/runs, configs/load, datasets/formats/manifest_rows, datasets/releases/orbench,
datasets/synthetic/render. What users write in short, and the message where it cannot be meant.
"""

import json
from pathlib import Path

import pytest
from tiny_orbench import write_orbench

from configs.load import load_experiment
from datasets.build import build_benchmark
from datasets.formats.manifest_rows import read_manifest
from datasets.synthetic.render import render
from solver.run_names import find_run
from utils.errors import UserError, with_home
from utils.locks import locked_folder

SMOKE = str(Path(__file__).resolve().parent.parent / "configs" / "reid5o" / "smoke.yaml")


def test_a_run_is_named_by_its_folder_its_name_or_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for name in ("config.yaml", "best.pth"):
        (tmp_path / "runs" / "quickstart" / name).write_text("x")
    assert find_run("quickstart") == find_run("runs/quickstart") == ("runs/quickstart", "")
    assert find_run("runs/quickstart/best.pth") == ("runs/quickstart", "runs/quickstart/best.pth")
    assert find_run("runs/quickstart/best.pth", "last") == ("runs/quickstart", "last")
    monkeypatch.chdir(tmp_path / "runs" / "quickstart")
    assert find_run("best.pth") == (".", "best.pth")
    assert [find_run(name)[0] for name in ("", "other", "a/quickstart", "n" * 300)] == [
        "",
        "other",
        "a/quickstart",
        "n" * 300,
    ]


def test_the_user_s_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/anna")
    paths = [
        "data.root=~/photos",
        "output_dir=~/runs",
        'data.cache_dir="~"',
        "train.init_from=~/runs/a",
        "model.init=hf:~/clip",
    ]
    config = load_experiment(SMOKE, paths)
    assert (config.data.root, config.output_dir, config.data.cache_dir) == (
        "/users/anna/photos",
        "/users/anna/runs",
        "/users/anna",
    )
    assert (config.train.init_from, config.model.init) == ("/users/anna/runs/a", "hf:/users/anna/clip")
    assert load_experiment(SMOKE, ["data.root=a~/b", "name=~x"]).data.root == "a~/b"


@pytest.mark.parametrize(
    "override, words",
    [
        ("epochs=3", "did you mean 'train.epochs'?"),
        ("root=a", "did you mean 'data.root'?"),
        ("lr=1", "did you mean 'optimizer.lr'?"),
        ("train.epoch=3", "did you mean 'epochs'"),
        ("train.root=a", "did you mean 'data.root'?"),
    ],
)
def test_an_option_without_its_section(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(SMOKE, [override])
    assert words in str(caught.value)


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_the_index_of_a_pandas_table(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.csv").write_text(f"{first},path,person\n0,a.jpg,anna\n")
    with pytest.raises(UserError, match=r"line 1: a column without a name.*index=False"):
        read_manifest(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["RGB_GALLERY", "NIR", "CP+SK"])
def test_a_folder_of_two_persons_in_orbench_s_test_lists(tmp_path: Path, name: str) -> None:
    root = write_orbench(tmp_path)
    file = root / "ORBench" / "test_gallery_and_queries.json"
    lists = json.loads(file.read_text())
    lists[name][0][0] += 1000
    file.write_text(json.dumps(lists))
    config = load_experiment(SMOKE, [f"data.root={root}"])
    with pytest.raises(UserError, match=r"test_gallery_and_queries.json .* entry \d+: .* belongs to person"):
        build_benchmark(config.data, select="test", need_train=False, instruction=config.instruction)


def test_two_renderings_into_one_root(tmp_path: Path) -> None:
    size = dict(identities=2, test_identities=2, image_size=(32, 16), images_per_modality=1, processes=1)
    (tmp_path / "Market-1501-v15.09.15").mkdir()
    with locked_folder(tmp_path / "Market-1501-v15.09.15", ""):
        with pytest.raises(UserError, match="being written by another process; wait for it, or choose another --root"):
            render("market1501", tmp_path, **size)  # type: ignore[arg-type]
    assert not any((tmp_path / "Market-1501-v15.09.15").iterdir())
    assert not render("market1501", tmp_path, **size).reused  # type: ignore[arg-type]
    assert render("market1501", tmp_path, **size).reused  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/x", "HOME/x"),
        ("--run=~/runs/a", "--run=HOME/runs/a"),
        ("--text=a = ~/b", "--text=a = ~/b"),
        ("a ~/b", "a ~/b"),
        ("data.root=~/x", "data.root=~/x"),
        ("~", "~"),
        ("--overwrite", "--overwrite"),
    ],
)
def test_the_home_folder_where_the_shell_leaves_it(written: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of a configuration expand it themselves, where the option is a path."""
    monkeypatch.setenv("HOME", "HOME")
    assert with_home(written) == meant


def test_a_user_without_a_home_folder_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert with_home("--run=~/x") == "--run=~/x"


@pytest.mark.parametrize("written", [r"data.root=C:\x00data", r"data.exclude=a\x00"])
def test_a_backslash_is_no_nul(written: str) -> None:
    section, _, value = written.partition("=")
    assert getattr(load_experiment(SMOKE, [written]).data, section.split(".")[1]) == value
