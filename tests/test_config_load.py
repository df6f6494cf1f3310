"""Covers: configs/load, configs/scalars, configs/vocabulary, configs/schema/checks, configs/schema/data,
configs/schema/evaluation, configs/schema/experiment, configs/schema/family, configs/schema/reid5o,
configs/schema/train, configs/schema/vireid. Configuration files and overrides: what is merged, what is refused and in
which words, and that nothing is read as something else than it was written.
"""

import dataclasses
import math
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from configs.load import build_experiment, experiment_to_dict, load_experiment, parse_overrides, save_experiment
from configs.scalars import read_value
from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.experiment import ExperimentConfig
from configs.schema.reid5o import LoraConfig, Reid5oConfig, Reid5oObjectiveConfig
from configs.schema.train import OptimizerConfig, ScheduleConfig, TrainConfig
from configs.vocabulary import Family
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> ExperimentConfig:
    return load_experiment(write(folder, "experiment.yaml", text), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_file_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_experiment(path)
    save_experiment(config, tmp_path / "resolved.yaml")
    assert load_experiment(tmp_path / "resolved.yaml") == config
    # A run is named by its file, unless the file names it.
    assert config.name == yaml.safe_load(path.read_text()).get("name", path.stem)
    # Plain YAML, readable without this project.
    assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["family"] == config.family.value


def test_defaults_are_those_of_the_dataclasses(tmp_path: Path) -> None:
    config = load(tmp_path, "seed: 3")
    expected = ExperimentConfig(
        family=Family.REID5O,
        name="experiment",
        output_dir="runs",
        seed=3,
        data=DataConfig(),
        instruction=InstructionConfig(),
        augment=AugmentConfig(),
        model=Reid5oConfig(),
        objective=Reid5oObjectiveConfig(),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        train=TrainConfig(),
        eval=EvalConfig(),
    )
    assert config == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 1  # type: ignore[misc]


def test_child_replaces_parent_key_by_key_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "grandparent.yaml", "train: {epochs: 7, batch_size: 10, accumulate: 3}\nseed: 1")
    write(tmp_path, "parent.yaml", "base: base/grandparent.yaml\ntrain: {batch_size: 20}\nname: parent")
    config = load(
        tmp_path,
        "base: parent.yaml\ntrain: {precision: bf16}",
        "train.epochs=9",
        "optimizer.lr=1e-3",
        "data.root=/data/with space",
    )
    assert (config.train.epochs, config.train.batch_size, config.train.accumulate, config.train.precision) == (
        9,
        20,
        3,
        "bf16",
    )
    assert (config.seed, config.name, config.optimizer.lr, config.data.root) == (1, "parent", 0.001, "/data/with space")


def test_losses_table_of_a_child_replaces_the_parents(tmp_path: Path) -> None:
    write(tmp_path, "parent.yaml", "objective: {losses: {mm_sdm: 1.0, id: 1.0}, temperature: 0.5}")
    config = load(tmp_path, "base: parent.yaml\nobjective: {losses: {mm_itc: 2}}")
    assert isinstance(config.objective, Reid5oObjectiveConfig)
    assert config.objective.losses == {"mm_itc": 2.0} and config.objective.temperature == 0.5


def test_one_configuration_leaves_nothing_in_the_next(tmp_path: Path) -> None:
    before = load(tmp_path, "seed: 3")
    load(tmp_path, "{seed: 3, name: other}", "objective.losses.itc=4", "model.lora.rank=2", "train.freeze=[a]")
    assert load(tmp_path, "seed: 3") == before


