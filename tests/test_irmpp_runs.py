"""Covers: solver/training/checkpoint, datasets/given_instructions, datasets/fitting, solver/commands/opening. Runs of
IRM++ from the lists to tables and searches: a gallery that is encoded once and alone, memory banks that go on or are of
other identities, and what the family refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instructed_family import write_captioned, write_data
from scripts import exit_code
from torch import Tensor

from configs.load import load_experiment
from configs.vocabulary import Modality, Task
from datasets.structures import Record, Source
from model.interface import Instructions, Tokens
from model.irm import IRM
from solver.objectives.base import ObjectiveContext
from solver.objectives.irmpp import IrmppObjective
from solver.training.engine import Trainer, assemble
from solver.training.job import TrainingJob
from utils.checkpoint_io import load_checkpoint, load_tensors
from utils.errors import UserError
from utils.log import MetricsWriter

pytestmark = pytest.mark.usefixtures("keep_logging")
CPU = torch.device("cpu")
SMOKE = Path(__file__).resolve().parent.parent / "configs" / "irmpp" / "smoke.yaml"


FEWER = ("data.members=[market]", "train.batch_size=8")
"""Four of the twelve identities."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("lists"))
    write_captioned(root)
    return root


def called(name: str, *arguments: object) -> int:
    return exit_code(name, *map(str, arguments))


def options(data: Path, *more: str) -> list[str]:
    words = [f"data.root={data}", "data.workers=0", f"model.tokenizer=bert:{data / 'words'}", "model.vocab_size=200"]
    return [*words, "train.batch_size=16", "train.max_steps=3", "optimizer.lr=0.01", *more]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    assert called("train", "--config", SMOKE, "--device", "cpu", *options(data, f"output_dir={output}")) == 0
    return output / "smoke"


Slot = tuple[bytes, bytes]
"""An image and what it is encoded with."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[Slot]]:
    """How often each image has been encoded with each instruction."""
    slots: Counter[Slot] = Counter()
    whole = IRM.encode_batch

    def counted(
        self: IRM, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        for modality, rows in ((kind, rows) for kind, rows in inputs.items() if kind is not Modality.TEXT):
            for place, row in enumerate(rows):
                told = [
                    one.inputs[one.rows[place]]
                    for one in (instructions or {}).get(modality, ())
                    if one.rows[place] >= 0
                ]
                slots[row.numpy().tobytes(), b"".join(part.numpy().tobytes() for part in told)] += 1
        return whole(self, inputs, instructions)

    monkeypatch.setattr(IRM, "encode_batch", counted)
    yield slots


def evaluate(run: Path, output: Path, *more: str) -> dict[str, Any]:
    assert called("test", "--run", run, "--device", "cpu", "--output", output, *more) == 0
    found: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return found


def test_the_gallery_is_encoded_once_and_alone_for_all_tables(
    run: Path, tmp_path: Path, encoded: Counter[Slot]
) -> None:
    """Task-free and joint, which share all images of market, real2 and cuhk_pedes; real2's serve two tasks."""
    found = evaluate(run, tmp_path, "eval.thresholds=[0.25,0.5,0.75]")
    rows = {row["task"]: row for row in [*found["rows"], *found["averages"]]}
    assert {name.split(" ")[0] for name in rows} == {"task-free", "joint", "ALL_AVER"} and "joint" in rows
    assert {"mAP", "mAP@0.25", "mAP@0.5", "mAP@0.75", "kept@0.25", "kept@0.5", "kept@0.75"} <= rows["joint"].keys()
    assert set(encoded.values()) == {1}, "no image is encoded twice under one instruction"
    # 3 persons: each has two gallery images in market, in real2 and in CUHK-PEDES, and a query in market, with a
    # sentence, and in real2, with a picture and with a description.
    alone = sum(not told for _, told in encoded)
    assert (alone, len(encoded) - alone) == (6 + 6 + 6, 3 + 3 + 3)


def test_the_mean_over_all_queries_stands_beside_those_of_the_tasks(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, tmp_path, "data.protocols=[joint]")
    averages = {row["task"]: row for row in found["averages"]}
    lists = [row for row in found["rows"] if row["protocol"] == "joint"]
    counts = [row["queries"] for row in lists]
    assert len(lists) == 4 and sum(counts) == 3 + 3 + 3 + 6
    values = [row["mAP"] for row in lists]
    assert averages["joint"]["mAP"] == pytest.approx(np.average(values, weights=counts), abs=1e-3)


