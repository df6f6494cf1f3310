"""Covers: solver/calibration, solver/commands/calibrate, solver/search/arguments, infer. Thresholds beside a
checkpoint: fitted on validation persons, measured on the test set, used for one model only.
"""

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import Run, global_state_kept
from small_run import write_run
from tiny_orbench import write_orbench

import datasets.loading.tokenizers
from configs.vocabulary import Modality
from datasets.loading.tokenizers import ClipTokenizer
from solver.calibration import Calibration, Cutoff, calibration_file, check_calibrated, read_calibration
from solver.commands.calibrate import run_calibration
from solver.evaluation.verification import ErrorRates
from solver.runs import open_run
from solver.search.arguments import SearchOptions
from utils.errors import UserError
from utils.retrieval.error_rates import Thresholds, Verification

NIR, SK, TEXT, RGB = Modality.NIR, Modality.SK, Modality.TEXT, (Modality.RGB,)
tokenizer = functools.lru_cache(maxsize=1)(ClipTokenizer)
OPTIONS = ("--device", "cpu")


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the vocabulary once for all commands of this file."""
    monkeypatch.setattr(datasets.loading.tokenizers, "ClipTokenizer", tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"), identities=24, test_identities=12, images=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that left half of its training persons out."""
    return write_run(tmp_path_factory.mktemp("runs") / "small", data, data={"val_fraction": 0.5})


@pytest.fixture
def run(whole: Path) -> Any:
    yield whole
    for left in whole.glob("*.calibration.json"):
        left.unlink()


@pytest.fixture
def calibrated(run: Path, calibration_text: str) -> Path:
    """The run with its thresholds."""
    (run / "best.calibration.json").write_text(calibration_text)
    return run


@pytest.fixture(scope="module")
def calibration_text(whole: Path) -> str:
    with global_state_kept():
        run_calibration(SearchOptions(run=str(whole), calibrate="val", device="cpu"))
    return (whole / "best.calibration.json").read_text()


def stored(run: Path) -> dict[str, Any]:
    return json.loads((run / "best.calibration.json").read_text())


def test_thresholds_are_fitted_on_validation_persons_and_lie_beside_the_checkpoint(run: Path, call_script: Run) -> None:
    done = call_script("infer", "--run", str(run), "--calibrate", *OPTIONS)
    assert done.code == 0 and "thresholds set on 12 persons of the val split of orbench" in done.out
    document = stored(run)
    assert document["data"]["split"] == "val" and document["data"]["persons"] == 12
    assert document["model"]["weights"] == open_run(str(run)).fingerprint
    nir = document["error_rates"]["NIR"]
    # 36 queries and 36 images of 12 persons.
    assert nir["comparisons"] == {"genuine": 36 * 3, "impostor": 36 * 33}
    assert [point["fmr_target"] for point in nir["matching"]] == [0.1, 0.01]
    assert [point["fpir_target"] for point in nir["identification"]] == [0.1]
    point = nir["identification"][0]
    assert point["fpir"]["errors"] == 3 and point["fpir"]["trials"] == 36
    assert f"NIR: above from {point['threshold']:.4f} on (10 % false alarms)" in done.out
    found = read_calibration(open_run(str(run)))
    assert found is not None and not found.note
    cutoff = found.cutoff((NIR,), RGB)
    assert cutoff is not None and (cutoff.threshold, cutoff.rate) == (point["threshold"], 0.1)
    # Parts stand in any order.
    assert found.cutoff((TEXT, NIR), RGB) == found.cutoff((NIR, TEXT), RGB) is not None
    assert found.cutoff((Modality.RGB,), RGB) is None


