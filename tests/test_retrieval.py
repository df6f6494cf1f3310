"""Covers: infer, solver/commands/search, solver/search/gallery, solver/search/queries, solver/search/ranked. infer.py
against a brute-force ranking by NumPy on a small model with random weights; its files and its refusals.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import exit_code
from small_run import write_run
from tiny_orbench import write_orbench

import datasets.loading.tokenizers
import infer
import solver.search.ranked
from configs.vocabulary import Modality
from datasets.loading.tokenizers import ClipTokenizer
from datasets.structures import Source
from solver.commands.evaluate import load_test_benchmark
from solver.commands.search import SearchOptions, output_path, run_search
from solver.gallery.index import open_index
from solver.gallery.writing import ShardContent, writing
from solver.run_directory import RETRIEVAL_FILE
from solver.runs import open_run
from solver.search.gallery import Gallery, folder_gallery, split_gallery
from solver.search.queries import Query, query_from_parts
from solver.search.ranked import EncodedQueries, Verdict, search
from solver.search.searched import EncodedGallery
from utils.errors import UserError, run_script
from utils.retrieval import exact

ROOT = Path(__file__).parent.parent
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
TEXT = "a man in a red coat"


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    Image.fromarray(small).resize((20, 40), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"), identities=2, test_identities=4, images=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "small", data)


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the vocabulary once for all searches of this file."""
    monkeypatch.setattr(datasets.loading.tokenizers, "ClipTokenizer", tokenizer)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A gallery folder with images in two levels, a hidden one and a text file."""
    folder = tmp_path / "photos"
    for number in range(7):
        write_image(
            folder / ("deep/er" if number % 3 == 0 else "") / f"{number}.{'png' if number % 2 else 'jpg'}", number
        )
    write_image(folder / ".hidden.png", 99)
    write_image(folder / ".thumbnails" / "9.png", 98)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    drawn = {
        kind: str(write_image(tmp_path / f"{kind}.png", 50 + number))
        for number, kind in enumerate(("nir", "cp", "sk", "rgb"))
    }
    return drawn | {"text": TEXT}


def call(run: Path, output: Path, **options: Any) -> dict[str, Any]:
    run_search(SearchOptions(run=str(run), output=str(output), device="cpu", **options))
    return json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))


def ranked(document: Mapping[str, Any], number: int = 0) -> list[str]:
    return [entry["path"] for entry in document["queries"][number]["results"]]


@functools.cache
def opened(run: Path) -> Any:
    return open_run(run).model


@functools.cache
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@torch.no_grad()
def plain_feature(run: Path, parts: Mapping[str, str]) -> np.ndarray:
    """One query or image: read with PIL, normalised in NumPy, encoded alone, fused by the model's plain form."""
    model = opened(run)
    members = []
    for kind, value in parts.items():
        if kind == "text":
            inputs = tokenizer()(value, 12)[None]
        else:
            pixels = np.asarray(Image.open(value).convert("RGB").resize((16, 32), Image.Resampling.BILINEAR)) / 255
            inputs = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float()
        members.append(model.encode(kind, inputs))
    feature = members[0].pooled if len(members) == 1 else model.fuse(members)
    return feature[0].double().numpy()


