"""Covers: solver/search/arguments, solver/search/thresholds, solver/search/queries, solver/search/gallery,
solver/reports/search_files, solver/reports/features_file. Searches of a family that follows instructions: what the
model is told with queries and gallery, several entries of a list, right and wrong at a threshold, and what is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instructed_family import RGB, TEXT, ToldConfig, ToldModel, experiment, feature, register, write_data
from PIL import Image
from scripts import exit_code

from datasets.structures import EvalSplit, QueryList, Source
from solver.commands.evaluate import run_test
from solver.commands.search import run_search
from solver.commands.train import run_training
from solver.runs import open_run
from solver.search.arguments import SearchOptions
from solver.search.queries import Query, find_lists, instructed
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("keep_logging")
GREEN, YELLOW, RED = (26, 140, 70), (226, 172, 0), (200, 48, 40)
COLOURS = {(True, False): GREEN, (False, True): YELLOW, (False, False): RED}
"""By (match, below the threshold)."""


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        yield register(patch).value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def run(family: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    run_training(experiment(family, data, output), device="cpu", overwrite=False)
    return output / "told"


@pytest.fixture(scope="module")
def trained(run: Path) -> ToldModel:
    model = open_run(run).model
    assert isinstance(model, ToldModel)
    return model


@pytest.fixture
def photos(data: Path) -> Path:
    return data / "real2" / "g"


@pytest.fixture
def asked(data: Path) -> str:
    return str(data / "real2" / "q" / "11_1.png")


def call(run: Path, output: Path, **options: Any) -> dict[str, Any]:
    run_search(SearchOptions(run=str(run), output=str(output), device="cpu", **{"top_k": 99, **options}))
    return json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))


def image(path: str | Path, crop: str = "") -> Source:
    return Source(modality=RGB, value=str(path), crop=crop)


def by_hand(model: ToldModel, query: torch.Tensor, gallery: dict[str, Source | None]) -> list[tuple[str, float]]:
    """Files with their cosines, best first. gallery: what each file is told."""
    with torch.no_grad():
        cosines = {
            path: float(torch.cosine_similarity(query, feature(model, image(path), told), dim=0))
            for path, told in gallery.items()
        }
    return sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))


def found(document: dict[str, Any], number: int = 0) -> list[tuple[str, Any]]:
    return [
        (result["path"], pytest.approx(result["similarity"], abs=1e-5))
        for result in document["queries"][number]["results"]
    ]


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("gallery_told", ["", "none", "same", "crop"])
def test_query_and_gallery_are_told_what_the_command_says(
    run: Path, trained: ToldModel, photos: Path, asked: str, tmp_path: Path, kind: str, gallery_told: str
) -> None:
    coat = str(photos.parent / "c" / "0.png")
    told = Source(modality=TEXT, value="a person in red") if kind == "text" else image(coat)
    given = {"instruction": told.value} if kind == "text" else {"instruction_image": coat}
    where = {"gallery": str(photos), "gallery_cache": str(tmp_path / "cache"), "gallery_instruction": gallery_told}
    document = call(run, tmp_path / "out.png", parts={"rgb": asked}, **given, **where)
    with torch.no_grad():
        query = feature(trained, image(asked), told)
    spoken = {"same": lambda path: told, "crop": lambda path: image(path, "box")}.get(gallery_told, lambda path: None)
    assert found(document) == by_hand(trained, query, {str(path): spoken(str(path)) for path in photos.iterdir()})
    assert document["gallery"]["instruction"] == (gallery_told or "none")
    assert document["queries"][0]["query"]["instruction"] == {told.modality.value: told.value}
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<b>INSTRUCTION</b>" in page and (kind == "picture" or told.value in page)


def test_each_way_to_tell_a_gallery_is_kept_by_itself(run: Path, photos: Path, asked: str, tmp_path: Path) -> None:
    same = {"parts": {"rgb": asked}, "gallery": str(photos), "gallery_cache": str(tmp_path / "cache")}
    ways = [
        {"gallery_instruction": "none", "instruction": "in red"},
        {"gallery_instruction": "same", "instruction": "in red"},
        {"gallery_instruction": "same", "instruction": "in blue"},
        {"gallery_instruction": "crop"},
    ]
    reused = [call(run, tmp_path / "out.png", **same, **way)["gallery"]["reused"] for way in ways * 2]
    assert reused == [False] * 4 + [True] * 4
    assert call(run, tmp_path / "out.png", **same, instruction="in blue")["gallery"]["reused"], "none is the default"
    assert len(list((tmp_path / "cache").glob("*.index"))) == 4


def test_a_file_of_queries_says_what_each_is_told(
    run: Path, trained: ToldModel, photos: Path, asked: str, tmp_path: Path
) -> None:
    entries = [{"rgb": asked, "instruction": "in red"}, {"rgb": asked}, {"rgb": asked, "instruction_image": "coat.png"}]
    (tmp_path / "coat.png").write_bytes((photos.parent / "c" / "1.png").read_bytes())
    (tmp_path / "q.json").write_text(json.dumps(entries))
    where = {"gallery": str(photos), "gallery_cache": str(tmp_path / "cache"), "queries": str(tmp_path / "q.json")}
    coat = image(tmp_path / "coat.png")
    red, blue = (Source(modality=TEXT, value=text) for text in ("in red", "in blue"))
    for options, told in (({}, [red, None, coat]), ({"instruction": "in blue"}, [red, blue, coat])):
        document = call(run, tmp_path / "out.png", **where, **options, export=str(tmp_path / "f.npz"))
        for number, instruction in enumerate(told):
            with torch.no_grad():
                query = feature(trained, image(asked), instruction)
            assert found(document, number) == by_hand(trained, query, dict.fromkeys(map(str, photos.iterdir())))
        arrays = np.load(tmp_path / "f.npz")
        texts = [json.loads(text) if text else None for text in arrays["query_instructions"].tolist()]
        assert texts == [None if one is None else {one.modality.value: one.value} for one in told]
        assert not any(arrays["gallery_instructions"].tolist())


def lists_of(run: Path, folder: Path, **options: Any) -> dict[str, Any]:
    overrides = [f"{name}={value}" for name, value in options.items()]
    run_test(
        run=str(run), config="", checkpoint="", output=str(folder), device="cpu", overrides=overrides, export="e.npz"
    )
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_entries_of_a_list_are_searched_as_they_are_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = lists_of(run, tmp_path / "table", **{"eval.thresholds": "[0.5]"})
    arrays = np.load(tmp_path / "e.npz")
    seen = set()
    for row in (row for row in document["rows"] if "real2" in row["task"] and "task-free" not in row["task"]):
        name, place = row["task"], {"gallery_cache": str(tmp_path / "cache"), "index": (0, 1, 2)}
        given = [json.loads(text) for text in arrays[f"{name}/instructions"].tolist()]
        for column, tau in (("mAP", None), ("mAP@0.5", 0.5)):
            shown = call(run, tmp_path / "out.png", tasks=(name,), threshold=tau, **place)
            assert shown.get("threshold") == (None if tau is None else {"tau": tau, "encoder": "tfidf"})
            precision, verdicts = [], set()
            for entry, query in enumerate(shown["queries"]):
                assert query["query"]["name"] == f"{name} entry {entry}"
                assert query["query"]["instruction"] == given[entry]
                hits = [result["rank"] for result in query["results"] if result["match"]]
                precision.append(100 * np.mean([(n + 1) / rank for n, rank in enumerate(hits)]) if hits else 0.0)
                verdicts |= {(result["match"], result.get("below_threshold", False)) for result in query["results"]}
                assert query["matches_in_gallery"] == len(hits)
            assert np.mean(precision) == pytest.approx(row[column], abs=1e-3), (name, column)
            assert coloured(tmp_path / "out") == {COLOURS[verdict] for verdict in verdicts}
            seen |= verdicts
    assert seen == set(COLOURS)


def coloured(place: Path) -> set[tuple[int, int, int]]:
    """Colours of verdicts in a picture, which are those of its page."""
    pixels = np.asarray(Image.open(place.with_suffix(".png")).convert("RGB")).reshape(-1, 3)
    found = {colour for colour in COLOURS.values() if (pixels == colour).all(axis=1).sum() > 800}
    page = place.with_suffix(".html").read_text(encoding="utf-8")
    classes = {GREEN: "match", YELLOW: "below", RED: "other"}
    assert found == {colour for colour, name in classes.items() if f'<figure class="{name}"' in page}
    return found


def test_a_list_tells_its_gallery_what_it_says_and_the_command_may_change_it(
    run: Path, trained: ToldModel, data: Path, tmp_path: Path
) -> None:
    place: dict[str, Any] = {"gallery_cache": str(tmp_path / "cache"), "index": (1,)}
    boxed = image(data / "real2" / "q" / "12_1.png")
    template = image(data / "real2" / "c" / "0.png")
    pictures = sorted(map(str, (data / "real2" / "g").iterdir()))
    with torch.no_grad():
        query = feature(trained, boxed, template)
    name = next(row for row in names(run, tmp_path) if row.startswith("real2") and "task-free" not in row)
    shown = call(run, tmp_path / "out.png", tasks=(name,), **place)
    assert shown["gallery"]["instruction"] == "lists"
    assert found(shown) == by_hand(trained, query, {path: image(path, "box") for path in pictures})
    shown = call(run, tmp_path / "out.png", tasks=(name,), gallery_instruction="none", **place)
    assert shown["gallery"]["instruction"] == "none"
    assert found(shown) == by_hand(trained, query, dict.fromkeys(pictures))
    shown = call(run, tmp_path / "out.png", tasks=(name,), gallery_instruction="same", instruction="in red", **place)
    red = Source(modality=TEXT, value="in red")
    with torch.no_grad():
        query = feature(trained, boxed, red)
    assert found(shown) == by_hand(trained, query, dict.fromkeys(pictures, red))


def names(run: Path, folder: Path) -> list[str]:
    with pytest.raises(Exception, match="no such query list") as refused:
        call(run, folder / "none.png", tasks=("zzz",))
    return str(refused.value).split("valid names: ")[-1].split(", ")


def test_an_instruction_that_is_too_long_is_cut_and_noted(run: Path, photos: Path, asked: str, tmp_path: Path) -> None:
    where = {"parts": {"rgb": asked}, "gallery": str(photos), "gallery_cache": str(tmp_path / "cache")}
    long = " ".join(["red"] * 30)
    cut, whole = (call(run, tmp_path / "out.png", **where, instruction=said)["notes"] for said in (long, "red"))
    assert any("longer than the model reads" in note and "--instruction" in note for note in cut)
    assert not any("longer than the model reads" in note for note in whole)


def test_an_evaluation_page_shows_what_the_model_was_told(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lists_of(run, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<b>INSTRUCTION</b>") == page.count("<article>") > 3
    monkeypatch.setattr(ToldModel, "follows_instructions", False)
    lists_of(run, tmp_path)
    assert "INSTRUCTION" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not [name for name in np.load(tmp_path / "e.npz") if "instructions" in str(name)]


WRONG = {
    "both": (["--rgb", "Q", "--instruction", "red", "--instruction-image", "Q"], "give one of both"),
    "caption": (["--text", "a coat", "--instruction", "red"], "an instruction is told with one image, not with TEXT"),
    "no picture": (["--rgb", "Q", "--instruction-image", "J"], "J (--instruction-image): not an image"),
    "absent picture": (
        ["--rgb", "Q", "--instruction-image", "gone.png"],
        "--instruction-image: no such image",
    ),
    "no query": (["--export", "f.npz", "--instruction", "red"], "no query to tell it with"),
    "same, told nothing": (["--rgb", "Q", "--gallery-instruction", "same"], "the queries are told nothing"),
    "threshold without a list": (["--rgb", "Q", "--threshold", "0.5"], "--threshold 0.5: what resembles"),
    "threshold in a folder": (["--task", "x", "--threshold", "1", "--gallery", "G"], "--threshold 1: what"),
    "index": (["--task", "x", "--index", "1,x"], "argument --index"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(
    run: Path,
    asked: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given, words = WRONG[case]
    (tmp_path / "J").write_text("no picture")
    replaced = {"Q": asked, "G": str(photos)}
    refuse(capfd, run, [replaced.get(word, word) for word in given], words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["J"]


def refuse(capfd: pytest.CaptureFixture[str], run: Path, arguments: list[str], words: str) -> None:
    capfd.readouterr()
    code = exit_code("infer", "--run", run, "--device", "cpu", *arguments)
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and words in last and "error:" in last, last


def test_a_family_that_follows_none_is_told_nothing(
    run: Path,
    asked: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ToldModel, "follows_instructions", False)
    monkeypatch.setattr(ToldConfig, "follows", False)
    (tmp_path / "q.json").write_text(json.dumps([{"rgb": asked}, {"rgb": asked, "instruction": "red"}]))
    base = ["--rgb", asked, "--gallery", str(photos)]
    with monkeypatch.context() as unread:
        unread.setattr("solver.runs.load_checkpoint", lambda path: pytest.fail("the weights are read first"))
        for more in (["--instruction", "red"], ["--instruction-image", asked], ["--gallery-instruction", "crop"]):
            refuse(capfd, run, [*base, *more], "this model follows no instructions")
        refuse(capfd, run, ["--queries", "q.json"], "q.json entry 1: this model follows no instructions")
        refuse(capfd, run, ["--task", "x", "--instruction", "red"], "--instruction: this model follows no instructions")
    assert [path.name for path in tmp_path.iterdir()] == ["q.json"]
    name = names(run, tmp_path)[0]
    shown = call(run, tmp_path / "out.png", tasks=(name,), gallery_cache=str(tmp_path / "cache"))
    assert "instruction" not in shown["queries"][0]["query"] and shown["gallery"]["instruction"] == "none"


def test_a_list_without_annotations_has_no_threshold(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = names(run, tmp_path)[0]

    def without(split: EvalSplit, tasks: Sequence[str]) -> tuple[QueryList, ...]:
        found = find_lists(split, tasks)
        return tuple(dataclasses.replace(one, annotations=(), annotation_kinds=()) for one in found)

    monkeypatch.setattr("solver.commands.search.find_lists", without)
    words = f"--threshold 0.5: the queries of {name} have no annotations"
    refuse(capfd, run, ["--task", name, "--threshold", "0.5"], words)
    assert not list(tmp_path.iterdir())


def test_a_text_is_told_nothing() -> None:
    told = Source(modality=TEXT, value="red")
    caption = Query(name="q", sources=(told,))
    with pytest.raises(UserError, match="q: an instruction is told with one image, not with TEXT"):
        instructed(caption, told)
    assert instructed(caption, None) is caption


def test_a_query_and_its_instruction_are_not_written_over(
    run: Path, asked: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coat = tmp_path / "out.png"
    coat.write_bytes(Path(asked).read_bytes())
    with pytest.raises(UserError, match=r"out.png would be replaced, and this search reads it \(instruction\)"):
        call(run, coat, parts={"rgb": asked}, gallery=str(photos), instruction_image=str(coat))
