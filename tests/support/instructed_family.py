"""A small family that follows instructions, registered by the three tables alone; its data; and both done by hand.

The oracle here reads files, cuts boxes, makes token ids and encodes one image at a time, without the loader, the reader
and the encoder of the product.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import configs.schema.experiment
import model.build
import solver.training.families
from configs.load import build_experiment
from configs.schema.experiment import ExperimentConfig, FamilySections
from configs.schema.family import FollowsInstructions, ModelSection, ObjectiveSection, ReadsText
from configs.vocabulary import AnnotationKind, Family, Modality, Task
from datasets.instructions import BANK
from datasets.structures import Batch, Record, Source
from model.build import FamilyModel
from model.interface import Instructions, RetrievalModel, Tokens
from model.weights.clip import InitialWeights
from solver.objectives.base import Objective, ObjectiveContext, StepOutput, batch_inputs, batch_instructions
from solver.objectives.rows import WHOLE, Rows, Spread
from solver.training.families import FamilyTraining
from solver.training.param_groups import Rule

RGB, TEXT = Modality.RGB, Modality.TEXT
IMAGE_SIZE, INSTRUCTION_SIZE, TEXT_LENGTH, WIDTH = (12, 6), (8, 4), 10, 8
HEIGHT, BOX_ROWS = 20, slice(3, 11)
"""Rows of a picture, and those of its upper-body box: 15 to 55 %."""


@dataclass(frozen=True)
class ToldConfig(FollowsInstructions, ReadsText, ModelSection):
    """Section `model`."""

    modalities: ClassVar[tuple[Modality, ...]] = (RGB,)


@dataclass(frozen=True)
class ToldObjectiveConfig(ObjectiveSection):
    """Section `objective`."""

    losses: dict[str, float] = field(default_factory=lambda: {"id": 1.0, "bank": 1.0})


class ToldModel(RetrievalModel):
    """An image's feature, scaled channel by channel by what is said beside it. Counts the instructions it encodes."""

    statistics = "clip"
    instruction_statistics = "imagenet"
    follows_instructions = True

    def __init__(self, config: ToldConfig, num_identities: int) -> None:
        super().__init__()
        self.embed_dim, self.num_identities = WIDTH, num_identities
        self.checkpoint_activations, self.frozen_names = False, ()
        self.image = nn.Linear(3 * math.prod(config.image_size), WIDTH)
        self.words = nn.Embedding(config.vocab_size, WIDTH)
        self.clothes = nn.Linear(3 * math.prod(config.instruction_size), WIDTH)
        self.classifier = nn.Linear(WIDTH, num_identities)
        self.encoded: Counter[Modality] = Counter()

    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        return {kind: self._encoded(images, (instructions or {}).get(kind, ())) for kind, images in inputs.items()}

    def _encoded(self, images: Tensor, instructions: Instructions) -> Tokens:
        scale = torch.ones(len(images), WIDTH)
        for told in instructions:
            self.encoded[told.modality] += len(told.inputs)
            is_text = told.modality is TEXT
            known = self.words(told.inputs).mean(dim=1) if is_text else self.clothes(told.inputs.flatten(1))
            scale = torch.where(told.rows[:, None] >= 0, 1 + known[told.rows.clamp(min=0)], scale)
        pooled = torch.tanh(self.image(images.flatten(1)) * scale)
        return Tokens(tokens=pooled[:, None], pooled=pooled)

    def identity_logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def compile_blocks(self, **options: Any) -> None:
        raise AssertionError("nobody asked for it")


