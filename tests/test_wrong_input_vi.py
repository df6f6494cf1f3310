"""Covers: train, test, infer, model/official, model/weights/pickled_modules. Wrong input of the visible-infrared
family: one sentence with culprit and remedy, exit code 2, nothing written. And what is left out.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import official_trees
import pytest
import torch
import torchvision
from PIL import Image
from scripts import ROOT, Place, Run, make_base_run, refused
from tiny_orbench import write_orbench
from torch import nn

from configs.vocabulary import Modality
from model.official import main as convert
from solver.runs import open_checkpoint
from utils.errors import run_script

SMOKE = str(ROOT / "configs" / "vireid" / "smoke.yaml")
SHORT = ["train.epochs=1", "train.max_steps=1", "train.batch_size=4", "train.instances=1", "model.image_size=[16,16]"]
OFFICIAL = "data.protocols=[sysu-all-single-official]"


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on SYSU-MM01 beside every data set that a case needs, made once."""
    folder = tmp_path_factory.mktemp("made")
    data = folder / "data"
    data.mkdir()
    for write in (
        official_trees.sysu,
        official_trees.regdb,
        official_trees.cuhk_pedes,
        official_trees.market1501,
        write_orbench,
    ):
        write(data)
    (data / "RegDB" / "idx" / "train_visible_2.txt").unlink()
    return make_base_run(folder, SMOKE, SHORT)


@dataclass
class SysuPlace(Place):
    """Data, which may be a copy that is broken."""

    @property
    def sysu(self) -> Path:
        return self.root / "SYSU-MM01"


@pytest.fixture
def place(base_run: Path, tmp_path: Path, call_script: Run) -> SysuPlace:
    return SysuPlace(call_script, tmp_path, SMOKE, SHORT, base_run.parent.parent / "data", base_run)


@pytest.fixture
def broken(place: SysuPlace) -> SysuPlace:
    """A place with its own copy of SYSU-MM01."""
    whole, place.root = place.sysu, place.folder / "data"
    shutil.copytree(whole, place.sysu)
    return place


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.sampler=random"], ["train.sampler = 'random'", "modality"]),
        (["train.sampler=identity"], ["train.sampler = 'identity'", "modality"]),
        (["train.instances=3"], ["train.batch_size = 4", "2 x train.instances"]),
        (["train.batch_size=64"], ["train.batch_size = 64", "lower it"]),
        (["model.head_width=0"], ["model.head_width = 0", "modality_id and imitation"]),
        (["model.blocks=[1,1]"], ["model.blocks", "four numbers"]),
        (["model.depth=20"], ["model.depth = 20", "18, 34, 50"]),
        (["model.init=imagenett"], ["model.init = 'imagenett'", "no such file", "imagenet"]),
        ([f"model.init={SMOKE}"], ["model.init", "smoke.yaml", "refused"]),
        (["augment.channel=1.5"], ["augment.channel = 1.5", "between 0 and 1"]),
        (["objective.losses={mm_sdm: 1}"], ["'mm_sdm'", "imitation"]),
        (["objective.losses.triplet=-1"], ["triplet", "at least 0"]),
        (["data.trial=11"], ["data.trial = 11", "1..10"]),
        (["data.dataset=regdb", "data.trial=2"], ["train_visible_2.txt", "trial 2"]),
        (["data.dataset=cuhk-pedes"], ["the queries of cuhk-pedes hold TEXT", "encodes RGB and NIR only"]),
        (["data.dataset=market1501"], ["all 4 training images are visible", "visible-infrared data set"]),
        (["data.dataset=orbench"], ["the queries of orbench", "NIR+TEXT", "another data.dataset"]),
    ],
    ids=lambda value: (
        value[0].split("=")[0] + "=" + value[0].partition("=")[2][:12] if value and "=" in value[0] else ""
    ),
)
def test_options_and_data_sets_of_training(place: SysuPlace, more: list[str], words: list[str]) -> None:
    refused(place, place.train(*more), *words)


def test_initial_weights_of_something_else(place: SysuPlace) -> None:
    file = place.folder / "weights.pth"
    torch.save({"state": torch.ones(2)}, file)
    refused(place, place.train(f"model.init={file}"), "weights.pth", "conv1.weight", "imagenet or random")
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, file)
    refused(place, place.train(f"model.init={file}"), "weights.pth", "model.width = 4")
    torch.save({"conv1.weight": torch.ones(4, 3, 7, 7)}, file)
    refused(place, place.train(f"model.init={file}"), "weights.pth", "missing")
    refused(
        place,
        place.train(f"model.init={place.base_run / 'best.pth'}"),
        "best.pth",
        "train.init_from=DIRECTORY",
    )


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("cam2", ["not a whole SYSU-MM01", "cam2 missing"]),
        ("cam6", ["cam6 missing"]),
        ("exp", ["exp missing"]),
        ("exp/train_id.txt", ["train_id.txt", "the identities of train"]),
        ("exp/val_id.txt", ["val_id.txt"]),
        ("exp/test_id.txt", ["test_id.txt"]),
    ],
)
def test_a_tree_that_lacks_something(broken: SysuPlace, absent: str, words: list[str]) -> None:
    path = broken.sysu / absent
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    refused(broken, broken.train(), str(broken.sysu), "restore", *words)
    if "train" not in absent and "val" not in absent:
        refused(broken, broken.test(), "restore", *words)