def test_thresholds_are_measured_on_the_test_set(calibrated: Path, call_script: Run, tmp_path: Path) -> None:
    run, output = calibrated, tmp_path / "results"
    done = call_script("test", "--run", str(run), "eval.verification=true", "--output", str(output), *OPTIONS)
    assert done.code == 0 and "thresholds fitted on validation persons of orbench (best.calibration.json)" in done.out
    measured = json.loads((output / "results.json").read_text())["verification"]
    fitted, met = stored(run)["error_rates"], measured["calibrated"]["error_rates"]
    # The test lists have fewer combinations than are drawn for a validation.
    assert set(met) < set(fitted) and set(met) == set(measured["own_thresholds"]["error_rates"])
    for name in met:
        for kind in ("matching", "identification"):
            assert [p["threshold"] for p in met[name][kind]] == [p["threshold"] for p in fitted[name][kind]]
    own = measured["own_thresholds"]["error_rates"]["NIR"]["matching"][0]
    assert own["threshold"] != met["NIR"]["matching"][0]["threshold"] and own["fmr"]["rate"] <= 0.1
    assert (output / "error_rates.json").is_file() and (output / "error_rates.png").is_file()
    # Without the option nothing of it is left from the last time.
    done = call_script("test", "--run", str(run), "--output", str(output), *OPTIONS)
    assert "FNMR" not in done.out and not (output / "error_rates.json").exists()
    assert "verification" not in json.loads((output / "results.json").read_text())


def test_thresholds_of_the_test_set_are_stamped(run: Path, call_script: Run, tmp_path: Path) -> None:
    done = call_script("infer", "--run", str(run), "--calibrate-test", *OPTIONS)
    assert done.code == 0 and "fitted on the test set" in done.out
    assert stored(run)["data"]["split"] == "test"
    found = read_calibration(open_run(str(run)))
    assert found is not None and found.note == "thresholds fitted on the test set"
    options = ("eval.verification=true", "--output", str(tmp_path))
    done = call_script("test", "--run", str(run), *options, *OPTIONS)
    assert "thresholds fitted on the test set itself" in done.out
    measured = json.loads((tmp_path / "results.json").read_text())["verification"]
    assert measured["calibrated"]["error_rates"] == measured["own_thresholds"]["error_rates"]


def test_thresholds_of_another_model_are_refused(
    calibrated: Path, data: Path, call_script: Run, tmp_path: Path
) -> None:
    run = calibrated
    other = write_run(tmp_path / "other", data, seed=2, data={"val_fraction": 0.5})
    copied = other / "best.calibration.json"
    copied.write_text((run / "best.calibration.json").read_text())
    with pytest.raises(
        UserError, match=r"fitted to another model than .*best\.pth \(different: weights\).*--calibrate"
    ):
        read_calibration(open_run(str(other)))
    done = call_script("test", "--run", str(other), "eval.verification=true", *OPTIONS)
    assert done.code == 2 and "fitted to another model" in done.error and not (other / "results.json").exists()
    # Other options of the same weights are another model, too.
    with pytest.raises(UserError, match=r"\(different: model\)"):
        read_calibration(open_run(str(run), overrides=["model.mmt_heads=2"]))
    assert call_script("infer", "--run", str(other), "--calibrate", *OPTIONS).code == 0


def summed(text: str) -> str:
    """The text with the checksum of what it holds: what another version of the code may have written."""
    content = json.loads(text)
    del content["checksum"]
    plain = json.dumps(content, sort_keys=True).encode()
    return json.dumps({**content, "checksum": hashlib.sha256(plain).hexdigest()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "best.calibration.json"),
        (lambda text: text.replace('"format": 2', '"format": 99'), "not a calibration of this version"),
        (lambda text: re.sub(r'"threshold": [-\d.e]+', '"threshold": 0.5', text), "content is not what was written"),
        (lambda text: text.replace('"checksum"', '"sum"'), "content is not what was written"),
        (lambda text: summed(re.sub(r'"threshold": [-\d.e]+', '"threshold": "high"', text)), "is damaged"),
        (lambda text: summed(re.sub(r'"threshold": [-\d.e]+', '"threshold": 1e999', text)), "is not a number"),
        (lambda text: summed(text.replace('"searches"', '"found"')), "is damaged"),
        (lambda text: "[]", "not a calibration of this version"),
    ],
)
def test_a_damaged_file_is_refused(calibrated: Path, change: Any, message: str) -> None:
    file = calibrated / "best.calibration.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=message):
        read_calibration(open_run(str(calibrated)))


