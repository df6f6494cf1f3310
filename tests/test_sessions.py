"""Covers: solver/search/session, solver/search/pictures, solver/api, utils/progress. What models of other kinds take,
means in parts of features, and the code of docs/python-api.md, which is run.
"""

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import global_state_kept
from small_run import write_run
from tiny_orbench import write_orbench

import anyreid
import datasets.loading.tokenizers
from configs.load import build_experiment
from configs.vocabulary import Modality, combination_name
from datasets.loading.tokenizers import ClipTokenizer
from datasets.structures import Source
from model.build import build_model, initialise
from solver.commands.opening import Opened
from solver.evaluation.comparison import Comparison
from solver.evaluation.spec import EvaluationSpec
from solver.gallery.arguments import GalleryOptions
from solver.gallery.commands import add
from solver.runs import TrainedModel
from solver.search.queries import Query
from solver.search.ranked import EncodedQueries
from solver.search.session import SearchSession, averaged
from utils.errors import UserError
from utils.progress import progress_bar, watched

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python-api.md"
RGB, TEXT = Modality.RGB, Modality.TEXT
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8))
MODELS: dict[str, dict[str, Any]] = {
    "vireid": {"init": "random", "depth": 18, "blocks": [1, 1, 1, 1], "width": 4, "image_size": [32, 16]},
    "irm": {
        "init": "random",
        "text_init": "random",
        "clothes_init": "random",
        "tokenizer": "clip",
        "vocab_size": 49408,
        "image_size": [32, 16],
        "instruction_size": [32, 32],
        "width": 16,
        "heads": 2,
        "layers": 2,
        "clothes_layers": 1,
        "text_layers": 1,
        "fusion_layers": 1,
        "text_length": 12,
        "text_positions": 12,
        "caption_dim": 5,
        "stem_width": 4,
    },
}


tokenizer = functools.lru_cache(maxsize=1)(ClipTokenizer)


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Read the vocabulary once for all models of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.loading.tokenizers, "ClipTokenizer", tokenizer)
        yield


@pytest.fixture(scope="module", params=MODELS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SearchSession:
    """An opened model of a family, with random weights."""
    family = request.param
    others = {
        "train": {"sampler": {"vireid": "modality", "irm": "tasks"}[family]},
        "data": {"dataset": {"vireid": "sysu", "irm": "omnireid"}[family]},
    }
    config = build_experiment([("test", {"family": family, "model": MODELS[family], **others})], name="small")
    torch.manual_seed(0)
    model = build_model(config.family, config.model, 3)
    initialise(config.family, model, config.model)
    checkpoint = tmp_path_factory.mktemp(family) / "best.pth"
    trained = TrainedModel(config=config, model=model.eval(), checkpoint=checkpoint, fingerprint=family)
    return SearchSession(Opened(trained=trained, device=torch.device("cpu"), spec=EvaluationSpec.of(config, 0)))


def test_families_take_what_they_take(session: SearchSession) -> None:
    family = session.trained.config.family.value
    names = [combination_name(one) for one in session.abilities.combinations]
    assert names == {"vireid": ["RGB", "NIR"], "irm": ["RGB", "NIR", "TEXT"]}[family]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"parts": {"sk": PICTURE}}, "this model encodes RGB and NIR.* only, not SK"),
        ({"parts": {"heat": PICTURE}}, "unknown part of a query 'heat'"),
        ({"parts": {"rgb": PICTURE, "image": PICTURE}}, "rgb and image are the same thing"),
    ]
    if family == "irm":
        refused += [
            ({"parts": {"nir": PICTURE, "text": "a"}}, "has no fusion, so that it takes one of RGB, NIR, TEXT"),
            ({"parts": {"text": "a"}, "instruction": "b"}, "an instruction is told with one image, not with TEXT"),
            ({"parts": {"rgb": [PICTURE] * 3}, "instruction": ["a", "b"]}, "instruction: 2 for 3 queries"),
            ({"parts": {"rgb": PICTURE}, "instruction": "a", "instruction_image": PICTURE}, "a text or a picture"),
        ]
    else:
        refused.append(({"parts": {"rgb": PICTURE}, "instruction": "a"}, "this model follows no instructions"))
    for given, message in refused:
        with pytest.raises(UserError, match=message):
            session.queries(**given)