def test_override_of_a_table_replaces_it_and_of_an_entry_changes_the_entry(tmp_path: Path) -> None:
    text = "objective: {losses: {mm_sdm: 1.0, id: 1.0}}"
    assert load(tmp_path, text, "objective.losses={itc: 3}").objective.losses == {"itc": 3.0}
    assert load(tmp_path, text, "objective.losses.id=0.5", "objective.losses.itc=4").objective.losses == {
        "mm_sdm": 1.0,
        "id": 0.5,
        "itc": 4.0,
    }


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.freeze=['text\\..*']", "train", "freeze", ("text\\..*",)),
        ("model.image_size=[64,32]", "model", "image_size", (64, 32)),
        ("model.lora.rank=2", "model", "lora", LoraConfig(rank=2)),
        ("data.cache_dir=", "data", "cache_dir", ""),
        ("train.compile=true", "train", "compile", True),
        ("model.vision_heads=8", "model", "vision_heads", 8),
        ("optimizer.betas=[0.5, 0.9]", "optimizer", "betas", (0.5, 0.9)),
        ("train.init_from=runs/a=b", "train", "init_from", "runs/a=b"),
    ],
)
def test_override_values(tmp_path: Path, override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load(tmp_path, "seed: 0", override), section), key) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dat: {root: x}", ["experiment.yaml", "'dat'", "'data'"]),
        ("data: {roott: x}", ["'data.roott'", "'root'"]),
        ("model: {lora: {rnk: 2}}", ["'model.lora.rnk'", "'rank'"]),
        ("train: {precision: fp8}", ["train.precision", "'fp8'", "bf16", "fp16", "fp32"]),
        ("train: {select: vall}", ["train.select", "did you mean 'val'"]),
        ("family: reid5oo", ["family", "'reid5o'"]),
        ("train: {epochs: many}", ["train.epochs", "'many'"]),
        ("train: {epochs: 1.5}", ["train.epochs", "1.5"]),
        ("train: {epochs: true}", ["train.epochs"]),
        ("train: {epochs: null}", ["train.epochs"]),
        ("train: {epochs: 0}", ["train.epochs = 0", "at least 1"]),
        ("train:\n  epochs: ???", ["epochs"]),
        ("train: 5", ["train = 5", "epochs"]),
        ("model: {image_size: [32]}", ["model.image_size", "2 values, has 1"]),
        ("model: {image_size: 32}", ["model.image_size", "list"]),
        ("optimizer: {betas: [2, 3]}", ["optimizer.betas", "below 1"]),
        ("optimizer: {betas: [0.5, 1.0]}", ["optimizer.betas", "below 1"]),
        ("optimizer: {lr: .inf}", ["optimizer.lr", "finite"]),
        ("optimizer: {lr: nan}", ["optimizer.lr", "finite"]),
        ("objective: {losses: {id: .nan}}", ["objective.losses", "finite"]),
        (f"objective: {{losses: {{id: 1{'0' * 330}}}}}", ["objective.losses", "finite"]),
        (f"augment: {{jitter: [1{'0' * 330}, 0, 0, 0]}}", ["augment.jitter", "finite"]),
        ("objective: {losses: {}}", ["objective.losses", "at least one"]),
        ("objective: {losses: [id]}", ["objective.losses", "table"]),
        ("schedule: {milestones: [5, 3]}", ["schedule.milestones", "ascending"]),
        ("augment: {flip: 2}", ["augment.flip = 2.0", "between 0 and 1"]),
        ("data: {root: ''}", ["data.root"]),
        ("seed: -1", ["seed = -1"]),
        ("seed: true", ["seed = True"]),
        ("name: a/b", ["name = 'a/b'", "output_dir"]),
        ("name: ..", ["name = '..'"]),
        ("name: true", ["name = True", "quotes"]),
        ("name: 1.50", ["name = 1.5", "quotes"]),
        ("data: {root: 1.50}", ["data.root = 1.5", "quotes"]),
        ("data: {protocols: [a, true]}", ["data.protocols", "quotes"]),
        ("train: {epochs: 1:30}", ["train.epochs = '1:30'"]),
        ("train: {epochs: 0x10}", ["train.epochs = '0x10'"]),
        ("train: {drop_last: 7}", ["train.drop_last = 7", "true or false"]),
        ("eval: {flip: -1}", ["eval.flip = -1", "true or false"]),
        ("seed: 010", ["seed = '010'"]),
        ("data: &anchor {root: x}", ["anchors", "not a readable YAML"]),
        ("data: {root: x}\naugment: *data", ["aliases", "not a readable YAML"]),
        ("output_dir: [a]", ["output_dir"]),
        ("data: {root: '${oc.env:HOME}'}", ["data.root", "interpolations are off"]),
        ("data: {root: '${data.cache_dir}'}", ["data.root", "interpolations are off"]),
        ("train: {freeze: ['${seed}']}", ["train.freeze", "interpolations are off"]),
        ("objective: {losses: !!python/object/apply:os.system [touch owned]}", ["not a readable YAML"]),
        ("data: !!python/name:os.system", ["not a readable YAML"]),
        ("seed: 1\nseed: 2", ["not a readable YAML", "duplicate"]),
        ("train: {epochs: 1, epochs: 2}", ["duplicate"]),
        ("data: [root", ["not a readable YAML"]),
        ("- a\n- b", ["table"]),
        ("just words", ["experiment.yaml"]),
        ("", ["table"]),
        ("base: [a, b]", ["base", "one YAML file"]),
        ("base:", ["base = None", "one YAML file"]),
        ("base: experiment.yaml", ["leads back"]),
        ("base: quikstart.yaml", ["no such configuration", "quikstart.yaml"]),
        ("data: " + "[" * 5000, ["experiment.yaml"]),
    ],
)
def test_refused_files(tmp_path: Path, text: str, words: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert not [word for word in words if word not in message], message
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", ["train.epochs", "key.sub=value"]),
        ("=3", ["key.sub=value"]),
        ("--epochs=3", ["key.sub=value"]),
        ("train..epochs=3", ["key.sub=value"]),
        ("train.epochs=[", ["not valid YAML"]),
        ("trai.epochs=3", ["'trai'", "'train'"]),
        ("data.root=${oc.env:HOME}", ["interpolations are off"]),
        ("train.epochs.x=3", ["train.epochs"]),
        ("objective.losses={id: 1, id: 2}", ["not valid YAML"]),
        ("data.root=x\nseed: 3", ["one line"]),
        ("data.root=!!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("objective.losses.id=inf", ["finite"]),
        ("data.root=&a /data", ["anchor", "quotes"]),
        ("data.root=!!str /data", ["tag", "quotes"]),
        ("data.root='/data' # mine", ["something follows"]),
        ("model.image_size=[64,32] # small", ["something follows"]),
        ("data.root=true", ["data.root = True", "quotes"]),
        ("train.epochs=1:30", ["train.epochs = '1:30'", "must be a whole number"]),
        ("optimizer.lr=true", ["optimizer.lr = True", "'True' must be a number"]),
        ("objective.losses={id: null}", ["objective.losses.id must have a value, not null; leave it out"]),
        ("eval.flip=16", ["eval.flip = 16: must be true or false"]),
        ("eval.flip=\uff11\uff16", ["eval.flip = '\uff11\uff16': must be true or false"]),
        ("eval.flip=1.0", ["eval.flip = 1.0: must be true or false"]),
        ("instruction.typing=null", ["instruction.typing must have a value, not null"]),
    ],
)
def test_refused_overrides(tmp_path: Path, override: str, words: list[str]) -> None:
    message = refusal(tmp_path, "seed: 0", override)
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize(
    "text", ["0123", "007", "2024_01_15", "12:30", "2024-01-15", "on", "no", "0x1f", "1_0", "+5", "set #2", "a: b", "5"]
)
def test_texts_stay_what_was_written(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, "seed: 0", f"name={text}", f"data.root=/data/{text}", f"data.cache_dir={text}")
    assert (config.name, config.data.root, config.data.cache_dir) == (text, f"/data/{text}", text)
    quoted = f"'{text}'" if text in ("set #2", "a: b") else text
    assert load(tmp_path, f"data: {{protocols: [{quoted}]}}").data.protocols == (text,)
    save_experiment(config, tmp_path / "again.yaml")
    assert load_experiment(tmp_path / "again.yaml") == config


