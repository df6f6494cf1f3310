"""test.py as a whole on a small rendered benchmark: files written, wrong input refused, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.load import build_experiment, save_experiment
from configs.vocabulary import ORBENCH_KEYS, combination_name
from datasets.synthetic.render import render
from model.build import build_model, initialise
from solver.results import compare_files
from solver.testing import run_test
from utils.checkpoint_io import save_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
IDENTITIES, IMAGES = 3, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered benchmark: 3 test persons, 2 items of each modality."""
    root = tmp_path_factory.mktemp("data")
    render("orbench", str(root), identities=2, test_identities=IDENTITIES, seed=0, image_size=(64, 32), images_per_modality=IMAGES, processes=1)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run directory with random weights."""
    directory = tmp_path_factory.mktemp("run")
    config = build_experiment([("test", {"data": {"root": str(data)}, "model": {
        "image_size": [32, 16], "embed_dim": 64, "vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1,
        "text_length": 8, "mmt_depth": 1, "lora": {"layers": 1}}})], name="small")
    save_experiment(config, directory / "config.yaml")
    torch.manual_seed(1)
    model = build_model(config.family, config.model, 2)
    initialise(config.family, model, config.model)
    save_checkpoint(directory / "best.pth", {"model": model.state_dict(), "config": {}, "family": "reid5o", "num_identities": 2,
                                             "epoch": 4, "step": 40, "selected_on": "val", "data_fingerprint": ""})
    return directory


def evaluate(run: Path, output: Path, *overrides: str) -> dict:
    run_test(run=str(run), config="", checkpoint="", output=str(output), device="cpu", overrides=overrides)
    return json.loads((output / "results.json").read_text())


def test_the_script_prints_the_table_and_writes_its_files(run: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "test.py", "--run", str(run), "--output", str(tmp_path / "out"), "--device", "cpu"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["task"] for row in document["rows"]] == [combination_name(key) for key in ORBENCH_KEYS]
    assert [row["task"] for row in document["averages"]] == ["ONE_AVER", "TWO_AVER", "THREE_AVER", "FOUR_AVER", "ALL_AVER"]
    assert {(row["queries"], row["gallery"]) for row in document["rows"]} == {(IDENTITIES * IMAGES, IDENTITIES * IMAGES)}
    assert document["counts"]["sources_encoded_total"] == 5 * IDENTITIES * IMAGES
    assert document["counts"]["query_list_entries"] == 32 * IDENTITIES * IMAGES
    assert (document["selected_on"], document["checkpoint"]["step"]) == ("val", 40)
    for row in document["rows"] + document["averages"]:
        assert f"{row['mAP']:.3f}" in next(line for line in done.stdout.splitlines() if line.startswith(f"| {row['task']} "))


def test_two_evaluations_agree_whatever_the_blocks_and_tiers(run: Path, tmp_path: Path) -> None:
    first = evaluate(run, tmp_path / "a")
    second = evaluate(run, tmp_path / "b", "eval.batch_size=5", "eval.cache_device_mb=0", "eval.cache_host_mb=0", "eval.memory_mb=1")
    assert second["token_cache"]["stored"] == "plain tokens" and second["token_cache"]["mb"]["disk"] > 0
    for row, other in zip(first["rows"], second["rows"]):
        assert other == pytest.approx(row, abs=1e-6)
    assert "0 queries better, 0 worse" in compare_files(tmp_path / "a" / "results.json", tmp_path / "b" / "results.json")


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
    text = run_test(run="", config=str(run / "config.yaml"), checkpoint=str(run / "best.pth"), output=str(tmp_path), device="cpu",
                    overrides=["eval.precision=bf16"])
    assert str(tmp_path / "results.json") in text and json.loads((tmp_path / "results.json").read_text())["precision"] == "bf16"


def test_wrong_roots_and_devices_leave_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        evaluate(run, tmp_path / "out", f"data.root={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="unknown device"):
        run_test(run=str(run), config="", checkpoint="", output=str(tmp_path / "out"), device="tpu", overrides=[])
    assert not (tmp_path / "out").exists()