def brute_force(run: Path, parts: Mapping[str, str], paths: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Paths from best to worst with their cosines."""
    query = plain_feature(run, parts)
    cosines = []
    for path in paths:
        feature = plain_feature(run, {"rgb": path})
        cosines.append(float(query @ feature / np.sqrt((query @ query) * (feature @ feature))))
    order = sorted(range(len(paths)), key=lambda index: -cosines[index])
    return [paths[index] for index in order], np.array(cosines)[order]


@pytest.mark.parametrize(
    "kinds", [("nir",), ("text",), ("rgb",), ("sk", "text"), ("nir", "cp", "sk", "text")], ids="+".join
)
def test_results_are_those_of_brute_force(
    run: Path, photos: Path, parts: dict[str, str], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    query = {kind: parts[kind] for kind in kinds}
    # No data set is needed for files against a folder.
    document = call(
        run, tmp_path / "out.png", parts=query, gallery=str(photos), top_k=4, overrides=("data.root=/nowhere",)
    )
    images = [str(path) for path in photos.rglob("[0-8].*")]
    assert len(images) == 7 == document["gallery"]["images"]
    paths, cosines = brute_force(run, query, images)
    assert np.diff(cosines).max() < -1e-5, "the case is too close to call"
    assert ranked(document) == paths[:4]
    results = document["queries"][0]["results"]
    assert [entry["similarity"] for entry in results] == pytest.approx(cosines[:4], abs=2e-6)
    assert [entry["rank"] for entry in results] == [1, 2, 3, 4]
    assert not {"match", "person_id"} & set(results[0])
    assert document["checkpoint"]["fingerprint"] == open_run(run).fingerprint
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG" and picture.width > 480
    assert "<!DOCTYPE html>" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_a_query_of_the_test_lists_knows_its_person(run: Path, data: Path, tmp_path: Path) -> None:
    document = call(run, tmp_path / "out.png", tasks=("text+nir",), index=(3,), top_k=100)
    split = load_test_benchmark(open_run(run).config).splits["test"]
    listed = next(entry for entry in split.query_lists if entry.name == "TEXT+NIR")
    assert listed.person_ids[3] == 103 == document["queries"][0]["query"]["person_id"]
    sources = {source.modality.value: source.value for source in listed.entries[3]}
    paths, cosines = brute_force(
        run, {"nir": sources["nir"], "text": sources["text"]}, [source.value for source in split.gallery]
    )
    owner = {source.value: person for source, person in zip(split.gallery, split.gallery_ids)}
    results = document["queries"][0]["results"]
    assert [owner[entry["path"]] for entry in results] == [owner[path] for path in paths]
    assert all(
        entry["person_id"] == owner[entry["path"]] and entry["match"] == (owner[entry["path"]] == 103)
        for entry in results
    )
    assert document["queries"][0]["matches_in_gallery"] == 2
    assert document["queries"][0]["first_match"] == 1 + [owner[path] for path in paths].index(103)
    assert document["top_k"] == {"requested": 100, "listed": 8}
    assert any("larger than the gallery: all 8" in note for note in document["notes"])


def test_the_printed_lines_are_those_of_the_file(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    said = run_search(
        SearchOptions(run=str(run), output=str(output), device="cpu", tasks=("NIR",), index=(1,), top_k=8)
    )
    found = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["queries"][0]
    assert {entry["match"] for entry in found["results"]} == {True, False}
    assert [line.split() for line in said.splitlines() if line.startswith("  ")] == [
        [
            str(rank),
            f"{entry['similarity']:.4f}",
            "match" if entry["person_id"] == found["query"]["person_id"] else "other",
            entry["path"],
        ]
        for rank, entry in enumerate(found["results"], start=1)
    ]


def scores(found: dict[str, Any]) -> dict[str, float]:
    """Picture -> similarity."""
    return {result["path"]: result["similarity"] for result in found["results"]}


def test_several_lists_answer_like_single_ones(run: Path, tmp_path: Path) -> None:
    together = call(run, tmp_path / "both.png", tasks=("SK", "NIR+TEXT"), index=(0, 1), top_k=4)["queries"]
    single = [
        call(run, tmp_path / "one.png", tasks=(task,), index=(index,), top_k=4)["queries"][0]
        for task in ("SK", "NIR+TEXT")
        for index in (0, 1)
    ]
    assert len({str(found["query"]) for found in together}) == 4
    for found, alone in zip(together, single, strict=True):
        # The last bits of a similarity depend on how many queries were encoded at once.
        assert scores(found) == pytest.approx(scores(alone), abs=2e-6)
        assert found.keys() == alone.keys()
        assert all(found[key] == alone[key] for key in found if key != "results")


def test_a_file_of_queries_answers_like_single_ones(
    run: Path, photos: Path, parts: dict[str, str], tmp_path: Path
) -> None:
    entries = [
        {"nir": "nir.png", "text": TEXT, "person_id": 103},
        {"image": "rgb.png"},
        {"sk": parts["sk"], "person_id": None},
        {"text": ""},
        {"text": "a green hat", "nir": "cp.png"},
    ]
    (tmp_path / "queries.json").write_text(json.dumps(entries))
    document = call(run, tmp_path / "all.png", queries=str(tmp_path / "queries.json"), top_k=3)
    single = [
        {"nir": parts["nir"], "text": TEXT},
        {"rgb": parts["rgb"]},
        {"sk": parts["sk"]},
        {"text": ""},
        {"nir": parts["cp"], "text": "a green hat"},
    ]
    for number, query in enumerate(single):
        alone = call(run, tmp_path / f"{number}.png", parts=query, top_k=3)
        assert [entry["similarity"] for entry in document["queries"][number]["results"]] == pytest.approx(
            [entry["similarity"] for entry in alone["queries"][0]["results"]], abs=2e-6
        )
    assert document["queries"][0]["query"]["task"] == "NIR+TEXT" and document["queries"][0]["matches_in_gallery"] == 2
    assert [row["matches_in_gallery"] for row in document["queries"][1:]] == [None] * 4


def test_an_encoded_gallery_is_reused_only_for_the_same_files_and_weights(
    run: Path, data: Path, photos: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def search_photos(place: Path = run, *overrides: str) -> dict[str, Any]:
        return call(
            place,
            tmp_path / "out.png",
            parts={"text": TEXT},
            gallery=str(photos),
            gallery_cache=str(cache),
            overrides=overrides,
        )

    first = search_photos()
    assert not first["gallery"]["reused"] and search_photos()["gallery"]["reused"]
    (place,) = cache.glob("*.index")
    # What lies in the index is what is searched: rows that are turned round turn the ranking round.
    index = open_index(place)
    content = ShardContent(
        features=-index.shards[0].features, rows=[row for _, row in index.images()], numbers=range(index.count)
    )
    with writing(place) as writer:
        writer.replace(content, index.count)
    assert ranked(search_photos()) == ranked(first)[::-1]
    # It is an index like any other.
    asked: dict[str, Any] = {"parts": {"text": TEXT}, "gallery_index": str(place)}
    assert ranked(call(run, tmp_path / "out.png", **asked)) == ranked(first)[::-1]
    (file,) = place.rglob("*.features.npy")
    file.write_bytes(file.read_bytes()[:-1])
    assert not search_photos()["gallery"]["reused"] and search_photos()["gallery"]["reused"]
    # Touched but equal: reused. Other content of the same size and time: only the digest could tell, so time must
    # differ.
    changed = photos / "1.png"
    os.utime(changed, ns=(1, 1))
    assert search_photos()["gallery"]["reused"] and search_photos()["gallery"]["reused"]
    pixels = np.asarray(Image.open(changed))
    Image.fromarray(255 - pixels).save(changed)
    after = search_photos()
    assert not after["gallery"]["reused"]
    assert ranked(after) == brute_force(run, {"text": TEXT}, [str(path) for path in photos.rglob("[0-8].*")])[0]
    write_image(photos / "8.png", 8)
    assert not search_photos()["gallery"]["reused"]
    (photos / "8.png").unlink()
    assert not search_photos()["gallery"]["reused"]
    other = write_run(tmp_path / "other", data, seed=2)
    assert not search_photos(other)["gallery"]["reused"]
    assert not search_photos(run, "model.vision_heads=2")["gallery"]["reused"]
    assert not search_photos(run, "model.image_size=[32,16]", "model.stride=16", "eval.precision=bf16")["gallery"][
        "reused"
    ]
    assert search_photos()["gallery"]["reused"] and search_photos(other)["gallery"]["reused"]


def test_an_unreadable_gallery_image_is_refused_or_left_out(run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "4.jpg").write_bytes((photos / "4.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"4\.jpg"):
        call(run, tmp_path / "out.png", parts={"text": TEXT}, gallery=str(photos))
    assert not list(tmp_path.glob("out.*"))
    for reused in (False, True):
        document = call(
            run, tmp_path / "out.png", parts={"text": TEXT}, gallery=str(photos), overrides=("data.on_error=skip",)
        )
        assert document["gallery"]["reused"] is reused
        assert [Path(entry["path"]).name for entry in document["gallery"]["unreadable"]] == ["4.jpg"]
        readable = [str(path) for path in photos.rglob("[0-8].*") if path.name != "4.jpg"]
        assert ranked(document) == brute_force(run, {"text": TEXT}, readable)[0]
    with pytest.raises(UserError, match=r"4\.jpg"):
        call(run, tmp_path / "again.png", parts={"text": TEXT}, gallery=str(photos))


def test_an_unreadable_query_is_refused_or_left_out(
    run: Path, photos: Path, parts: dict[str, str], tmp_path: Path
) -> None:
    Path(parts["sk"]).write_bytes(b"not an image")
    (tmp_path / "queries.json").write_text(json.dumps([{"sk": "sk.png", "text": "x"}, {"nir": "nir.png"}]))
    options = {"queries": str(tmp_path / "queries.json"), "gallery": str(photos)}
    with pytest.raises(UserError, match=r"sk\.png"):
        call(run, tmp_path / "out.png", **options)
    document = call(run, tmp_path / "out.png", **options, overrides=("data.on_error=skip",))
    assert [row["query"]["name"] for row in document["queries"]] == ["queries.json entry 1"]
    assert [entry["name"] for entry in document["unreadable_queries"]] == ["queries.json entry 0"]


def test_an_export_writes_features_only(run: Path, photos: Path, tmp_path: Path) -> None:
    """Without an output no picture appears; without a query the gallery alone is encoded."""
    before = sorted(run.iterdir())
    # More results than images are asked for: of an export none are listed, so there is nothing to say of them.
    alone = SearchOptions(run=str(run), gallery=str(photos), export=str(tmp_path / "f"), device="cpu", top_k=99)
    for options, queries in ((dataclasses.replace(alone, parts={"text": TEXT}), 1), (alone, 0)):
        said = run_search(options)
        assert [path for path in run.iterdir() if path not in before and path.name != "gallery_cache"] == []
        assert said.splitlines()[0].startswith(f"features of {queries} queries and ") and "f.npz" in said
        with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
            assert len(arrays["query_features"]) == queries
            assert arrays["gallery_paths"].tolist() == [entry.value for entry in folder_gallery(photos).sources]
            assert not arrays["gallery_person_known"] and arrays["query_person_known"].dtype == bool
            assert arrays["query_descriptions"].dtype.kind == "U"
        assert "top-k" not in said
    with pytest.raises(UserError, match="nothing to do: give a query, or --export"):
        run_search(SearchOptions(run=str(run), gallery=str(photos), device="cpu"))


def test_exported_features_give_the_similarities(run: Path, data: Path, tmp_path: Path) -> None:
    document = call(
        run, tmp_path / "out.png", tasks=("NIR+CP+SK",), index=(1,), top_k=8, export=str(tmp_path / "features")
    )
    with np.load(tmp_path / "features.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    cosines = arrays["gallery_features"] @ arrays["query_features"][0]
    order = np.argsort(-cosines, kind="stable")
    results = document["queries"][0]["results"]
    assert [entry["similarity"] for entry in results] == pytest.approx(cosines[order], abs=2e-6)
    persons = dict(zip(arrays["gallery_paths"].tolist(), arrays["gallery_person_ids"].tolist()))
    assert persons == {entry["path"]: entry["person_id"] for entry in results}
    assert (
        arrays["query_person_ids"].tolist() == [102]
        and arrays["query_person_known"].all()
        and arrays["gallery_person_known"]
    )
    assert json.loads(str(arrays["query_descriptions"][0]))["task"] == "NIR+CP+SK"
    assert str(arrays["weights"]) == document["checkpoint"]["fingerprint"]


def test_equal_similarities_keep_the_gallery_order_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    sources = tuple(Source(modality=Modality.RGB, value=f"{number}.jpg") for number in range(6))
    # Image 1 was unreadable: rows are images 0, 2, 3, 4, 5.
    gallery = EncodedGallery(
        gallery=Gallery(name="g", location="g", sources=sources, person_ids=(7, 7, 8, 9, 8, 7)),
        features=rows,
        positions=np.array([0, 2, 3, 4, 5]),
        failures={1: "damaged"},
        reused=False,
    )
    queries = tuple(
        Query(name=str(number), sources=sources[:1], person_id=person) for number, person in enumerate((8, 9, 5, None))
    )
    encoded = EncodedQueries(
        queries=queries, features=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), failures=()
    )
    plain = exact.best_rows
    for budget in (1 << 24, 1):
        monkeypatch.setattr(solver.search.ranked, "best_rows", functools.partial(plain, block_bytes=budget))
        first, second, third, fourth = search(encoded, gallery, 3)
        assert [image.index for image in first.results] == [2, 4, 3] and [image.verdict for image in first.results] == [
            Verdict.MATCH,
            Verdict.MATCH,
            Verdict.OTHER,
        ]
        assert [image.index for image in second.results] == [0, 5, 3]
        assert [(row.matches, row.first_match) for row in (first, second, third, fourth)] == [
            (2, 1),
            (1, 3),
            (0, 0),
            (None, None),
        ]
        assert [image.verdict for image in fourth.results] == [Verdict.UNKNOWN] * 3 and fourth.results[0].person_id == 8
        # Matches are those of the gallery, however few results are listed.
        assert [(len(row.results), row.matches, row.first_match) for row in search(encoded, gallery, 1)] == [
            (1, 2, 1),
            (1, 1, 3),
            (1, 0, 0),
            (1, None, None),
        ]


def test_many_equal_similarities_keep_the_gallery_order() -> None:
    sources = tuple(Source(modality=Modality.RGB, value=f"{number}.jpg") for number in range(3000))
    features = torch.zeros(3000, 2)
    features[:, 0] = 1.0
    gallery = EncodedGallery(
        gallery=Gallery(name="g", location="g", sources=sources),
        features=features,
        positions=np.arange(3000),
        failures={},
        reused=False,
    )
    encoded = EncodedQueries(
        queries=(Query(name="q", sources=sources[:1]),), features=torch.tensor([[1.0, 0.0]]), failures=()
    )
    assert [image.index for image in search(encoded, gallery, 3000)[0].results] == list(range(3000))


def test_places_and_names(run: Path, photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name, expected in {
        "": home / RETRIEVAL_FILE,
        "a": Path("a.png"),
        "a.png": Path("a.png"),
        "x/a.PNG": Path("x/a.png"),
        "a.json": Path("a.png"),
        "run.v2": Path("run.v2.png"),
        "new/": Path("new") / RETRIEVAL_FILE,
        str(tmp_path): tmp_path / RETRIEVAL_FILE,
    }.items():
        assert output_path(name, home) == expected
    found = [os.path.relpath(source.value, photos) for source in folder_gallery(photos).sources]
    assert found == ["1.png", "2.jpg", "4.jpg", "5.png", "deep/er/0.jpg", "deep/er/3.png", "deep/er/6.jpg"]
    benchmark = load_test_benchmark(open_run(run).config)
    assert split_gallery(benchmark, benchmark.splits["test"]).person_ids == (102, 102, 103, 103, 104, 104, 105, 105)


def test_a_very_long_caption_is_cut_not_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    document = call(run, tmp_path / "out.png", parts={"text": "red coat " * 2500}, gallery=str(photos))
    assert len(ranked(document)) == 7


WRONG: dict[str, tuple[Any, str]] = {
    "missing image": (["--nir", "gone.png"], "gone.png"),
    "rgb with text": (["--rgb", "rgb.png", "--text", "x"], "rgb cannot be mixed with text"),
    "no query": ([], "one kind of query"),
    "two kinds of query": (["--text", "x", "--task", "NIR"], "one kind of query"),
    "index alone": (["--text", "x", "--index", "1"], "--index"),
    "unknown list": (["--task", "NIR+TXT"], "NIR+TEXT"),
    "index too large": (["--task", "NIR", "--index", "8"], "0 to 7"),
    "no results wanted": (["--text", "x", "--top-k", "0"], "--top-k 0"),
    "gallery without images": (["--text", "x", "--gallery", "empty"], "holds no image"),
    "no gallery": (["--text", "x", "--gallery", "gone"], "no such gallery folder"),
    "output below a file": (["--text", "x", "--output", "rgb.png/a.png"], "is a file"),
    "output is the query": (["--nir", "nir.png", "--output", "nir.jpg"], "nir.png would be replaced"),
    "output is a gallery image": (["--text", "x", "--gallery", ".", "--output", "./sk"], "sk.png would be replaced"),
    "queries are the output": ([{"text": "x"}], "q.json would be replaced"),
    "cache is a file": (["--text", "x", "--gallery-cache", "rgb.png"], "is a file"),
    "no such run": (["--run", "gone", "--text", "x"], "gone"),
    "unknown option": (["--text", "x", "eval.precison=bf16"], "'precision'"),
    "device": (["--text", "x", "--device", "gpu"], "gpu"),
    "queries: absent": (["--queries", "gone.json"], "gone.json"),
    "queries: not JSON": ("[{", "not valid JSON"),
    "queries: key twice": ('[{"text": "x", "person_id": 7, "text": "y"}]', "the key 'text' stands twice"),
    "queries: no list": ({"nir": "nir.png"}, "must be a list"),
    "queries: none": ([{}][:0], "at least one"),
    "queries: no object": ([{"text": "x"}, 3], "entry 1: must be an object"),
    "queries: unknown key": (
        [{"text": "x"}, {"text": "x", "nri": "a.png"}],
        "entry 1: unknown key 'nri', did you mean 'nir'",
    ),
    "queries: no text": ([{"text": 5}], "entry 0: key text = 5"),
    "queries: no person": ([{"text": "x", "person_id": 7.5}], "entry 0: key person_id = 7.5"),
    "queries: nothing in it": ([{"person_id": 7}], "entry 0: nothing to search for"),
    "queries: mixed rgb": (
        [{"text": "x"}, {"sk": "sk.png", "image": "rgb.png"}],
        "entry 1: rgb cannot be mixed with sk",
    ),
    "queries: rgb twice": ([{"rgb": "rgb.png", "image": "rgb.png"}], "entry 0: rgb and image"),
    "queries: missing image": ([{"text": "x"}, {"nir": "gone.png"}], "entry 1: no such image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_one_sentence(
    run: Path,
    parts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    given, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = given
    if case.startswith("queries") and case != "queries: absent":
        (tmp_path / "q.json").write_text(given if isinstance(given, str) else json.dumps(given))
        arguments = ["--queries", "q.json", *(["--output", "q.png"] if case == "queries are the output" else [])]
    base = [] if "--run" in arguments else ["--run", str(run)]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        sys, "argv", ["infer.py", *base, *arguments, *([] if "--output" in arguments else ["--output", "out.png"])]
    )
    with pytest.raises(SystemExit) as stopped:
        run_script(infer.main)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in last and "error:" in last
    assert sorted(tmp_path.rglob("*")) == before


def test_the_script_itself(run: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hostile = photos / "<img src=x onerror=alert(1)>&\"'.png"
    write_image(hostile, 33)
    command = [
        sys.executable,
        "infer.py",
        "--run",
        str(run),
        "--text",
        "<script>",
        "--gallery",
        str(photos),
        "--output",
        str(tmp_path / "new" / "out"),
        "data.on_error=raise",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"written: {tmp_path}/new/out.png" in done.stdout and hostile.name in done.stdout
    page = (tmp_path / "new" / "out.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert exit_code("infer", *command[2:], "--task", "NIR") == 2
    assert "one kind of query" in capfd.readouterr().err.splitlines()[-1]


def test_parts_keep_one_order_whatever_they_were_given_in(parts: dict[str, str]) -> None:
    query = query_from_parts({"text": TEXT, "sk": parts["sk"], "nir": parts["nir"]}, "query")
    assert query.task == "NIR+SK+TEXT" and [source.value for source in query.sources] == [
        parts["nir"],
        parts["sk"],
        TEXT,
    ]
