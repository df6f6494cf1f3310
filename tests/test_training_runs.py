"""Covers: solver/commands/train, solver/run_directory, solver/training/checkpoint, solver/training/engine. Training on
a handful of records, the whole path: what a run keeps, what it begins with, what it refuses.
"""

import errno
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from linear_training import CPU, lines_of, same
from tiny_orbench import write_orbench
from torch import Tensor, nn

import model.layers
from configs.load import load_experiment
from configs.schema.experiment import ExperimentConfig
from model.build import build_model
from solver.commands.train import run_training
from solver.training.checkpoint import take_weights
from solver.training.engine import assemble
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("keep_logging")

ROOT = Path(__file__).resolve().parent.parent
SMOKE = str(ROOT / "configs" / "reid5o" / "smoke.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"))


def train(data: Path, output: Path, *overrides: str, overwrite: bool = False) -> str:
    """Run the tiny configuration without augmentation."""
    config = load_experiment(
        SMOKE, [f"data.root={data}", f"output_dir={output}", "name=run", "augment.flip=0", *overrides]
    )
    return run_training(config, device="cpu", overwrite=overwrite)


def weights(run: Path, name: str = "last.pth") -> dict[str, Tensor]:
    return load_checkpoint(run / name)["model"]


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
            "no space left while writing to .*metrics.jsonl",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "train.checkpoint_activations=true"),
    ],
)
def test_full_disk_and_full_device_are_told_in_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def write(self: Any, step: int, values: Any) -> None:
        raise error

    monkeypatch.setattr("utils.log.MetricsWriter.write", write)
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["failed.log"]
    assert "stopped: " in (tmp_path / "run" / "failed.log").read_text()
    monkeypatch.undo()
    train(data, tmp_path, "train.epochs=1")
    assert not (tmp_path / "run" / "failed.log").exists(), "a failed start does not block the next"


def test_other_failures_keep_their_traceback(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Any, step: int, values: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("utils.log.MetricsWriter.write", write)
    with pytest.raises(OSError, match="input/output error"):
        train(data, tmp_path)


def test_loss_falls_on_eight_records(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.epochs=24", "optimizer.lr=0.003", "objective.losses={mm_sdm: 1, id: 1}")
    lines = lines_of(tmp_path / "run")
    assert len(lines) == 24
    assert lines[-1]["total"] < 0.1 * lines[0]["total"]
    assert lines[-1]["batch_rank1/four"] == 100
    assert lines[0]["loss/id"] == pytest.approx(math.log(4), abs=0.05), "equal classes before the first step"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(data: Path, tmp_path: Path, precision: str) -> None:
    for name in ("fp32", precision):
        train(data, tmp_path, f"name={name}", f"train.precision={name}", "train.epochs=4")
    first, second = (lines_of(tmp_path / name) for name in ("fp32", precision))
    # Later steps need not agree: under fp16 the first may be skipped until the loss scale fits.
    assert second[0]["total"] == pytest.approx(first[0]["total"], rel=0.01)
    assert first[-1]["total"] < first[0]["total"] and second[-1]["total"] < second[0]["total"]
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / precision).values())


def test_run_directory_holds_what_it_should(data: Path, tmp_path: Path) -> None:
    text = train(data, tmp_path)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "tensorboard",
        "last.pth",
        "best.pth",
        "curves.png",
        "outcome.json",
    }
    # A name, so that a run that was moved is whole.
    assert json.loads((run / "outcome.json").read_text())["best"] == "best.pth"
    assert str(run / "best.pth") in text and "selected on last" in text
    log = (run / "train.log").read_text()
    checkpoint = load_checkpoint(run / "best.pth")
    total = sum(value.numel() for value in checkpoint["model"].values())
    for wanted in (
        f"fingerprint {checkpoint['data_fingerprint']}",
        "effective batch 8",
        f"parameters: {total:,} trainable, 0 frozen",
        "device cpu",
        "precision fp32",
        f"torch {torch.__version__.split('+')[0]}",
        "compute threads",
        "initial weights from random",
        "parameter policy",
    ):
        assert wanted in log
    assert (checkpoint["family"], checkpoint["num_identities"], checkpoint["epoch"], checkpoint["step"]) == (
        "reid5o",
        4,
        2,
        2,
    )
    assert load_experiment(run / "config.yaml").data.root == str(data)
    assert checkpoint["config"]["train"]["batch_size"] == 8


