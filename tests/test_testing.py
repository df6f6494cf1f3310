"""Covers: test, solver/commands/evaluate, solver/reports/results, solver/reports/features_file. test.py as a whole on a
small rendered benchmark: files written, wrong input refused, nothing half-written.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.load import build_experiment, save_experiment
from configs.vocabulary import ORBENCH_KEYS, combination_name
from datasets.synthetic.render import render
from model.build import build_model, initialise
from solver.commands.evaluate import run_test
from solver.commands.search import SearchOptions, run_search
from solver.reports.results import compare_files
from utils.checkpoint_io import save_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.figures

ROOT = Path(__file__).parent.parent
IDENTITIES, IMAGES = 3, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered benchmark: 3 test persons, 2 items of each modality."""
    root = tmp_path_factory.mktemp("data")
    render(
        "orbench",
        str(root),
        identities=2,
        test_identities=IDENTITIES,
        seed=0,
        image_size=(64, 32),
        images_per_modality=IMAGES,
        processes=1,
    )
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run directory with random weights."""
    directory = tmp_path_factory.mktemp("run")
    config = build_experiment(
        [
            (
                "test",
                {
                    "data": {"root": str(data)},
                    "model": {
                        "image_size": [32, 16],
                        "embed_dim": 64,
                        "vision_width": 64,
                        "vision_layers": 1,
                        "text_width": 64,
                        "text_layers": 1,
                        "text_length": 8,
                        "mmt_depth": 1,
                        "lora": {"layers": 1},
                    },
                },
            )
        ],
        name="small",
    )
    save_experiment(config, directory / "config.yaml")
    torch.manual_seed(1)
    model = build_model(config.family, config.model, 2)
    initialise(config.family, model, config.model)
    save_checkpoint(
        directory / "best.pth",
        {
            "model": model.state_dict(),
            "config": {},
            "family": "reid5o",
            "num_identities": 2,
            "epoch": 4,
            "step": 40,
            "selected_on": "val",
            "data_fingerprint": "",
        },
    )
    return directory


def evaluate(run: Path, output: Path, *overrides: str) -> dict:
    run_test(run=str(run), config="", checkpoint="", output=str(output), device="cpu", overrides=overrides)
    return json.loads((output / "results.json").read_text())


def test_exported_features_give_the_table(run: Path, data: Path, tmp_path: Path) -> None:
    """Rank-1 of every list, computed from the file alone, is that of results.json."""
    where = {"run": str(run), "config": "", "checkpoint": "", "device": "cpu", "overrides": [f"data.root={data}"]}
    run_test(**where, output=str(tmp_path), export=str(tmp_path / "sub" / "features"))  # type: ignore[arg-type]
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["made"]["overrides"] == [f"data.root={data}"] and document["options"]["ap"] == "sum"
    with np.load(tmp_path / "sub" / "features.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    gallery = arrays["features"][arrays["gallery_rows"]]
    for row in document["rows"]:
        task = row["task"]
        nearest = (arrays["features"][arrays[f"{task}/rows"]] @ gallery.T).argmax(axis=1)
        right = arrays["gallery_person_ids"][nearest] == arrays[f"{task}/person_ids"]
        assert 100 * right.mean() == pytest.approx(row["R1"])
        kinds = task.split("+")
        for names in arrays["source_names"][arrays[f"{task}/sources"]]:
            folders = [Path(name).parts[-3].upper() if kind != "TEXT" else kind for kind, name in zip(kinds, names)]
            assert folders == kinds
    with pytest.raises(UserError, match="results.json is a file, not a folder"):
        run_test(**where, output="", export=str(tmp_path / "results.json" / "x"))  # type: ignore[arg-type]


def test_the_script_prints_the_table_and_writes_its_files(run: Path, tmp_path: Path) -> None:
    given = ["--output", str(tmp_path / "out"), "--device", "cpu", "eval.ap=trapezoid"]
    done = subprocess.run(
        [sys.executable, "test.py", "--run", str(run), *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["ap"] == document["options"]["ap"] == "trapezoid" and "trapezoid form" in done.stdout
    assert [row["task"] for row in document["rows"]] == [combination_name(key) for key in ORBENCH_KEYS]
    assert [row["task"] for row in document["averages"]] == [
        "ONE_AVER",
        "TWO_AVER",
        "THREE_AVER",
        "FOUR_AVER",
        "ALL_AVER",
    ]
    assert {(row["queries"], row["gallery"]) for row in document["rows"]} == {
        (IDENTITIES * IMAGES, IDENTITIES * IMAGES)
    }
    assert document["counts"]["sources_encoded_total"] == 5 * IDENTITIES * IMAGES
    assert document["counts"]["query_list_entries"] == 32 * IDENTITIES * IMAGES
    assert (document["selected_on"], document["checkpoint"]["step"]) == ("val", 40)
    for row in document["rows"] + document["averages"]:
        assert f"{row['mAP']:.3f}" in next(
            line for line in done.stdout.splitlines() if line.startswith(f"| {row['task']} ")
        )


def test_two_evaluations_agree_whatever_the_blocks_and_tiers(run: Path, tmp_path: Path) -> None:
    first = evaluate(run, tmp_path / "a")
    second = evaluate(
        run, tmp_path / "b", "eval.batch_size=5", "eval.cache_device_mb=0", "eval.cache_host_mb=0", "eval.memory_mb=1"
    )
    assert second["token_cache"]["stored"] == "plain tokens" and second["token_cache"]["mb"]["disk"] > 0
    for row, other in zip(first["rows"], second["rows"]):
        assert other == pytest.approx(row, abs=1e-6)
    assert "0 queries better, 0 worse" in compare_files(
        tmp_path / "a" / "results.json", tmp_path / "b" / "results.json"
    )


def test_missing_lists_and_damaged_images_are_reported(run: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    subprocess.run(["cp", "-r", str(data), str(copy)], check=True)
    lists = copy / "ORBench" / "test_gallery_and_queries.json"
    content = json.loads(lists.read_text())
    del content["NIR+CP"]
    lists.write_text(json.dumps(content))
    damaged = copy / "ORBench" / content["NIR"][0][1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match=damaged.name):
        evaluate(run, tmp_path / "stopped", f"data.root={copy}")
    assert not (tmp_path / "stopped").exists()
    document = evaluate(run, tmp_path / "skipped", f"data.root={copy}", "data.on_error=skip")
    assert len(document["rows"]) == 31 and document["missing_lists"] == ["NIR+CP"]
    two = next(row for row in document["averages"] if row["task"] == "TWO_AVER")
    assert (two["lists"], two["expected_lists"]) == (11, 12)
    assert document["counts"]["unreadable_sources"] == 1 and document["rows"][0]["queries"] == IDENTITIES * IMAGES - 1


def test_a_configuration_and_a_checkpoint_replace_the_run(run: Path, tmp_path: Path) -> None:
    text = run_test(
        run="",
        config=str(run / "config.yaml"),
        checkpoint=str(run / "best.pth"),
        output=str(tmp_path),
        device="cpu",
        overrides=["eval.precision=bf16"],
    )
    assert (
        str(tmp_path / "results.json") in text
        and json.loads((tmp_path / "results.json").read_text())["precision"] == "bf16"
    )


def test_wrong_roots_and_devices_leave_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        evaluate(run, tmp_path / "out", f"data.root={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="unknown device"):
        run_test(run=str(run), config="", checkpoint="", output=str(tmp_path / "out"), device="tpu", overrides=[])
    assert not (tmp_path / "out").exists()


def write_pictures(root: Path, names: list[str]) -> Path:
    """Write a picture of its own to each path; return root."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Market-1501's layout: 4 training and 2 test persons, a distractor, a junk image."""
    folder = "Market-1501-v15.09.15"
    names = [
        f"{folder}/bounding_box_train/{person:04d}_c{camera}s1_000{number}51_00.jpg"
        for person in (2, 7, 10, 11)
        for camera in (1, 2)
        for number in (1, 2)
    ]
    names += [f"{folder}/query/{person:04d}_c1s1_000151_00.jpg" for person in (1, 3)]
    names += [
        f"{folder}/bounding_box_test/{person:04d}_c{camera}s1_000151_01.jpg"
        for person in (1, 3)
        for camera in (1, 2, 3)
    ]
    names += [f"{folder}/bounding_box_test/{name}_c4s1_000401_03.jpg" for name in ("0000", "-1")]
    return write_pictures(tmp_path_factory.mktemp("market"), names)


