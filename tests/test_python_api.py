"""Covers: anyreid, solver/api, solver/search/session, solver/search/pictures. The Python API gives what infer.py and
test.py give, bit by bit, and refuses in one sentence what cannot be meant.
"""

import functools
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_oracle as oracle
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scripts import Run, global_state_kept
from small_run import write_run
from tiny_orbench import write_orbench

import anyreid
import datasets.loading.tokenizers
from datasets.loading.tokenizers import ClipTokenizer
from solver.calibration import FORMAT
from solver.commands.search import run_search
from solver.gallery.arguments import GalleryOptions
from solver.gallery.commands import add
from solver.runs import model_identity
from solver.search.arguments import SearchOptions
from solver.search.searched import GalleryImage, part_of
from solver.search.session import averaged
from utils.files import CHECKSUM, checksum_of

TEXTS = ["a man in a red coat", "a woman with a bag", "blue trousers"]
RATES = {"NIR": {0.01: 0.9, 0.1: 0.1}, "NIR+TEXT": {0.1: 2.0}}
"""Thresholds of the tests, by combination and false alarm rate."""


tokenizer = functools.lru_cache(maxsize=1)(ClipTokenizer)


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Read the vocabulary once for all models of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.loading.tokenizers, "ClipTokenizer", tokenizer)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"), identities=2, test_identities=3, images=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "small", data)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, of which 3 is turned by EXIF and 5 has a transparent part, and a manifest of them."""
    folder = tmp_path_factory.mktemp("photos")
    rows = ["path,person,camera"]
    for number in range(8):
        small = np.random.default_rng(number).integers(0, 256, (5, 3, 4 if number == 5 else 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((20, 40), Image.Resampling.NEAREST)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        picture.save(folder / f"{number}.png", exif=exif)
        rows.append(f"{number}.png,anna{number % 3},c{number % 2}")
    (folder / "photos.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Iterator[anyreid.Model]:
    with global_state_kept():
        yield anyreid.load(run, device="cpu")


def make_index(run: Path, place: Path, photos: Path) -> Path:
    with global_state_kept():
        options = {"command": "add", "index": str(place), "run": str(run), "device": "cpu"}
        assert add(GalleryOptions(**options, photos=[str(photos / "photos.csv")]))[1] == 0  # type: ignore[arg-type]
    return place


@pytest.fixture(scope="module")
def index(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(run, tmp_path_factory.mktemp("index") / "photos.index", photos)


@pytest.fixture
def calibrated(run: Path, model: anyreid.Model) -> Iterator[anyreid.Model]:
    """The model with thresholds that were never measured."""
    file = run / "best.calibration.json"
    searches = {"searches": {"images": 10.0}, "matching": []}
    rates = {
        name: {**searches, "identification": [{"fpir_target": rate, "threshold": at} for rate, at in one.items()]}
        for name, one in RATES.items()
    }
    document = {
        "format": FORMAT,
        "model": model_identity(model.session.trained),
        "data": {"split": "val", "dataset": "orbench", "gallery": ["rgb"]},
        "error_rates": rates,
    }
    file.write_text(json.dumps({**document, CHECKSUM: checksum_of(document)}))
    with global_state_kept():
        yield anyreid.load(run, device="cpu")
    file.unlink()


def searched(run: Path, output: Path, **options: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What infer.py writes: its JSON file and its features."""
    with global_state_kept():
        given = {"output": str(output / "out.png"), "export": str(output / "f.npz"), **options}
        run_search(SearchOptions(run=str(run), device="cpu", **given))
    with np.load(output / "f.npz") as arrays:
        return json.loads((output / "out.json").read_text()), dict(arrays)


def asked(tmp_path: Path, photos: Path, numbers: list[int]) -> str:
    """A file of queries that mix an infrared image and a text."""
    rows = [{"nir": str(photos / f"{number}.png"), "text": text} for number, text in zip(numbers, TEXTS)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    return str(tmp_path / "q.json")


def test_features_and_hits_are_those_of_infer(
    run: Path, calibrated: anyreid.Model, photos: Path, index: Path, tmp_path: Path
) -> None:
    features = calibrated.embed(nir=[photos / f"{number}.png" for number in (1, 3, 5)], text=TEXTS)
    assert features.shape == (3, calibrated.dim) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    places: list[tuple[anyreid.Gallery, dict[str, Any]]] = [
        (anyreid.Gallery(index), {"gallery_index": str(index)}),
        (anyreid.Gallery(photos / "photos.csv", calibrated), {"gallery": str(photos / "photos.csv")}),
        (anyreid.Gallery(model=calibrated), {}),
    ]
    for gallery, options in places:
        document, arrays = searched(run, tmp_path, queries=asked(tmp_path, photos, [1, 3, 5]), top_k=6, **options)
        assert np.array_equal(arrays["query_features"], features)
        assert len(gallery) == document["gallery"]["images"]
        for hits, query in zip(gallery.search(features, top_k=6), document["queries"], strict=True):
            assert hits.error_rate == 0.1 and hits.nobody and hits.threshold == 2.0
            assert query["calibration"]["answer"] == "nobody"
            assert [(hit.rank, hit.path, round(hit.similarity, 7), hit.person, hit.answer) for hit in hits] == [
                (row["rank"], row["path"], row["similarity"], row.get("person_id"), row["answer"])
                for row in query["results"]
            ]
    listed = {hit.path: hit.camera for hit in anyreid.Gallery(index).search(features[0])[0]}
    assert listed == {str(photos / f"{number}.png"): f"c{number % 2}" for number in range(8)}


def as_bytes(path: Path) -> bytes:
    return path.read_bytes()


def as_picture(path: Path) -> Image.Image:
    return Image.open(path)


def as_decoded(path: Path) -> Image.Image:
    picture = Image.open(path)
    picture.load()
    return picture


def as_file(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize("form", [str, as_bytes, as_picture, as_decoded, as_file])
def test_a_picture_in_memory_is_read_like_its_file(
    form: Callable[[Path], Any], model: anyreid.Model, photos: Path
) -> None:
    paths = [photos / f"{number}.png" for number in (0, 3, 5)]
    files = model.embed(sk=paths, text=TEXTS)
    assert np.array_equal(model.embed(sk=[form(path) for path in paths], text=TEXTS), files)
    # Neither the turn nor the transparent part is lost on the way: the stored pixels give something else.
    stored = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    arrays = model.embed(sk=stored, text=TEXTS)
    assert np.array_equal(arrays[0], files[0])
    assert not np.allclose(arrays[1], files[1], atol=1e-4) and not np.allclose(arrays[2], files[2], atol=1e-4)


def test_a_single_item_and_four_dimensions_are_lists(model: anyreid.Model, photos: Path) -> None:
    picture = np.asarray(Image.open(photos / "0.png"))
    one = model.embed(rgb=photos / "0.png")
    assert one.shape == (1, model.dim)
    assert np.array_equal(model.embed(rgb=picture), one)
    two = model.embed(rgb=np.stack([picture, picture[::-1]]))
    assert np.array_equal(two[:1], model.embed(rgb=[picture, picture[::-1]])[:1]) and len(two) == 2
    assert model.embed(text="a red coat").shape == (1, model.dim)


def test_no_query_is_no_feature(model: anyreid.Model, index: Path) -> None:
    features = model.embed(nir=[], text=[])
    assert features.shape == (0, model.dim) and anyreid.Gallery(index).search(features) == []


def test_two_pictures_in_memory_are_not_one(model: anyreid.Model, photos: Path) -> None:
    first, second = (np.asarray(Image.open(photos / f"{number}.png")) for number in (0, 1))
    both = model.embed(nir=[first, second], sk=[second, first])
    assert np.abs(both[0] - both[1]).max() > 1e-3
    np.testing.assert_allclose(both[:1], model.embed(nir=first, sk=second), atol=1e-5)


def test_an_error_rate_is_chosen(
    run: Path, calibrated: anyreid.Model, photos: Path, index: Path, tmp_path: Path, call_script: Run
) -> None:
    assert calibrated.error_rates("NIR") == (0.01, 0.1) and calibrated.error_rates("SK") == ()
    assert calibrated.error_rates("TEXT+NIR") == (0.1,) and calibrated.error_rates("NIR", ["nir"]) == ()
    gallery = anyreid.Gallery(index)
    features = calibrated.embed(nir=photos / "1.png")
    for rate, threshold in ((None, 0.9), (0.01, 0.9), (0.1, 0.1)):
        (hits,) = gallery.search(features, top_k=8, error_rate=rate)
        assert (hits.threshold, hits.error_rate) == (threshold, rate or 0.01)
        assert [hit.above for hit in hits] == [hit.similarity >= np.float32(threshold) for hit in hits]
        assert hits.above == sum(bool(hit.above) for hit in hits) and hits.nobody == (hits.above == 0)
        options: dict[str, Any] = {"parts": {"nir": str(photos / "1.png")}, "gallery_index": str(index)}
        document, _ = searched(run, tmp_path, error_rate=rate, **options)
        assert [row["answer"] for row in document["queries"][0]["results"]] == [hit.answer for hit in hits]
        assert document["queries"][0]["calibration"]["false_alarm_rate"] == (rate or 0.01)
    (hits,) = gallery.search(calibrated.embed(sk=photos / "1.png"), top_k=2)
    assert hits.above is None and hits.nobody is None and {hit.answer for hit in hits} == {"not calibrated"}
    words = "error rate 0.3: queries of NIR in a gallery of RGB images have thresholds at 0.01, 0.1 only"
    with pytest.raises(anyreid.UserError, match=words):
        gallery.search(features, error_rate=0.3)
    with pytest.raises(anyreid.UserError, match="error rate 0.1: queries of SK .* are not calibrated"):
        gallery.search(calibrated.embed(sk=photos / "1.png"), error_rate=0.1)
    done = call_script(
        "infer", "--run", run, "--nir", photos / "1.png", "--index", index, "--error-rate", "0.3", "--device", "cpu"
    )
    assert done.code == 2 and words in done.error and not list(run.glob("retrieval*"))
    done = call_script("infer", "--run", run, "--export", tmp_path / "f.npz", "--error-rate", "0.1")
    assert done.code == 2 and "--error-rate answers a search" in done.err


def test_no_rate_without_a_calibration(model: anyreid.Model, photos: Path, index: Path) -> None:
    with pytest.raises(anyreid.UserError, match="error rate 0.1: this model is not calibrated; set thresholds with"):
        anyreid.Gallery(index).search(model.embed(nir=photos / "1.png"), error_rate=0.1)


def test_features_remember_their_model(model: anyreid.Model, photos: Path, index: Path) -> None:
    gallery = anyreid.Gallery(index)
    features = model.embed(nir=[photos / "1.png", photos / "2.png"])
    whole = gallery.search(features, top_k=3)
    assert gallery.search(features[1], top_k=3)[0] == whole[1] and gallery.search(features[:1], top_k=3)[0] == whole[0]
    saved = np.array(features)
    assert gallery.search(model.as_features(saved, "nir"), top_k=3) == whole
    assert type(features @ features.T) is np.ndarray and type(features.sum(1)) is np.ndarray
    assert isinstance(features[0] @ features[1], np.floating)
    for lost in (saved, np.concatenate([features, features]), features * 2):
        with pytest.raises(anyreid.UserError, match="do not say which model they are of"):
            gallery.search(lost)


def test_a_mean_of_several_pictures(model: anyreid.Model, photos: Path, index: Path) -> None:
    pictures = [photos / f"{number}.png" for number in (0, 1, 2)]
    features = model.embed(nir=pictures)
    found = anyreid.average(features)
    mean = np.asarray(features, dtype=np.float64).mean(0)
    np.testing.assert_allclose(np.asarray(found)[0], mean / np.linalg.norm(mean), atol=1e-7)
    queries = model.session.queries({"nir": pictures, "text": TEXTS})
    session = model.session
    both = averaged(session.encode(queries), [[0, 1, 2], [1]])
    wanted = np.asarray(model.embed(nir=pictures, text=TEXTS), dtype=np.float64)
    mean = wanted.mean(0) / np.linalg.norm(wanted.mean(0))
    np.testing.assert_allclose(both.features.numpy(), [mean, wanted[1]], atol=1e-6)
    # Each of the pictures is the query itself.
    rows = session.search(both, session.gallery(index), 8)
    own = [{image.path for image in row.results if image.own_image} for row in rows]
    assert own == [{str(path) for path in pictures}, {str(pictures[1])}]
    mixed = [*session.queries({"nir": pictures[0]}), *session.queries({"sk": pictures[0]})]
    with pytest.raises(anyreid.UserError, match="a mean of NIR and SK"):
        averaged(session.encode(mixed), [[0, 1]])


def test_a_part_of_a_gallery_is_searched(model: anyreid.Model, photos: Path, index: Path) -> None:
    session = model.session
    encoded = session.encode(session.queries({"nir": photos / "1.png"}))
    for place in (index, photos / "photos.csv"):
        whole = session.gallery(place)
        (everything,) = session.search(encoded, whole, 8)

        def kept(image: GalleryImage) -> bool:
            return image.camera == "c1" and image.person_id != "anna0"

        (part,) = session.search(encoded, part_of(whole, kept), 8)
        wanted = [image for image in everything.results if Path(image.path).stem in ("1", "5", "7")]
        assert [(image.path, image.similarity) for image in part.results] == [
            (image.path, image.similarity) for image in wanted
        ]
        with pytest.raises(anyreid.UserError, match="has no image that passes the filter"):
            part_of(whole, lambda image: False)


def test_progress_is_told(model: anyreid.Model, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    told: list[tuple[str, int, int]] = []
    anyreid.Gallery(tmp_path / "copy", model, progress=lambda *one: told.append(one))
    assert told[-1] == ("encode rgb", 8, 8) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    told.clear()
    model.embed(nir=photos / "1.png")
    assert not told


def test_an_evaluation_is_that_of_the_test_script(run: Path, tmp_path: Path, call_script: Run) -> None:
    done = call_script("test", "--run", run, "--device", "cpu", "--output", tmp_path / "out")
    measured = anyreid.evaluate(run, device="cpu", output=str(tmp_path / "again"))
    assert done.code == 0 and done.out.startswith(measured.table + "\nwritten: ") and str(measured) == measured.table
    written, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "again"))
    assert measured.rows == written["rows"] == again["rows"] and measured.averages == written["averages"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert (
        {Path(name).name for name in measured.files} <= names == {path.name for path in (tmp_path / "again").iterdir()}
    )


def test_what_the_model_takes(model: anyreid.Model) -> None:
    assert model.modalities == ("rgb", "nir", "cp", "sk", "text") and model.similarity == "cosine"
    assert len(model.combinations) == 16 and model.combinations[0] == "RGB" and "NIR+CP+SK+TEXT" in model.combinations
    assert not [name for name in model.combinations if "RGB+" in name or "+RGB" in name]
    assert not model.follows_instructions and model.dim == 64


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "query: nothing to search for; give rgb alone or any of nir, cp, sk, text"),
    "rgb beside text": ({"rgb": ["a"], "text": ["b"]}, "rgb cannot be mixed with text"),
    "lengths": ({"nir": ["a", "b"], "text": ["c"]}, "here are 2 of nir, 1 of text; give lists of one length"),
    "no file": ({"nir": ["none.png"]}, r"nir\[0\]: no such image: .*none.png"),
    "floats": ({"sk": [np.zeros((4, 4, 3))]}, r"sk\[0\] is an array of float64 \(4, 4, 3\): give \(height, width, 3\)"),
    "gray": ({"sk": [np.zeros((4, 4), np.uint8)]}, r"sk\[0\] is an array of uint8 \(4, 4\)"),
    "empty": ({"sk": [np.zeros((0, 4, 3), np.uint8)]}, r"sk\[0\] is an array of uint8 \(0, 4, 3\)"),
    "no picture": ({"cp": [Image.new("RGB", (2, 2)), 3.5]}, r"cp\[1\] is of type float: give a path"),
    "none": ({"cp": [None]}, r"cp\[0\] is nothing: give a path"),
    "no text": ({"text": [3]}, r"text\[0\] is of type int: give a text"),
    "no image bytes": ({"nir": [b"GIF of a kind"]}, r"<nir\[0\]>: bytes that are no image"),
    "cut bytes": ({"nir": [b"CUT"]}, r"<nir\[0\]>: cannot be decoded"),
    "deep": ({"nir": [Image.new("I;16", (4, 4))]}, r"<nir\[0\]>: more than 8 bits a channel"),
    "told": ({"nir": [Image.new("RGB", (4, 4))], "instruction": "red"}, "this model follows no instructions"),
    "told twice": ({"text": ["a"], "instruction": "red", "instruction_image": "b"}, "not both"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_queries_are_refused(case: str, model: anyreid.Model, photos: Path) -> None:
    given, message = WRONG[case]
    if case == "cut bytes":
        given = {"nir": [(photos / "0.png").read_bytes()[:-40]]}
    with pytest.raises(anyreid.UserError, match=message) as caught:
        model.embed(**given)
    assert "\n" not in str(caught.value)


def test_a_closed_picture_is_refused(model: anyreid.Model, photos: Path) -> None:
    picture = Image.open(photos / "0.png")
    picture.close()
    with pytest.raises(anyreid.UserError, match=r"<nir\[0\]>: cannot be decoded"):
        model.embed(nir=[picture])


def test_galleries_that_cannot_be_meant(model: anyreid.Model, photos: Path, index: Path, tmp_path: Path) -> None:
    features = model.embed(text=["a coat"])
    # Values of other types, as a notebook may give them.
    load: Any = anyreid.load
    gallery: Any = anyreid.Gallery
    as_features: Any = model.as_features
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: gallery(tmp_path / "none", model), "no such gallery: .*none; give an index, a folder"),
        (lambda: gallery(tmp_path / "none"), "no such gallery: "),
        (lambda: gallery(photos / "0.png", model), "no such gallery folder: .*0.png; give a folder"),
        (lambda: gallery(photos), "is no gallery index, so that its images have to be encoded: give model="),
        (lambda: gallery(), "the test gallery is no gallery index"),
        (lambda: gallery(tmp_path / "empty", model), "holds no image"),
        (lambda: gallery(tmp_path / "bad", model), "1.png .*not an image"),
        (lambda: gallery(index, modality="sk"), "images of a gallery are rgb or nir"),
        (lambda: gallery(index, modality="nir").search(features), "holds RGB images, and NIR ones"),
        (lambda: gallery(index, told="crop"), "were told nothing"),
        (lambda: gallery(photos, model, told="crop"), "tells gallery images nothing"),
        (lambda: gallery(photos, model, nprobe=3), "only an index has codes"),
        (lambda: gallery(index).search(features, top_k=0), "top_k 0: must be at least 1"),
        (lambda: gallery(index).search(features[:, :5]), r"features are \(N, 64\) float32"),
        (lambda: as_features(np.zeros((2, 3)), "nir"), r"are \(N, 64\), and these are \(2, 3\)"),
        (lambda: as_features(["a"], "nir"), "an array"),
        (lambda: as_features(np.zeros((2, 64)), "heat"), "is not a combination"),
        (lambda: as_features(np.zeros((2, 64)), "RGB+NIR"), r"RGB\+NIR: this model takes RGB, NIR, CP"),
        (lambda: as_features(np.full((2, 64), np.nan), "NIR"), "features are finite numbers"),
        (lambda: as_features(np.zeros((2, 64)), None), "a combination None: is of type NoneType; give str"),
        (lambda: gallery(index).search(features, top_k="5"), "top_k '5': is of type str; give int"),
        (lambda: gallery(index).search(features, top_k=2.5), "top_k 2.5: is of type float"),
        (lambda: gallery(index).search(features, top_k=True), "top_k True: is of type bool"),
        (lambda: gallery(index).search(features, error_rate="0.1"), "error_rate '0.1': is of type str"),
        (lambda: gallery(index, told="same"), "told 'same': images of a gallery are told none or crop"),
        (lambda: gallery(index, nprobe=-3), "nprobe -3: must be at least 1"),
        (lambda: gallery(5, model), "gallery 5: is of type int; give str or PathLike"),
        (lambda: gallery(photos, "runs/a"), "model 'runs/a': is of type str; give Model"),
        (lambda: model.error_rates("NIR", ["heat"]), "gallery 'heat': is no modality; give a list of some of rgb"),
        (lambda: load(3), "model 3: is of type int; give str or PathLike"),
        (lambda: load(""), "no model is named"),
        (lambda: anyreid.average(np.zeros((2, 64))), "a mean is taken of features"),
    ]
    for call, message in cases:
        with pytest.raises(anyreid.UserError, match=message):
            call()


def test_another_model_is_refused(
    model: anyreid.Model, calibrated: anyreid.Model, data: Path, run: Path, photos: Path, index: Path, tmp_path: Path
) -> None:
    other_run = write_run(tmp_path / "other", data, seed=2)
    with global_state_kept():
        other = anyreid.load(other_run, device="cpu")
    features = other.embed(text=["a coat"])
    with pytest.raises(anyreid.UserError, match="photos.index"):
        anyreid.Gallery(index).search(features)
    with pytest.raises(anyreid.UserError, match="photos.index"):
        anyreid.Gallery(index, other)
    with pytest.raises(anyreid.UserError, match="encoded by another model than .*other"):
        anyreid.Gallery(photos, model).search(features)
    shutil.copy(run / "best.calibration.json", other_run)
    with pytest.raises(anyreid.UserError, match="was fitted to another model"):
        anyreid.Gallery(photos, other).search(features)


def test_a_checkpoint_file_is_loaded(run: Path, tmp_path: Path, model: anyreid.Model) -> None:
    wanted = model.embed(text=["a coat"])
    shutil.copy(run / "best.pth", tmp_path / "released.pth")
    with global_state_kept():
        with pytest.raises(anyreid.UserError, match="no such configuration: .*config.yaml"):
            anyreid.load(tmp_path / "released.pth")
        with pytest.raises(anyreid.UserError, match="no such run directory"):
            anyreid.load(tmp_path / "none")
        with pytest.raises(anyreid.UserError, match="no such checkpoint"):
            anyreid.load(tmp_path / "none.pth", config=str(run / "config.yaml"))
        for options in ({"config": str(run / "config.yaml")}, {}):
            found = anyreid.load(tmp_path / "released.pth", device="cpu", **options)
            assert np.array_equal(found.embed(text=["a coat"]), wanted)
            shutil.copy(run / "config.yaml", tmp_path / "config.yaml")
        assert np.array_equal(anyreid.load(run / "best.pth", device="cpu").embed(text=["a coat"]), wanted)


def test_an_official_checkpoint_is_loaded(tmp_path: Path) -> None:
    sizes = oracle.Sizes(vocab=49408, text_length=12)
    state = oracle.released_state(sizes)
    torch.save(state, tmp_path / "best.pth")
    flat = {**sizes.flat(), "img_size": [*sizes.image]}
    (tmp_path / "configs.yaml").write_text(yaml.safe_dump(flat))
    picture = np.random.default_rng(0).integers(0, 256, (*sizes.image, 3), dtype=np.uint8)
    pixels = (picture / 255 - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    with global_state_kept():
        features = anyreid.load(tmp_path / "best.pth", device="cpu").embed(nir=[picture])
    wanted = oracle.encode_image(state, sizes, "nir", images)[:, 0]
    np.testing.assert_allclose(features, (wanted / wanted.norm()).numpy(), atol=1e-5)


def test_what_is_to_be_known_is_logged(run: Path, model: anyreid.Model, caplog: pytest.LogCaptureFixture) -> None:
    model.embed(text=["a man in a coat " * 20])
    assert "lose their ends" in caplog.text and "has not finished" not in caplog.text
    with global_state_kept():
        anyreid.load(run, device="cpu")
    assert "has not finished" in caplog.text


def test_a_package_of_another_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec

    def spec(name: str, package: str | None = None) -> Any:
        return SimpleNamespace(origin=str(tmp_path / "datasets.py")) if name == "datasets" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    with pytest.raises(ImportError, match=r"anyreid needs its own package 'datasets' .*first on the path"):
        anyreid._check_packages()