@pytest.mark.parametrize(
    ("sections", "overrides", "message"),
    [
        ({"train": {"select": "last"}}, (), "trained with train.select=last, on the validation persons too"),
        ({"train": {"select": "last"}}, ("train.select=val",), "train.select decides who was held out"),
        ({}, ("data.val_fraction=0.3",), "data.val_fraction decides who was held out"),
        ({"data": {"val_fraction": 0.2}}, (), "has 5 persons, and a calibration takes at least 10"),
    ],
)
def test_persons_that_say_nothing_are_refused(
    sections: dict[str, Any], overrides: tuple[str, ...], message: str, data: Path, call_script: Run, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", data, **{"data": {"val_fraction": 0.5}, **sections})
    done = call_script("infer", "--run", str(run), "--calibrate", *overrides, *OPTIONS)
    assert done.code == 2 and message in done.error
    assert not list(run.glob("*calibration*"))
    if "train" in sections:
        assert call_script("infer", "--run", str(run), "--calibrate-test", *OPTIONS).code == 0


def test_data_that_have_changed_since_the_training_are_refused(data: Path, call_script: Run, tmp_path: Path) -> None:
    """Other persons are held out of them, such as were trained on."""
    run = write_run(tmp_path / "run", data, data={"val_fraction": 0.5})
    assert call_script("infer", "--run", str(run), "--calibrate", *OPTIONS).code == 0
    own = stored(run)["data"]["fingerprint"]
    content = torch.load(run / "best.pth", weights_only=True)
    for fingerprint, options, words in (
        (own, (), ""),
        (
            "0123",
            (),
            f"(fingerprint 0123 there, {own} here), so that nobody knows whether the validation persons are new",
        ),
        ("0123", (f"data.root={data}",), "set on other data than the model was trained on"),
    ):
        (run / "best.calibration.json").unlink(missing_ok=True)
        torch.save({**content, "data_fingerprint": fingerprint}, run / "best.pth")
        done = call_script("infer", "--run", str(run), "--calibrate", *options, *OPTIONS)
        refused = bool(words) and not options
        assert done.code == (2 if refused else 0) and words in (done.error if refused else done.out)
        assert (run / "best.calibration.json").exists() is not refused
        assert ("other data" in done.out) is bool(options)


def test_weights_of_another_training_are_said(data: Path, call_script: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data, data={"val_fraction": 0.5}, train={"init_from": "runs/first"})
    done = call_script("infer", "--run", str(run), "--calibrate", *OPTIONS)
    assert done.code == 0 and "began with the weights of runs/first: persons that were held out here" in done.out
    done = call_script("infer", "--run", str(run), "--calibrate-test", *OPTIONS)
    assert done.code == 0 and "runs/first" not in done.out


def test_a_combination_with_too_few_searches_is_not_calibrated(call_script: Run, tmp_path: Path) -> None:
    few = write_orbench(tmp_path / "few", identities=20, test_identities=2, images=2)
    run = write_run(tmp_path / "run", few, data={"val_fraction": 0.5})
    done = call_script("infer", "--run", str(run), "--calibrate", *OPTIONS)
    # Ten persons with two queries of one modality each; more of several.
    assert done.code == 0 and "NIR: not calibrated, 20 searches are too few" in done.out
    found = read_calibration(open_run(str(run)))
    assert found is not None and found.cutoff((NIR,), RGB) is None and found.cutoff((NIR, SK), RGB) is not None


def test_a_set_without_any_threshold_is_refused() -> None:
    one = Verification(
        persons=12,
        queries=12,
        genuine=24,
        impostor=264,
        absent_searches=12,
        present_searches=12,
        searched_images=20.0,
        matching=(),
        identification=(),
    )
    with pytest.raises(UserError, match="the val split of x has at most 12 searches of one kind, .* of 10% takes 30"):
        check_calibrated(ErrorRates(combinations={"NIR": one}, pooled=one, persons=12), "the val split of x")


def test_a_calibration_searches_nothing(run: Path, call_script: Run) -> None:
    for more in (("--text", "a coat"), ("--gallery", "photos"), ("--export", "f.npz"), ("--calibrate-test",)):
        done = call_script("infer", "--run", str(run), "--calibrate", *more)
        assert done.code == 2 and not list(run.glob("*calibration*"))


def test_false_alarms_grow_with_the_gallery() -> None:
    cutoff = Cutoff(threshold=0.7, rate=0.01, images=100)
    # 1 - 0.99 ^ 3 = 0.029701, worked by hand.
    assert cutoff.expected_rate(300) == pytest.approx(0.029701) and cutoff.expected_rate(100) == pytest.approx(0.01)


def test_the_lowest_false_alarm_rate_answers() -> None:
    found = Calibration(
        file=Path("best.calibration.json"),
        split="val",
        dataset="d",
        gallery=frozenset({"rgb"}),
        thresholds={"SK": Thresholds(identification={0.1: 0.5, 0.01: 0.8}), "NIR": Thresholds(matching={0.1: 0.3})},
        images={"SK": 50.0, "NIR": 50.0},
    )
    assert found.cutoff((SK,), RGB) == Cutoff(threshold=0.8, rate=0.01, images=50.0)
    assert found.cutoff((NIR,), RGB) is None and found.cutoff((SK,), (NIR,)) is None
    assert dataclasses.replace(found, split="test").note
    assert calibration_file(Path("a/last.pth")) == Path("a/last.calibration.json")


def searched(run: Path, call_script: Run, tmp_path: Path, *options: str) -> tuple[Any, dict[str, Any], str]:
    """What a search prints, its JSON file and its page."""
    done = call_script("infer", "--run", str(run), "--output", str(tmp_path / "found.png"), *options, *OPTIONS)
    assert done.code == 0, done.err
    return done, json.loads((tmp_path / "found.json").read_text()), (tmp_path / "found.html").read_text()


def set_threshold(run: Path, name: str, threshold: float) -> None:
    """Write another threshold into the file of a run."""
    document = stored(run)
    for point in document["error_rates"][name]["identification"]:
        point["threshold"] = threshold
    (run / "best.calibration.json").write_text(summed(json.dumps(document)))


def test_a_hit_is_above_or_below_and_a_query_finds_somebody_or_nobody(
    calibrated: Path, call_script: Run, tmp_path: Path
) -> None:
    _, before, _ = searched(calibrated, call_script, tmp_path, "--task", "NIR", "--top-k", "36")
    values = [result["similarity"] for result in before["queries"][0]["results"]]
    assert len(set(values)) > 6 and values == sorted(values, reverse=True)
    # The fifth value is the threshold: it is at it, and so above.
    middle = next(row for row in before["queries"][0]["results"] if row["similarity"] < values[3])["similarity"]
    set_threshold(calibrated, "NIR", middle - 1e-6)
    count = sum(value >= middle for value in values)
    done, found, page = searched(calibrated, call_script, tmp_path, "--task", "NIR", "--top-k", "36")
    row = found["queries"][0]
    assert [result["answer"] for result in row["results"]] == ["above"] * count + ["below"] * (36 - count)
    assert row["calibration"]["answer"] == "somebody" and row["calibration"]["above"] == count
    assert row["calibration"]["false_alarm_rate"] == 0.1
    assert f"{count} above the threshold" in done.out and "(10 % false alarms)" in page and ", above" in done.out
    set_threshold(calibrated, "NIR", 1.5)
    done, found, page = searched(calibrated, call_script, tmp_path, "--task", "NIR", "--top-k", "2")
    assert "nobody above the threshold (10 % false alarms)" in done.out and "nobody above the threshold" in page
    assert found["queries"][0]["calibration"]["answer"] == "nobody"
    assert {result["answer"] for result in found["queries"][0]["results"]} == {"below"}
    assert "set on the val persons of orbench" in page


def test_everybody_above_counts_beyond_the_listed_ones(calibrated: Path, call_script: Run, tmp_path: Path) -> None:
    set_threshold(calibrated, "NIR", -2.0)
    _, found, _ = searched(calibrated, call_script, tmp_path, "--task", "NIR", "--top-k", "2")
    assert len(found["queries"][0]["results"]) == 2 and found["queries"][0]["calibration"]["above"] == 36


def test_queries_without_a_threshold_say_so(run: Path, calibration_text: str, call_script: Run, tmp_path: Path) -> None:
    done, found, page = searched(run, call_script, tmp_path, "--task", "NIR", "--top-k", "3")
    assert "infer.py --calibrate sets thresholds" in done.out and "not calibrated" in page
    assert {result["answer"] for result in found["queries"][0]["results"]} == {"not calibrated"}
    assert found["queries"][0]["calibration"] == {"answer": "not calibrated"}
    document = json.loads(calibration_text)
    del document["error_rates"]["NIR+TEXT"]
    (run / "best.calibration.json").write_text(summed(json.dumps(document)))
    done, found, _ = searched(run, call_script, tmp_path, "--task", "TEXT+NIR", "--top-k", "3")
    assert "not calibrated for queries of TEXT+NIR in this gallery" in done.out
    assert found["queries"][0]["calibration"] == {"answer": "not calibrated"}


def test_other_galleries_are_told_apart(calibrated: Path, data: Path, call_script: Run, tmp_path: Path) -> None:
    """A gallery of the user's own, and one that is much larger than those of the calibration."""
    drawing, images = sorted((data / "ORBench" / "sk").rglob("*.jpg"))[0], data / "ORBench" / "vis"
    done, found, _ = searched(calibrated, call_script, tmp_path, "--sk", str(drawing), "--gallery", str(images))
    assert "thresholds were set on orbench: in other pictures their rate of false alarms is not known" in done.out
    searched_images = found["queries"][0]["calibration"]["calibrated_images"]
    # 36 persons of three pictures against 36 images without a fifth of the persons.
    assert found["gallery"]["images"] == 108 and 25 < searched_images < 32
    rate = 100 * (1 - 0.9 ** (108 / searched_images))
    assert f"expect false alarms in up to {rate:.2g} % of searches" in done.out
    own, _, _ = searched(calibrated, call_script, tmp_path, "--task", "NIR")
    assert "false alarms is not known" not in own.out and "times those" not in own.out


def test_the_own_image_of_a_query_is_nobody(calibrated: Path, data: Path, call_script: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = sorted((data / "ORBench" / "nir").rglob("*.jpg"))[0]
    (folder / "copy.jpg").write_bytes(picture.read_bytes())
    set_threshold(calibrated, "NIR", -2.0)
    done, found, _ = searched(calibrated, call_script, tmp_path, "--nir", str(picture), "--gallery", str(folder))
    assert "nobody above the threshold" in done.out and found["queries"][0]["calibration"]["above"] == 0


def test_a_search_refuses_thresholds_of_another_model(
    calibrated: Path, data: Path, call_script: Run, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", data, seed=2)
    (other / "best.calibration.json").write_text((calibrated / "best.calibration.json").read_text())
    done = call_script("infer", "--run", str(other), "--task", "NIR", *OPTIONS)
    assert done.code == 2 and "was fitted to another model" in done.error and not list(other.glob("retrieval*"))