@pytest.fixture(scope="module")
def sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYSU-MM01's layout: 3 training, 2 validation and 3 test persons with 2 images in each camera."""
    root = tmp_path_factory.mktemp("sysu")
    write_pictures(
        root,
        [
            f"SYSU-MM01/cam{camera}/{person:04d}/{number:04d}.jpg"
            for person in range(1, 9)
            for camera in range(1, 7)
            for number in (1, 2)
        ],
    )
    (root / "SYSU-MM01" / "exp").mkdir()
    for split, persons in (("train", "1,2,3"), ("val", "4,5"), ("test", "6,7,8")):
        (root / "SYSU-MM01" / "exp" / f"{split}_id.txt").write_text(persons + "\n", encoding="utf-8")
    return root


def test_market_in_its_own_layout(run: Path, market: Path, tmp_path: Path) -> None:
    text = run_test(
        run=str(run),
        config="",
        checkpoint="",
        output=str(tmp_path),
        device="cpu",
        overrides=["data.dataset=market1501", f"data.root={market}", "eval.flip=true", "eval.ap_topk=3"],
    )
    document = json.loads((tmp_path / "results.json").read_text())
    assert [row["task"] for row in document["rows"]] == ["market1501", "market1501 [ap_topk=3]", "market1501 [flip]"]
    assert {(row["queries"], row["gallery"]) for row in document["rows"]} == {(2, 7)}
    assert document["rows"][0]["protocol"] == "market1501" and document["protocol"].startswith("market1501: ")
    assert (
        any("junk" in note and "1" in note for note in document["notes"])
        and document["data"]["dataset"] == "market1501"
    )
    assert (
        not (tmp_path / "combinations.png").exists() and "market1501 [flip]" in (tmp_path / "report.html").read_text()
    )
    assert "| market1501 " in text and "ALL_AVER" not in text