def last_line(captured: pytest.CaptureFixture[str]) -> str:
    return captured.readouterr().err.strip().splitlines()[-1]


def test_a_protocol_that_instructs_its_gallery_is_refused(
    run: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lists = "data.protocols=[lists]"
    for script, *arguments in (
        ("test", "--run", run, "--output", tmp_path, lists),
        ("infer", "--run", run, "--task", "market", "--output", tmp_path / "x.png", lists),
        ("train", "--config", SMOKE, *options(data, lists, f"output_dir={tmp_path}")),
    ):
        assert called(str(script), "--device", "cpu", *arguments) == 2
        assert "encodes them alone; choose data.protocols=[task-free]" in last_line(capfd)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "failed.log"]


def test_a_gallery_is_told_nothing_where_the_option_says_so(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, tmp_path, "data.protocols=[lists,task-free]", "instruction.gallery=none")
    rows = {row["task"]: row for row in found["rows"]}
    assert rows["market [gallery alone]"]["protocol"] == "lists [gallery alone]"
    for name, row in rows.items():
        if name.startswith("task-free ") and "target" not in name and "pedes" not in name:
            assert rows[f"{name.removeprefix('task-free ')} [gallery alone]"]["mAP"] == row["mAP"], name
    assert "cuhk_pedes" in rows, "images that captions are compared with have no instruction anyway"
    assert "lists [gallery alone]: lists in which gallery images have no instruction" in found["protocol"]


def test_a_search_encodes_the_photographs_once_whatever_is_asked(
    run: Path, data: Path, tmp_path: Path, encoded: Counter[Slot], capfd: pytest.CaptureFixture[str]
) -> None:
    photos, asked = data / "real2" / "g", data / "real2" / "q" / "11_1.png"
    call = (
        "infer",
        "--run",
        str(run),
        "--device",
        "cpu",
        "--gallery",
        str(photos),
        "--gallery-cache",
        str(tmp_path / "c"),
    )
    orders = []
    picture = str(data / "real2" / "c" / "0.png")
    for number, told in enumerate((("--instruction", "a red bag"), ("--instruction-image", picture), ())):
        output = tmp_path / f"{number}.png"
        assert called(*call, "--image", asked, *told, "--output", output) == 0
        shown = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        assert shown["gallery"]["instruction"] == "none"
        orders.append([round(one["similarity"], 5) for one in shown["queries"][0]["results"]])
    assert orders[0] != orders[1] != orders[2], "the instruction reaches the query"
    assert sum(encoded.values()) == len(list(photos.iterdir())) + 3, "the gallery once, and three queries"
    assert called(*call, "--image", asked, "--instruction", "a red bag", "--gallery-instruction", "same") == 2
    assert "--gallery-instruction same: this model encodes gallery images alone" in last_line(capfd)


def job_of(data: Path, *more: str) -> TrainingJob:
    return assemble(load_experiment(SMOKE, options(data, *more)), CPU)


def banks(objective: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items() if name.split(".")[0] != "captions"}


def test_banks_are_saved_in_last_and_go_on(run: Path, data: Path, tmp_path: Path) -> None:
    """Two steps, a state, a third step; another trainer that takes the state makes the same third step."""
    assert "objective" not in load_checkpoint(run / "best.pth")
    saved = load_checkpoint(run / "last.pth")["objective"]
    assert {"features.rows", "features.written", "annotations.rows", "annotations.written"} <= saved.keys()
    job = job_of(data)
    trainer = Trainer(job, tmp_path)
    batches = [*list(job.loader.epoch(0))[:2], next(iter(job.loader.epoch(1)))]
    job.model.train()
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board", None) as writer:
        for batch in batches[:2]:
            trainer.train_step([batch])
        before = banks(job.objective)
        trainer.save_state(writer)
    wanted, after = trainer.train_step([batches[2]]), banks(job.objective)
    (state,) = (tmp_path / "states").glob("*.pth")
    other = job_of(data)
    fresh = Trainer(other, tmp_path)
    assert not banks(other.objective)["features.written"].any()
    fresh.restore(load_tensors(state))
    other.model.train()
    assert all(torch.equal(value, before[name]) for name, value in banks(other.objective).items())
    assert fresh.train_step([batches[2]]) == wanted, "the loss depends on them"
    assert all(torch.equal(value, after[name]) for name, value in banks(other.objective).items())
    assert not torch.equal(after["features.rows"], before["features.rows"])
    emptied = job_of(data)
    emptied.model.load_state_dict(load_tensors(state)["parts"]["model"])
    emptied.model.train()
    assert emptied.objective.step(emptied.model, batches[2], 2).losses["hard"].item() != wanted["loss/hard"]
    assert all(torch.equal(saved[name], value) for name, value in banks_of_run(run).items())