@pytest.mark.parametrize("session", ["irm"], indirect=True)
def test_instructions_in_memory_are_those_of_files(session: SearchSession, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    model, file = anyreid.Model(session), tmp_path / "a.png"
    turned = PICTURE.transpose(Image.Transpose.ROTATE_180)
    alone = model.embed(rgb=[PICTURE, turned])
    told = model.embed(rgb=[PICTURE, turned], instruction_image=np.asarray(PICTURE))
    assert np.array_equal(told, model.embed(rgb=[file, turned], instruction_image=str(file)))
    assert np.abs(told - alone).max() > 1e-4
    said = model.embed(rgb=[file, turned], instruction=["with a bag", "with a hat"])
    np.testing.assert_allclose(model.embed(rgb=turned, instruction="with a hat"), said[1:], atol=1e-5)
    assert np.abs(said[1] - alone[1]).max() > 1e-6


def test_features_that_are_not_of_length_1_are_searched_as_they_are(session: SearchSession, tmp_path: Path) -> None:
    """By infer's own way: the same session ranks queries of the same pictures."""
    for number in range(5):
        picture = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    model = anyreid.Model(session)
    gallery = anyreid.Gallery(tmp_path, model)
    for key, item in (("nir", PICTURE), ("rgb", PICTURE), ("text", "a red coat")):
        if key in model.modalities:
            queries = session.queries({key: [item]})
            (wanted,) = session.search(session.encode(queries), session.gallery(tmp_path, modality="rgb"), 5)
            (hits,) = gallery.search(model.embed(**{key: [item]}), top_k=5)  # type: ignore[arg-type]
            assert [(hit.path, hit.similarity) for hit in hits] == [
                (image.path, image.similarity) for image in wanted.results
            ]


def encoded(features: list[list[float]], modality: Modality, comparison: Comparison) -> EncodedQueries:
    queries = tuple(
        Query(name=f"q{number}", sources=(Source(modality=modality, value=f"/{number}.png"),), person_id=7)
        for number in range(len(features))
    )
    return EncodedQueries(queries=queries, features=torch.tensor(features), failures=(), comparison=comparison)


def test_means_by_hand() -> None:
    parts = Comparison(compared=lambda combination: slice(0, 2) if combination == (RGB,) else slice(2, 4))
    rows = [[3.0, 4.0, 0.0, 2.0], [0.0, 10.0, 5.0, 0.0]]
    # (0.6, 0.8) and (0, 1): their mean (0.3, 0.9) has the length sqrt(0.9).
    found = averaged(encoded(rows, RGB, parts), [[0, 1], [1]])
    np.testing.assert_allclose(found.features[0, :2].numpy(), np.array([0.3, 0.9]) / np.sqrt(0.9), rtol=1e-6)
    np.testing.assert_allclose(found.features[1, :2].numpy(), [0, 1], rtol=1e-6)
    assert [query.files for query in found.queries] == [["/0.png", "/1.png"], ["/1.png"]]
    assert found.queries[0].person_id == 7 and found.queries[0].combination == (RGB,)
    # (0, 1) and (1, 0) in the columns of texts.
    found = averaged(encoded(rows, TEXT, parts), [[0, 1]])
    np.testing.assert_allclose(found.features[0, 2:].numpy(), [0.5**0.5, 0.5**0.5], rtol=1e-6)
    distances = Comparison(similarity="euclidean")
    found = averaged(encoded(rows, RGB, distances), [[0, 1]])
    assert found.features.tolist() == [[1.5, 7.0, 2.5, 1.0]]
    with pytest.raises(UserError, match="a mean of none"):
        averaged(encoded(rows, RGB, parts), [[]])


def test_a_watcher_is_told_within_its_block_only() -> None:
    told: list[tuple[str, int, int]] = []
    with watched(lambda *one: told.append(one)):
        with progress_bar(None, 3, "work") as bar:
            bar.update(2)
            bar.update(1)
    with progress_bar(None, 3, "work") as bar:
        bar.update(3)
    assert told == [("work", 2, 3), ("work", 3, 3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the page names."""
    folder = tmp_path_factory.mktemp("place")
    data = write_orbench(folder / "data", identities=2, test_identities=3, images=2)
    run = write_run(folder / "runs" / "quickstart", data)
    shutil.copy(run / "best.pth", run / "last.pth")
    (folder / "released").mkdir()
    shutil.copy(run / "best.pth", folder / "released" / "best.pth")
    shutil.copy(run / "config.yaml", folder / "released" / "configs.yaml")
    (folder / "photos").mkdir()
    for number in range(4):
        picture = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"{number}.png")
    for name in ("a.jpg", "b.jpg"):
        PICTURE.save(folder / name)
    rows = [f"photos/{number}.png,p{number % 2}" for number in range(4)]
    (folder / "photos.csv").write_text("\n".join(["path,person", *rows]))
    with global_state_kept():
        index: dict[str, Any] = {"index": str(folder / "photos.index"), "run": str(run), "device": "cpu"}
        assert add(GalleryOptions(command="add", photos=[str(folder / "photos")], **index))[1] == 0
    return folder


def test_the_code_of_the_page_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep_logging: None
) -> None:
    monkeypatch.chdir(place)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```") // 2 >= 9, "all code of the page is Python"
    known: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)
    out = capsys.readouterr().out
    assert "/photos/" in out and "images" in out and "ALL_AVER" in out
    assert known["hits"].nobody is None and len(known["hits"]) == 5 and len(known["one"]) == 1
    assert known["measured"].averages[-1].keys() >= {"task", "R1", "mAP"}
    assert not list(place.rglob("results.json")), "nothing is written that was not asked for"