def test_numbers_are_what_is_printed(tmp_path: Path) -> None:
    config = load(tmp_path, "train: {batch_size: 010, epochs: '12'}", "optimizer.lr=1e-3", "eval.flip=1", "seed=3")
    # Eight is in no number that is written here.
    assert (config.train.batch_size, config.train.epochs, config.optimizer.lr, config.seed) == (10, 12, 0.001, 3)
    assert config.eval.flip is True
    for written, value in {"0.5": 0.5, ".5": 0.5, "2.": 2.0, "1E2": 100.0, "-3": -3, "~": None, "NULL": None}.items():
        assert read_value(written) == value and type(read_value(written)) is type(value)
    assert read_value('"x # y"') == "x # y" and read_value(" [1, 02] ") == [1, "02"]


def test_every_problem_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, "parent.yaml", "train: {epoch: 3}")
    message = refusal(tmp_path, "base: parent.yaml\ndata: {root_: x}", "seeed=1")
    parts = message.split("; ")
    assert len(parts) == 3
    assert "parent.yaml" in parts[0] and "'epochs'" in parts[0]
    assert "experiment.yaml" in parts[1] and "command line" in parts[2] and "'seed'" in parts[2]


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "quickstart.yaml", "seed: 1")
    with pytest.raises(UserError, match=re.escape("did you mean 'quickstart.yaml'?")):
        load_experiment(tmp_path / "quikstart.yaml")
    with pytest.raises(UserError, match="no such configuration"):
        load_experiment(tmp_path / "no" / "folder.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not a readable YAML"):
        load_experiment(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(UserError, match="not a configuration"):
        load_experiment(tmp_path / "large.yaml")


def test_nested_values_of_overrides() -> None:
    nested = parse_overrides(["a.b=1", "a.c=x", "d=[1, 2]", "a.b=2"])
    assert nested == {"a": {"b": 2, "c": "x"}, "d": [1, 2]}


def test_layers_can_be_given_directly() -> None:
    config = build_experiment(
        [("first", {"train": {"epochs": 2}}), ("second", {"train": {"batch_size": 4}})], name="direct"
    )
    assert (config.train.epochs, config.train.batch_size, config.name) == (2, 4, "direct")
    plain = experiment_to_dict(config)
    assert plain["family"] == "reid5o" and plain["model"]["image_size"] == [384, 128]
    assert all(math.isfinite(value) for value in plain["objective"]["losses"].values())


@pytest.mark.parametrize("number", [2**31, 2**63, 10**32, -(2**63)])
def test_numbers_that_no_library_takes(number: int) -> None:
    for key in ("seed", "train.accumulate", "train.epochs", "eval.max_rank", "augment.pad_crop", "data.workers"):
        with pytest.raises(UserError, match=key.split(".")[-1]):
            load_experiment(str(ROOT / "configs" / "reid5o" / "smoke.yaml"), [f"{key}={number}"])