def banks_of_run(run: Path) -> dict[str, Tensor]:
    """What last.pth says, put into an objective and read again."""
    saved = load_checkpoint(run / "last.pth")["objective"]
    config = load_experiment(run / "config.yaml")
    objective = assemble(config, CPU).objective
    objective.load_state_dict(saved)
    return banks(objective)


def test_banks_of_another_number_of_identities_are_refused(
    run: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fewer = [*options(data, f"output_dir={tmp_path}", f"train.init_from={run}"), *FEWER]
    call = ("train", "--config", str(SMOKE), "--device", "cpu", *fewer)
    assert called(*call) == 2
    assert "best.pth was trained on 12 identities, this run has 4, and the memory banks" in last_line(capfd)
    assert not (tmp_path / "smoke" / "config.yaml").exists()
    assert called(*call, "train.init_banks=new") == 0
    log = (tmp_path / "smoke" / "train.log").read_text(encoding="utf-8")
    assert "classifier.weight (12, 32) there, (4, 32) here" in log and "memory banks are not taken over" in log
    # IRM* has no banks: as elsewhere, the classifier alone is new.
    assert called(*call, "objective.losses={id: 1.0, triplet: 1.0}", "--overwrite") == 0
    assert "memory banks" not in (tmp_path / "smoke" / "train.log").read_text(encoding="utf-8")


def test_a_state_with_banks_of_other_identities_does_not_go_on(data: Path, tmp_path: Path) -> None:
    job = job_of(data)
    trainer = Trainer(job, tmp_path)
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board", None) as writer:
        trainer.save_state(writer)
    (state,) = (tmp_path / "states").glob("*.pth")
    other = Trainer(job_of(data, *FEWER), tmp_path)
    with pytest.raises(UserError, match=r"objective.features.rows: \(12, 32\) there, \(4, 32\) now"):
        other.restore(load_tensors(state))


def test_soft_without_annotations_is_refused_before_the_first_step(data: Path) -> None:
    job = job_of(data)
    bare = Record(
        person_id=0, sources={Modality.RGB: Source(modality=Modality.RGB, value="a.jpg")}, task=Task.ORB, name="a.jpg"
    )
    context = ObjectiveContext(seed=0, model=job.model, records=(*job.loader.records, bare))
    with pytest.raises(UserError, match="soft compares annotations, and a row of task orb has none"):
        IrmppObjective(job.config.objective, context)  # type: ignore[arg-type]


WRONG = {
    "instruction.pairing=others": "instruction.pairing",
    "instruction.typing=coins": "instruction.typing",
    "instruction.gallery=all": "instruction.gallery",
    "objective.sign=minus": "objective.sign",
    "objective.hard_target=onehot": "objective.hard_target",
    "objective.soft_tasks=some": "objective.soft_tasks",
    "objective.unwritten=zero": "objective.unwritten",
    "objective.centre=mean": "objective.centre",
    "objective.temperature=0": "objective.temperature",
    "objective.target_temperature=-1": "objective.target_temperature",
    "objective.xi=-1": "objective.xi",
    "objective.losses={soft: 1.0, harder: 5.0}": "objective.losses names 'harder'",
    "objective.losses={hard: -5.0}": "objective.losses.hard",
    "train.init_banks=old": "train.init_banks",
    "train.init_banks=new": "train.init_banks = 'new': must be same where train.init_from is not given",
    "model.attention=none": "model.attention",
    "model.heads_shared=false": "model.heads_shared",
}


@pytest.mark.parametrize("given", WRONG)
def test_wrong_options_are_one_sentence(
    given: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert called("train", "--config", SMOKE, *options(data, f"output_dir={tmp_path}", given)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and WRONG[given] in lines[0]
