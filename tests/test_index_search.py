"""Covers: infer, solver/commands/search, solver/search/searched, solver/search/gallery_cache, solver/gallery/place,
solver/reports/grid, solver/reports/html_page. A gallery index that is searched finds what the folder finds, and says
what is no longer as it was.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripts import Run
from small_run import write_run
from tiny_orbench import write_orbench

from configs.vocabulary import Combination
from solver.calibration import Calibration, Cutoff
from solver.commands.search import run_search
from solver.gallery.arguments import GalleryOptions
from solver.gallery.commands import add, compact, remove
from solver.search import session
from solver.search.arguments import SearchOptions
from utils.errors import UserError

TEXT = "a man in a red coat"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"), identities=2, test_identities=3, images=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "small", data)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rows = ["path,person"]
    for number in range(8):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (5, 3, 3), dtype=np.uint8)
        Image.fromarray(small).resize((20, 40), Image.Resampling.NEAREST).save(path)
        rows.append(f"photos/{number}.png,anna{number % 3}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


@pytest.fixture
def index(run: Path, photos: Path, tmp_path: Path, keep_logging: None) -> Path:
    """The images in two shards, after one that is removed."""
    shutil.copy(photos / "3.png", tmp_path / "gone.png")
    for images in ([tmp_path / "gone.png"], [photos / f"{number}.png" for number in range(4)], [photos]):
        change(run, tmp_path / "index", "add", photos=[str(image) for image in images])
    change(run, tmp_path / "index", "remove", photos=[str(tmp_path / "gone.png")])
    return tmp_path / "index"


def change(run: Path, place: Path, name: str, **options: Any) -> None:
    more: dict[str, Any] = {"run": str(run), "device": "cpu"} if name == "add" else {}
    given = GalleryOptions(command=name, index=str(place), **more, **options)
    assert {"add": add, "remove": remove, "compact": compact}[name](given)[1] == 0


def found(run: Path, output: Path, **options: Any) -> dict[str, Any]:
    run_search(SearchOptions(run=str(run), output=str(output / "out.png"), device="cpu", **options))
    return json.loads((output / "out.json").read_text())


def shown(document: Mapping[str, Any]) -> list[list[tuple[str, float]]]:
    return [[(row["path"], row["similarity"]) for row in query["results"]] for query in document["queries"]]


def test_an_index_finds_what_the_folder_finds(run: Path, photos: Path, tmp_path: Path, index: Path) -> None:
    asked = [{"text": TEXT}, {"rgb": str(photos / "5.png")}, {"nir": str(photos / "2.png"), "text": "a bag"}]
    (tmp_path / "q.json").write_text(json.dumps(asked))
    queries: dict[str, Any] = {"queries": str(tmp_path / "q.json")}
    folder = found(run, tmp_path, gallery=str(photos), **queries)
    for compacted in (False, True):
        if compacted:
            change(run, index, "compact")
        there = found(run, tmp_path, gallery_index=str(index), **queries)
        for one, other in zip(shown(there), shown(folder), strict=True):
            assert [path for path, _ in one] == [path for path, _ in other] and len(one) == 8
            assert [value for _, value in one] == pytest.approx([value for _, value in other], abs=1e-6)
        assert there["gallery"]["images"] == 8 and there["gallery"]["name"] == f"index {index}"
        marked = [row.get("own_image", False) for row in there["queries"][1]["results"]]
        assert marked == [True] + [False] * 7 and there["queries"][2]["results"][0]["rank"] == 1
    few = found(run, tmp_path, gallery_index=str(index), top_k=3, **queries)
    assert shown(few) == [rows[:3] for rows in shown(there)]
    assert shown(found(run, tmp_path, gallery_index=str(index), tasks=("SK",), index=(0,))) != []


def test_persons_of_an_index_are_known(run: Path, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    change(run, place, "add", manifest=str(tmp_path / "photos.csv"))
    (tmp_path / "q.json").write_text(
        json.dumps([{"text": TEXT, "person_id": "anna1"}, {"rgb": str(photos / "4.png"), "person_id": "anna1"}])
    )
    queries: dict[str, Any] = {"queries": str(tmp_path / "q.json"), "top_k": 2}
    there = found(run, tmp_path, gallery_index=str(place), **queries)
    folder = found(run, tmp_path, gallery=str(tmp_path / "photos.csv"), **queries)
    for one, other in zip(there["queries"], folder["queries"], strict=True):
        assert (one["matches_in_gallery"], one["first_match"]) == (other["matches_in_gallery"], other["first_match"])
        assert [row["match"] for row in one["results"] if "match" in row] == [
            row["match"] for row in other["results"] if "match" in row
        ]
    assert [query["matches_in_gallery"] for query in there["queries"]] == [3, 2]


def test_answers_of_an_index(
    run: Path, photos: Path, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = found(run, tmp_path, gallery_index=str(index), parts={"rgb": str(photos / "5.png")})
    first = document["queries"][0]["results"]
    limit = first[3]["similarity"] - 1e-6

    class Fixed(Calibration):
        def cutoff(self, combination: Combination, searched: Any) -> Cutoff | None:
            return Cutoff(threshold=limit, rate=0.01, images=8)

    fixed = Fixed(file=tmp_path / "f", split="val", dataset="d", thresholds={}, gallery=frozenset())
    monkeypatch.setattr(session, "read_calibration", lambda trained: fixed)
    document = found(run, tmp_path, gallery_index=str(index), parts={"rgb": str(photos / "5.png")}, top_k=2)
    # The query itself is no answer.
    assert document["queries"][0]["calibration"]["above"] == 3
    assert [row["answer"] for row in document["queries"][0]["results"]] == ["above", "above"]


def test_files_that_are_no_longer_what_was_encoded(run: Path, photos: Path, tmp_path: Path, index: Path) -> None:
    (photos / "1.png").unlink()
    shutil.copy(photos / "2.png", photos / "3.png")
    (photos / "4.png").write_bytes(b"no image any more")
    document = found(run, tmp_path, gallery_index=str(index), parts={"text": TEXT})
    files = {Path(row["path"]).name: row["file"] for row in document["queries"][0]["results"] if "file" in row}
    assert files == {"1.png": "missing", "3.png": "changed", "4.png": "changed"}
    (note,) = [note for note in document["notes"] if "no longer what was encoded" in note]
    assert note.startswith("3 files of results") and f"{photos / '1.png'} (missing)" in note
    assert "file missing" in (tmp_path / "out.html").read_text() and (tmp_path / "out.png").stat().st_size > 1000


def test_an_index_is_exported(run: Path, photos: Path, tmp_path: Path, index: Path) -> None:
    arrays = []
    for place in ({"gallery": str(photos)}, {"gallery_index": str(index)}):
        options: dict[str, Any] = {"run": str(run), "export": str(tmp_path / "f.npz"), "device": "cpu", **place}
        run_search(SearchOptions(**options))
        with np.load(tmp_path / "f.npz", allow_pickle=False) as stored:
            arrays.append(dict(stored))
    assert arrays[0]["gallery_paths"].tolist() == arrays[1]["gallery_paths"].tolist()
    assert np.allclose(arrays[0]["gallery_features"], arrays[1]["gallery_features"], atol=1e-6)


WRONG: dict[str, tuple[Sequence[str], str]] = {
    "absent": (["--index", "gone"], "no such gallery index: gone"),
    "a folder": (["--index", "photos"], "photos is not a gallery index: it has no index.json"),
    "two": (["--index", "index", "--index", "photos"], "give one list of entries, and one gallery"),
    "both": (["--index", "index", "--gallery", "photos"], "give one list of entries, and one gallery"),
    "half a list": (["--index", "1,x"], "argument --index"),
    "another precision": (["--index", "index", "eval.precision=bf16"], "made with another model"),
    "another modality": (["--index", "index", "--gallery-modality", "nir"], "holds RGB images, and NIR ones are"),
    "an image of it": (["--gallery", "index", "--output", "photos/5.png"], "would be replaced, and this search reads"),
    "a threshold": (["--index", "index", "--threshold", "0.5"], "leave --threshold out"),
    "calibrate": (["--index", "index", "--calibrate"], "--calibrate searches nothing"),
}


def test_wrong_input(
    run: Path, photos: Path, tmp_path: Path, index: Path, call_script: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (words, message) in WRONG.items():
        outcome = call_script("infer", "--run", run, "--device", "cpu", "--text", "x", *words)
        assert outcome.code == 2 and message in outcome.err, (name, outcome.err)
    assert not list(run.glob("retrieval.*"))


def test_an_index_of_another_model_or_a_broken_one(
    run: Path, data: Path, photos: Path, tmp_path: Path, index: Path
) -> None:
    other = write_run(tmp_path / "other", data, seed=2)
    with pytest.raises(UserError, match="index was made with another model than .*other .*weights"):
        found(other, tmp_path, gallery_index=str(index), parts={"text": TEXT})
    file = next(index.rglob("*.features.npy"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="features.npy of the gallery index is damaged"):
        found(run, tmp_path, gallery_index=str(index), parts={"text": TEXT})
    assert not list(tmp_path.glob("out.*"))


def test_what_an_index_was_told_must_be_asked_for(run: Path, tmp_path: Path, index: Path) -> None:
    document = found(run, tmp_path, gallery_index=str(index), parts={"text": TEXT}, gallery_instruction="none")
    assert document["gallery"]["instruction"] == "none"
    content = json.loads((index / "index.json").read_text())
    assert content["instruction"] == {"told": "none"} and content["statistics"]["name"] == "clip"


def test_an_empty_index_is_said_to_be_empty(run: Path, photos: Path, tmp_path: Path, index: Path) -> None:
    change(run, index, "remove", photos=[str(photos)])
    with pytest.raises(UserError, match="holds no image; add some"):
        found(run, tmp_path, gallery_index=str(index), parts={"text": TEXT})