class ToldObjective(Objective[ToldModel]):
    """Identity, and the distance to each person's last feature, which is kept in a buffer."""

    bank: Tensor

    def __init__(self, config: ToldObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__()
        self.weights = config.losses
        self.register_buffer("bank", torch.zeros(context.model.num_identities, context.model.embed_dim))

    def encode(self, model: ToldModel, batch: Batch, step: int) -> Rows:
        features = model.encode_batch(batch_inputs(model, batch), batch_instructions(model, batch))[RGB].pooled
        return Rows(features={"pooled": features}, facts={"labels": batch.person_ids})

    def terms(self, model: ToldModel, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        features, labels = rows.features["pooled"], rows.facts["labels"]
        identity = nn.functional.cross_entropy(model.identity_logits(features), labels)
        remembered = (features - self.bank[labels]).square().mean()
        self.bank[labels] = features.detach()
        losses = {"id": identity * self.weights["id"], "bank": remembered * self.weights["bank"]}
        return StepOutput(losses=losses)


def register(patch: pytest.MonkeyPatch) -> Family:
    """Put the family into a row of each table, and return under which name; nothing else knows it."""
    family = Family.VIREID
    sections = FamilySections(ToldConfig, ToldObjectiveConfig)  # type: ignore[arg-type]
    patch.setitem(configs.schema.experiment.FAMILIES, family, sections)
    patch.setitem(
        model.build.FAMILIES, family, FamilyModel(ToldModel, lambda *_: InitialWeights(source="torch", rows=()))
    )
    rules = (Rule(r".*", 1.0),)
    patch.setitem(solver.training.families.FAMILIES, family, FamilyTraining(ToldObjective, lambda _: rules))
    return family


PERSONS, TEST_PERSONS = (1, 2, 3, 4), (11, 12, 13)
COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown")


def write_pictures(root: Path, names: Mapping[str, int]) -> None:
    """Write a picture of noise around a person's colour under every name; all differ, above and below their box."""
    for name, person in names.items():
        draw = np.random.default_rng(zlib.crc32(f"{root.name}/{name}".encode()))
        pixels = np.random.default_rng(900 + person).integers(60, 196, 3) + draw.integers(-60, 60, (HEIGHT, 10, 3))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)


def write_lists(folder: Path, **lists: list[str]) -> None:
    for name, rows in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def write_data(root: Path) -> Path:
    """Write lists of three tasks in the layout of OmniReID, and the vocabulary; return the folder.

    Instructions are sentences (market), descriptions (real2, by attributes), templates for queries and some training
    rows, and boxes of the images themselves for the gallery and the others (real1, real2).
    """
    market, real1, real2 = root / "market", root / "real1", root / "real2"
    market_train = {f"t/{person}_{camera}.png": person for person in PERSONS for camera in (1, 2)}
    test = {f"{role}/{person}_{n}.png": person for person in TEST_PERSONS for role, n in (("q", 1), ("g", 2), ("g", 3))}
    write_pictures(market, market_train | test)
    write_lists(market, train=[f"{name} - {person} 0 {name[-5]}" for name, person in market_train.items()])
    write_roles(market, test, lambda name: "-")
    outfits = {f"t/{person}_{outfit}.png": person for person in PERSONS for outfit in (0, 1)}
    templates = {f"c/{number}.png": 50 + number for number in (0, 1)}
    write_pictures(real1, {**outfits, **templates, "extra.png": 60})
    rows = [(name, person, int(name[-5])) for name, person in outfits.items()]
    write_lists(
        real1,
        train_ctcc=[f"{name} {'c/0.png' if not outfit else name} {person} {outfit} 1" for name, person, outfit in rows],
        train_attr=[f"{name} {name} {person} {outfit} 1" for name, person, outfit in rows],
    )
    write_pictures(real2, {**test, **templates})
    write_roles(real2, test, lambda name: f"c/{int(name[2:4]) % 2}.png" if name.startswith("q") else name)
    write_roles(real2, test, lambda name: name, "_attr")
    for folder, file, names in ((real1, "real1_v1.json", outfits), (real2, "real2_v1.json", test)):
        (folder / file).write_text(json.dumps({name: describe(name) for name in names}), encoding="utf-8")
    write_vocabulary(root / "words")
    return root


def write_captioned(root: Path) -> None:
    """Add a member whose images have captions (T2I) to the data."""
    folder = root / "CUHK-Pedes"
    train = {f"imgs/{person}_{number}.png": person for person in PERSONS for number in (0, 1)}
    test = {f"imgs/{person}_{number}.png": person for person in TEST_PERSONS for number in (0, 1)}
    write_pictures(folder, train | test)
    captions = {name.replace("/", "_"): describe(name) for name in train | test}
    (folder / "caption_t2i_v2.json").write_text(json.dumps(captions), encoding="utf-8")
    for part, names in (("train", train), ("query", test), ("gallery", test)):
        lines = [f"{name} {name.replace('/', '_')} {person} 0" for name, person in names.items()]
        write_lists(folder, **{f"{part}_t2i_v2": lines})


def write_roles(folder: Path, test: Mapping[str, int], second: Any, suffix: str = "") -> None:
    rows = {name: f"{name} {second(name)} {person} 0 {name[-5]}" for name, person in test.items()}
    for role in ("query", "gallery"):
        write_lists(folder, **{f"{role}{suffix}": [row for name, row in rows.items() if name.startswith(role[0])]})


def describe(name: str) -> str:
    return f"A person in {COLOURS[sum(map(ord, name)) % len(COLOURS)]}, with a {COLOURS[len(name) % 7]} bag."


def words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def vocabulary() -> list[str]:
    sentences = [sentence for task in (Task.TRAD, Task.CTCC) for sentence in BANK.get(task, ())]
    texts = [*sentences, "A person in, with a bag.", *COLOURS]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in texts for word in words_of(text)})]