def test_sysu_draws_encode_each_image_once(run: Path, sysu: Path, tmp_path: Path) -> None:
    overrides = ["data.dataset=sysu", f"data.root={sysu}"]
    text = run_test(
        run=str(run), config="", checkpoint="", output=str(tmp_path / "a"), device="cpu", overrides=overrides
    )
    document = json.loads((tmp_path / "a" / "results.json").read_text())
    assert len(document["rows"]) == 40 and [row["task"] for row in document["averages"]] == [
        "sysu-all-single-seeded",
        "sysu-all-multi-seeded",
        "sysu-indoor-single-seeded",
        "sysu-indoor-multi-seeded",
        "ALL_AVER",
    ]
    # 3 persons x 2 images in 2 infrared cameras; each visible image once for all modes and draws.
    assert (
        document["counts"]["sources_encoded"] == {"rgb": 3 * 4 * 2, "nir": 12}
        and document["counts"]["query_list_entries"] == 40 * 12
    )
    assert "sysu-indoor-single-seeded (mean of 10)" in text and "sysu-indoor-single-seeded draw" not in text
    assert not any("valid match" in note for note in document["notes"])
    chosen = evaluate(run, tmp_path / "b", *overrides, "data.protocols=[sysu-indoor-single-seeded]")
    assert [row for row in document["rows"] if row["group"] == "sysu-indoor-single-seeded"] == chosen["rows"]
    assert "0 queries better, 0 worse" in compare_files(
        tmp_path / "a" / "results.json", tmp_path / "b" / "results.json"
    )


def test_wrong_protocols_are_refused_before_anything_is_written(run: Path, market: Path, tmp_path: Path) -> None:
    for override, message in (
        ("data.protocols=[market]", "did you mean 'market1501'"),
        ("data.dataset=marked1501", "did you mean 'market1501'"),
        ("eval.relevance=bert", "no encoder of annotations"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(
                run,
                tmp_path / "out",
                "data.dataset=market1501",
                f"data.root={market}",
                "eval.thresholds=[0.5]",
                override,
            )
    assert not (tmp_path / "out").exists()


def test_a_search_in_the_gallery_of_a_protocol(run: Path, sysu: Path, market: Path, tmp_path: Path) -> None:
    options = SearchOptions(
        run=str(run),
        tasks=("sysu-all-single-seeded draw 3",),
        index=(2,),
        top_k=4,
        output=str(tmp_path / "found.png"),
        device="cpu",
        overrides=["data.dataset=sysu", f"data.root={sysu}"],
        gallery_cache=str(tmp_path / "cache"),
    )
    assert "first match at rank" in run_search(options)
    document = json.loads((tmp_path / "found.json").read_text())
    # The list's own draw: one image of each of 3 persons in 4 cameras.
    assert document["gallery"]["images"] == 12 and len(document["queries"][0]["results"]) == 4
    assert "SYSU" in document["gallery"]["name"].upper() and all(
        "person_id" in found for found in document["queries"][0]["results"]
    )