def test_same_seed_same_weights(data: Path, tmp_path: Path) -> None:
    options = (
        "augment.flip=0.5",
        "augment.pad_crop=2",
        "augment.erase=0.5",
        "augment.caption_mask=0.3",
        "train.batch_size=4",
    )
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(data, tmp_path, *options, f"name={name}", f"seed={seed}")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_recomputed_activations_train_the_same(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = model.layers.checkpoint, []

    def checkpoint(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(model.layers, "checkpoint", checkpoint)
    train(data, tmp_path, "name=kept")
    assert not calls
    train(data, tmp_path, "name=recomputed", "train.checkpoint_activations=true")
    assert calls
    kept, recomputed = weights(tmp_path / "kept"), weights(tmp_path / "recomputed")
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_do_not_move(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, r"train.freeze=['text\..*', 'vision\.projection']")
    config = load_experiment(tmp_path / "run" / "config.yaml")
    start = initial_state(config)
    for name, value in weights(tmp_path / "run").items():
        frozen = name.startswith("text.") or name == "vision.projection"
        assert torch.equal(value, start[name]) == frozen or (not frozen and not bool(start[name].any())), name
    moved = [name for name, value in weights(tmp_path / "run").items() if not torch.equal(value, start[name])]
    assert any(name.startswith("fusion.") for name in moved) and any(name.startswith("tokenizers.") for name in moved)


def initial_state(config: ExperimentConfig) -> dict[str, Tensor]:
    job = assemble(config, CPU)
    assert isinstance(job.model, nn.Module)
    return {name: value.clone() for name, value in job.model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    train(data, output)
    return output / "run"


def test_init_from_takes_all_weights(data: Path, tmp_path: Path, finished: Path) -> None:
    # The archive named by model.init is absent: the weights of the run make it superfluous.
    config = load_experiment(SMOKE, [f"data.root={data}", f"train.init_from={finished}", "model.init=absent.pt"])
    assert same(initial_state(config), weights(finished, "best.pth"))


def test_init_from_with_other_identities_keeps_a_new_classifier(tmp_path: Path, finished: Path) -> None:
    config = load_experiment(SMOKE)
    torch.manual_seed(3)
    model = build_model(config.family, config.model, 6)
    nn.init.constant_(model.get_parameter("classifier.weight"), 7.0)
    report = take_weights(model, config.family, str(finished))
    assert "classifier.weight (4, 32) there, (6, 32) here" in report and "classifier.bias" in report
    state, theirs = model.state_dict(), weights(finished, "best.pth")
    assert bool((state.pop("classifier.weight") == 7.0).all())
    del state["classifier.bias"]
    assert all(torch.equal(value, theirs[name]) for name, value in state.items())


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["train.init_from=absent"], "no such run directory"),
        (["train.init_from={run}", "model.embed_dim=64"], "does not fit"),
        (["train.init_from={run}", "model.lora.enabled=false"], "does not fit"),
    ],
)
def test_init_from_refuses(data: Path, tmp_path: Path, finished: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path, *(text.format(run=finished) for text in overrides))
    assert not (tmp_path / "run").exists()


def test_init_from_of_another_family_is_refused(finished: Path) -> None:
    model = SimpleNamespace(num_identities=4)
    with pytest.raises(UserError, match="of family reid5o, this run of other"):
        take_weights(model, SimpleNamespace(value="other"), str(finished))  # type: ignore[arg-type]


def test_existing_run_is_refused_or_replaced(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path)
    run = tmp_path / "run"
    (run / "notes.txt").write_text("mine")
    (run / "results.json").write_text("{}")
    before = (run / "last.pth").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        train(data, tmp_path, "seed=5")
    assert (run / "last.pth").read_bytes() == before
    train(data, tmp_path, "seed=5", "train.epochs=1", overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "results.json").exists()
    assert load_checkpoint(run / "last.pth")["epoch"] == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "train.log").read_text().count("effective batch") == 1


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.freeze=['nothing']", "matches no parameter"),
        ("model.init=absent.pt", "absent.pt"),
        ("train.init_from=RUN", "itself"),
    ],
)
def test_wrong_input_leaves_the_previous_run_alone(data: Path, tmp_path: Path, override: str, expected: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pth").write_text("previous")
    (run / "config.yaml").write_text("{family: reid5o, data: {}, train: {}}")
    with pytest.raises(UserError, match=expected):
        train(data, tmp_path, override.replace("RUN", str(run)), overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "last.pth"]


def test_select_test_is_stamped(data: Path, tmp_path: Path) -> None:
    text = train(data, tmp_path, "train.select=test", "train.eval_period=1")
    run = tmp_path / "run"
    best = load_checkpoint(run / "best.pth")
    assert best["selected_on"] == "test" and "selected on test" in text
    assert load_checkpoint(run / "last.pth")["selected_on"] == "last"
    scores = {line["epoch"]: line["test/ALL_AVER/mAP"] for line in lines_of(run) if "test/ALL_AVER/mAP" in line}
    assert set(scores) == {1, 2}
    assert best["metrics"]["test/ALL_AVER/mAP"] == max(scores.values()) == scores[best["epoch"]]
    groups = [best["metrics"][f"test/{name}_AVER/mAP"] for name in ("ONE", "TWO", "THREE", "FOUR")]
    assert best["metrics"]["test/ALL_AVER/mAP"] == pytest.approx(sum(groups) / 4)


def test_validation_split_is_identity_disjoint_and_used(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.select=val", "data.val_fraction=0.5")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    assert (checkpoint["selected_on"], checkpoint["num_identities"]) == ("val", 2)
    assert any(name.startswith("val/") for name in checkpoint["metrics"])


def test_max_steps_ends_the_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.batch_size=2", "train.max_steps=5", "train.epochs=9")
    assert len(lines_of(tmp_path / "run")) == 5
    assert load_checkpoint(tmp_path / "run" / "best.pth")["step"] == 5


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_training_equals_plain_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What was compiled for other vector units, on this machine or for a home folder of several, is not told apart.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    options = (
        "train.max_steps=2",
        "train.select=last",
        "model.vision_layers=2",
        "model.text_layers=1",
        "model.mmt_depth=1",
    )
    train(data, tmp_path / "plain", *options)
    # The compiler itself, not a double: its options change with its versions. It remembers the sizes of models that
    # were compiled in this process before, by which torch 2.6 fails; a run of train.py has a process of its own.
    torch.compiler.reset()
    train(data, tmp_path / "faster", *options, "train.compile=true")
    plain, compiled = lines_of(tmp_path / "plain" / "run"), lines_of(tmp_path / "faster" / "run")
    assert len(plain) == len(compiled) == 2
    for name in ("total", "loss/id", "gradient_norm"):
        assert [line[name] for line in compiled] == pytest.approx([line[name] for line in plain], rel=1e-4)