def write_vocabulary(folder: Path) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")


def picture(source: Source, size: tuple[int, int]) -> Tensor:
    """Pixels (3, h, w) of what an image source means, its box by slicing the rows."""
    pixels = np.asarray(Image.open(source.value).convert("RGB"))
    shown = pixels[BOX_ROWS] if source.crop == "box" else pixels
    resized = Image.fromarray(shown).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)


def token_ids(text: str) -> Tensor:
    """(TEXT_LENGTH,): [CLS] = 2, the words' places in the vocabulary, 0; what is too long is cut."""
    known = vocabulary()
    ids = [2, *(known.index(word) for word in words_of(text))][:TEXT_LENGTH]
    return torch.tensor(ids + [0] * (TEXT_LENGTH - len(ids)))


def annotation(source: Source) -> Tensor:
    return token_ids(source.value) if source.modality is TEXT else picture(source, INSTRUCTION_SIZE)


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(pixels: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]] = CLIP) -> Tensor:
    mean, std = statistics
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def feature(told: ToldModel, image: Source, instruction: Source | None) -> Tensor:
    """The feature (D,) of one image alone, written out."""
    hidden = told.image(normalised(picture(image, IMAGE_SIZE)).flatten())
    if instruction is None:
        return torch.tanh(hidden)
    if instruction.modality is TEXT:
        known = told.words.weight[token_ids(instruction.value)].sum(dim=0) / TEXT_LENGTH
    else:
        known = told.clothes(normalised(picture(instruction, INSTRUCTION_SIZE), IMAGENET).flatten())
    return torch.tanh(hidden * (1 + known))


def own_instruction(record: Record) -> Source:
    """What a record of the lists asks for at test time: the first sentence of its task, or its own annotation."""
    if record.task is Task.TRAD:
        return Source(modality=TEXT, value=BANK[Task.TRAD][0])
    kind = AnnotationKind.CLOTHES if record.task is Task.CTCC else AnnotationKind.DESCRIPTION
    return record.annotations[kind]


def experiment(family: str, data: Path, output: Path, /, **changes: Mapping[str, object]) -> ExperimentConfig:
    """A run `told` over the data of `write_data`. changes: options by section."""
    values: dict[str, dict[str, object]] = {
        "data": {"dataset": "omnireid", "root": str(data), "workers": 0, "protocols": ["lists", "task-free"]},
        "augment": {"flip": 0.0},
        "model": {
            "image_size": IMAGE_SIZE,
            "instruction_size": INSTRUCTION_SIZE,
            "tokenizer": f"bert:{data / 'words'}",
            "text_length": TEXT_LENGTH,
            "vocab_size": len(vocabulary()),
        },
        "optimizer": {"lr": 0.01, "weight_decay": 0.0},
        "train": {"epochs": 3, "batch_size": 12, "select": "last"},
    }
    merged = {name: {**values.get(name, {}), **changes.get(name, {})} for name in {**values, **changes}}
    return build_experiment([("test", {"family": family, "name": "told", "output_dir": str(output), **merged})])