def cells(value: Callable[[int], object]) -> np.ndarray:
    """6 x 1 cells of the original file, cell c holding value(c)."""
    found = np.empty((6, 1), dtype=object)
    for camera in range(6):
        found[camera, 0] = value(camera)
    return found


def persons(matrix: np.ndarray, count: int = 2) -> np.ndarray:
    found = np.empty((count, 1), dtype=object)
    for person in range(count):
        found[person, 0] = matrix
    return found


PERMUTATIONS: dict[str, tuple[object, list[str]]] = {
    "four cameras": (cells(lambda _: persons(np.ones((10, 1))))[:4], ["shape (4, 1)", "6 x 1 cells"]),
    "no cells": (np.ones((6, 1)), ["kind float64", "6 x 1 cells"]),
    "too few persons": (cells(lambda _: persons(np.ones((10, 1)), 1)), ["1 identities", "identity 2"]),
    "two draws": (cells(lambda _: persons(np.ones((2, 1)))), ["camera 1, identity 1", "(2, 1)"]),
    "no such image": (cells(lambda _: persons(np.full((10, 1), 7))), ["0007.jpg does not exist"]),
}


@pytest.mark.parametrize("case", PERMUTATIONS)
def test_a_mat_of_another_shape(broken: SysuPlace, case: str) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    content, words = PERMUTATIONS[case]
    savemat(broken.sysu / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": content})
    for outcome in (broken.train(OFFICIAL), broken.test(OFFICIAL)):
        refused(broken, outcome, "rand_perm_cam.mat", *words)


def test_a_mat_that_is_none_or_another(broken: SysuPlace) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    file = broken.sysu / "exp" / "rand_perm_cam.mat"
    refused(broken, broken.test(OFFICIAL), "no such file", "rand_perm_cam.mat", "seeded protocols")
    savemat(file, {"other": np.ones(3)})
    refused(broken, broken.test(OFFICIAL), "holds other, not rand_perm_cam")
    file.write_bytes(file.read_bytes()[:100])
    refused(broken, broken.test(OFFICIAL), "rand_perm_cam.mat", "MATLAB")
    (broken.sysu / "exp" / "test_id.txt").unlink()
    for content in (np.zeros((1, 2)), np.array([["1", "2"]])):
        savemat(broken.sysu / "exp" / "test_id.mat", {"id": content})
        refused(broken, broken.train(), "test_id.mat", "one array of identities")
    savemat(broken.sysu / "exp" / "test_id.mat", {"id": np.array([[1, 2]])})
    assert broken.test().code == 0


def test_an_identity_without_one_modality_is_left_out_and_listed(broken: SysuPlace) -> None:
    for camera in (3, 6):
        shutil.rmtree(broken.sysu / f"cam{camera}" / "0011")
    done = broken.train()
    assert done.code == 0, done.err
    log = (broken.folder / "runs" / "new" / "train.log").read_text()
    assert (
        "train: 1 identities without any infrared image left out: 11" in log
        and "12 training records of 2 identities" in log
    )
    shutil.rmtree(broken.folder / "runs")
    for person in ("0007", "0020"):
        for camera in (1, 2, 4, 5):
            shutil.rmtree(broken.sysu / f"cam{camera}" / person)
    refused(broken, broken.train(), str(broken.sysu), "no identity of train has both visible and infrared images")


@pytest.mark.parametrize(
    ("dataset", "words"), [("orbench", ["CP and SK and TEXT", "NIR+TEXT"]), ("cuhk-pedes", ["TEXT (cuhk-pedes)"])]
)
def test_evaluation_by_what_the_model_does_not_encode(place: SysuPlace, dataset: str, words: list[str]) -> None:
    for more in ([], ["data.on_error=skip"]):
        refused(
            place,
            place.test(f"data.dataset={dataset}", *more),
            dataset,
            "encodes RGB and NIR only",
            "another family",
            *words,
        )


def test_searches(place: SysuPlace) -> None:
    infrared, visible = place.sysu / "cam3" / "0001" / "0001.jpg", place.sysu / "cam1" / "0001" / "0001.jpg"
    for given, word in (
        (["--nir", infrared, "--sk", visible], "not SK"),
        (["--text", "a coat"], "not TEXT"),
        (["--sk", visible], "not SK"),
        (["--cp", visible, "--text", "a coat", "data.on_error=skip"], "not CP, TEXT"),
    ):
        refused(place, place.infer(*given), "query: this model encodes RGB and NIR only", word, "another family")
        refused(place, place.infer(*given, "--gallery", place.sysu / "cam1"), word)
    refused(place, place.infer("--task", "TEXT", "data.dataset=orbench"), "TEXT entry 0", "not TEXT")
    refused(
        place,
        place.infer("--rgb", visible, "data.dataset=market1501"),
        "market1501 has no NIR test images",
        "--gallery FOLDER",
    )
    queries = place.folder / "queries.json"
    queries.write_text(json.dumps([{"nir": str(infrared)}, {"rgb": str(visible)}]))
    refused(place, place.infer("--queries", queries), "--gallery-modality rgb or nir")
    assert place.infer("--queries", queries, "--gallery-modality", "rgb").code == 0
    queries.write_text(json.dumps([{"nir": str(infrared)}, {"nir": str(infrared), "text": "a coat"}]))
    shutil.rmtree(place.folder / "out")
    shutil.rmtree(place.folder / "cache")
    refused(place, place.infer("--queries", queries), "queries.json entry 1", "not TEXT")


def test_an_unreadable_image_stops_training_or_is_skipped(broken: SysuPlace) -> None:
    bad = broken.sysu / "cam3" / "0007" / "0001.jpg"
    Image.new("RGB", (8, 16)).save(bad, "PNG")
    bad.write_bytes(bad.read_bytes()[:40])
    stopped = broken.train("train.max_steps=0", "train.batch_size=6")
    assert stopped.code == 2 and str(bad) in stopped.error
    done = broken.train("train.max_steps=0", "train.batch_size=6", "data.on_error=skip", "--overwrite")
    assert (
        done.code == 0
        and "1 unreadable images skipped so far" in (broken.folder / "runs" / "new" / "train.log").read_text()
    )


class Baseline(nn.Module):
    """IV-REID's network, out of torchvision's: biased convolutions, no ReLU behind the stem, last stride 1."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
        for name, layer in list(self.base.named_modules()):
            if isinstance(layer, nn.Conv2d):
                first = name.startswith("layer4.0.")
                self.base.set_submodule(
                    name,
                    nn.Conv2d(
                        layer.in_channels,
                        layer.out_channels,
                        layer.kernel_size,  # type: ignore[arg-type]
                        1 if first else layer.stride,  # type: ignore[arg-type]
                        layer.padding,  # type: ignore[arg-type]
                    ),
                )
        del self.base.fc
        self.bottleneck, self.share_classifier = nn.BatchNorm1d(512), nn.Linear(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.base.maxpool(self.base.bn1(self.base.conv1(x)))
        for stage in (self.base.layer1, self.base.layer2, self.base.layer3, self.base.layer4):
            hidden = stage(hidden)
        return self.bottleneck(hidden.mean(dim=(2, 3)))


def conversion(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["model.official", "convert-vireid", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_script(convert)
    return int(stopped.value.code or 0)


def test_a_published_module_is_converted_and_evaluated(
    place: SysuPlace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = Baseline()
    for _ in range(2):
        network(torch.randn(4, 3, 64, 32))
    network.eval()
    source, target, x = place.folder / "model.pkl", place.folder / "out" / "ours.pth", torch.randn(2, 3, 64, 32)
    torch.save(network, source)
    for wrong in (source, target.with_suffix(".yaml")):
        assert conversion(monkeypatch, source, wrong) == 2 and "name another file" in capfd.readouterr().err
    assert not target.parent.exists() and conversion(monkeypatch, source, target) == 0
    assert f"--config {target.with_suffix('.yaml')} --checkpoint {target} data.root=DIR" in capfd.readouterr().out
    trained = open_checkpoint(target.with_suffix(".yaml"), target)
    with torch.no_grad():
        torch.testing.assert_close(trained.model.encode(Modality.NIR, x).pooled, network(x))
    done = place.run(
        "test",
        "--config",
        target.with_suffix(".yaml"),
        "--checkpoint",
        target,
        "--device",
        "cpu",
        f"data.root={place.root}",
        "model.image_size=[64,32]",
    )
    assert done.code == 0, done.err
    document = json.loads((place.folder / "out" / "results.json").read_text())
    assert len(document["rows"]) >= 40 and "selected on test" in json.dumps(document)
