"""Covers: model/interface, solver/objectives/base, datasets/loading/record_dataset, solver/evaluation/encoding,
solver/search/ranked. A family that follows instructions, from the lists to loss, checkpoint, tables and search, against
one row at a time.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from instructed_family import (
    RGB,
    TEXT,
    ToldModel,
    ToldObjective,
    annotation,
    experiment,
    feature,
    own_instruction,
    register,
    write_data,
)
from protocol_oracle import plain_metrics, plain_queries
from torch import Tensor

from datasets.catalogue import dataset_entry
from datasets.instructions import InstructionMaker
from datasets.loading.loaders import TrainLoader
from datasets.loading.record_dataset import DrawnAnnotation, RecordDataset
from datasets.loading.samplers import RandomBatches
from datasets.loading.transforms import ImageAugmentation
from datasets.protocols import Search
from datasets.structures import Batch, ReadOptions, Record, Source
from solver.commands.train import run_training
from solver.evaluation.spec import EvaluationSpec
from solver.runs import open_run
from solver.search.gallery import Gallery
from solver.search.gallery_cache import GalleryEncoder
from solver.search.queries import Query
from solver.search.ranked import encode_queries, search
from solver.training.engine import Trainer, assemble, evaluate_job
from solver.training.job import TrainingJob
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        yield register(patch).value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def job(family: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job at its first weights."""
    return assemble(experiment(family, data, tmp_path_factory.mktemp("assembled")), CPU)


@pytest.fixture(scope="module")
def run(family: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    run_training(experiment(family, data, output), device="cpu", overwrite=False)
    return output / "told"


@pytest.fixture(scope="module")
def trained(run: Path) -> ToldModel:
    model = open_run(run).model
    assert isinstance(model, ToldModel)
    return model


def drawn(job: TrainingJob, batch: Batch, epoch: int = 0) -> list[Source]:
    maker = InstructionMaker(job.config.instruction)
    sources = [
        maker.for_training(job.loader.records[index], job.config.seed, epoch, index)
        for index in batch.record_ids.tolist()
    ]
    return [source for source in sources if source is not None]


def plain_losses(
    model: ToldModel, job: TrainingJob, batch: Batch, instructions: list[Source | None]
) -> dict[str, float]:
    """The losses of a first step: one row at a time, against an empty bank."""
    rows = []
    for index, instruction in zip(batch.record_ids.tolist(), instructions, strict=True):
        record = job.loader.records[index]
        own = feature(model, record.sources[RGB], instruction)
        rows.append((-model.classifier(own).log_softmax(0)[record.person_id], own.square().mean()))
    identity, remembered = (torch.stack(column).mean().item() for column in zip(*rows))
    return {"loss/id": identity, "loss/bank": remembered}


def first_losses(job: TrainingJob, folder: Path) -> dict[str, float]:
    Trainer(job, folder).fit()
    line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {name: line[name] for name in ("loss/id", "loss/bank")}


# Training


def test_a_batch_holds_each_distinct_annotation_once_and_read(job: TrainingJob) -> None:
    crops, modalities = set(), set()
    for batch in job.loader.epoch(0):
        told = drawn(job, batch)
        assert batch.instructed is not None and bool(batch.instructed.all())
        counts = Counter({kind: len(known.inputs) for kind, known in batch.annotations.items()})
        assert counts == Counter(source.modality for source in set(told)), "each once, however many rows have it"
        for row, source in enumerate(told):
            known = batch.annotations[source.modality]
            assert torch.equal(known.inputs[known.rows[row]], annotation(source)), source
            others = [other for kind, other in batch.annotations.items() if kind is not source.modality]
            assert all(other.rows[row] == -1 for other in others)
            crops.add(source.crop)
            modalities.add(source.modality)
    assert crops == {"", "box"} and modalities == {RGB, TEXT}, "the data have every kind"


def test_the_first_loss_is_that_of_rows_encoded_alone(family: str, data: Path, tmp_path: Path) -> None:
    job = assemble(experiment(family, data, tmp_path, train={"max_steps": 1}), CPU)
    model = job.model
    assert isinstance(model, ToldModel)
    batch = next(iter(job.loader.epoch(0)))
    told = drawn(job, batch)
    wanted = plain_losses(model, job, batch, list(told))
    model.encoded.clear()
    assert first_losses(job, tmp_path) == pytest.approx(wanted, abs=1e-5)
    assert model.encoded == Counter(source.modality for source in set(told)), "encoded once a batch, not once a row"


def test_rows_that_are_not_instructed_are_encoded_as_they_are(family: str, data: Path, tmp_path: Path) -> None:
    job = assemble(experiment(family, data, tmp_path, train={"max_steps": 1}), CPU)
    model, maker = job.model, InstructionMaker(job.config.instruction)
    assert isinstance(model, ToldModel)

    def typed(record: Record, seed: int, epoch: int, index: int) -> DrawnAnnotation | None:
        """Every third row has nothing; of the others every second one is given what is known of it."""
        source = maker.for_training(record, seed, epoch, index)
        return None if index % 3 == 0 or source is None else DrawnAnnotation(source, instructed=index % 2 == 0)

    records = job.loader.records
    rows = RecordDataset(records, job.reader, ImageAugmentation(job.config.augment), None, job.config.seed, typed)
    batches = RandomBatches([record.person_id for record in records], 12, job.config.seed, False)
    job = dataclasses.replace(job, loader=TrainLoader(rows, batches, 0, False))
    batch = next(iter(job.loader.epoch(0)))
    numbers, told = batch.record_ids.tolist(), drawn(job, batch)
    given = [source if index % 3 and index % 2 == 0 else None for index, source in zip(numbers, told, strict=True)]
    assert batch.instructed is not None
    assert batch.instructed.tolist() == [source is not None for source in given] and None in given
    known = torch.stack([known.rows >= 0 for known in batch.annotations.values()]).any(dim=0)
    assert known.tolist() == [index % 3 > 0 for index in numbers], "what is known is there for losses all the same"
    wanted = plain_losses(model, job, batch, given)
    assert first_losses(job, tmp_path) == pytest.approx(wanted, abs=1e-5)


def test_the_state_of_the_objective_is_restored_from_last(run: Path, job: TrainingJob) -> None:
    saved = load_checkpoint(run / "last.pth")["objective"]
    assert set(saved) == {"bank"} and bool(saved["bank"].any(dim=1).all()), "every person has been seen"
    assert "objective" not in load_checkpoint(run / "best.pth")
    objective = job.objective
    assert isinstance(objective, ToldObjective) and not objective.bank.any()
    batch = next(iter(job.loader.epoch(0)))
    empty = objective.step(job.model, batch, 0).losses["bank"].item()  # type: ignore[arg-type]
    objective.load_state_dict(saved)
    assert torch.equal(objective.bank, saved["bank"])
    restored = objective.step(job.model, batch, 0).losses["bank"].item()  # type: ignore[arg-type]
    assert restored != pytest.approx(empty, rel=0.01), "the loss depends on it"


def test_training_moves_every_part(run: Path, job: TrainingJob, trained: ToldModel) -> None:
    first = job.model.state_dict()
    for name, value in trained.state_dict().items():
        assert not torch.equal(value, first[name]), f"{name}: the instruction reaches the loss"


# Evaluation


def searches_of(data: Path) -> list[Search]:
    entry = dataset_entry("omnireid")
    release = entry.read(data, ReadOptions())
    return [search for name in ("lists", "task-free") for search in entry.protocols[name].searches(release)]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch_size", [4, 512])
def test_task_specific_and_task_free_tables(
    family: str, data: Path, tmp_path: Path, trained: ToldModel, cached: bool, batch_size: int
) -> None:
    changes: dict[str, Mapping[str, object]] = {
        "data": {"cache_dir": str(tmp_path / "cache")} if cached else {},
        "eval": {"batch_size": batch_size},
    }
    job = dataclasses.replace(assemble(experiment(family, data, tmp_path, **changes), CPU), model=trained)
    result = evaluate_job(job, job.benchmark.splits["test"])
    searches = searches_of(data)
    assert [found.task for found in result.lists] == [search.title for search in searches]
    assert {search.gallery_instructions for search in searches} == {True, False}
    for found, plain in zip(result.lists, searches, strict=True):
        queries = {id(record) for record in plain.query}

        def vector(record: Record, plain: Search = plain, queries: set[int] = queries) -> Tensor:
            told = id(record) in queries or plain.gallery_instructions
            with torch.no_grad():
                own = feature(trained, record.sources[RGB], own_instruction(record) if told else None)
            return own / own.norm()

        rows = plain_queries(plain, lambda record: vector(record).numpy())
        assert found.metrics() == pytest.approx(plain_metrics(rows), abs=1e-4), found.task
        for query, record in enumerate(plain.query):
            _, similarity = result.ranked.search(found.task, query, 99)
            plainly = sorted((float(vector(record) @ vector(item)) for item in plain.gallery), reverse=True)
            assert similarity.tolist() == pytest.approx(plainly, abs=1e-5), found.task


def test_a_distinct_instruction_is_encoded_once_a_batch(
    family: str, data: Path, tmp_path: Path, trained: ToldModel
) -> None:
    changes: dict[str, Mapping[str, object]] = {"data": {"protocols": ["lists"]}, "eval": {"batch_size": 512}}
    job = dataclasses.replace(assemble(experiment(family, data, tmp_path, **changes), CPU), model=trained)
    texts, clothes = Counter[str](), Counter[str]()
    slots = {
        (record.sources[RGB].value, own_instruction(record))
        for plain in searches_of(data)
        if plain.gallery_instructions
        for record in (*plain.query, *plain.gallery)
    }
    for _, told in slots:
        (texts if told.modality is TEXT else clothes)[f"{told.value} {told.crop}"] += 1
    assert len(slots) < 32 and max(texts.values()) > 1 and max(clothes.values()) > 1, "one batch each, with repetitions"
    trained.encoded.clear()
    evaluate_job(job, job.benchmark.splits["test"])
    assert trained.encoded == {TEXT: len(texts), RGB: len(clothes)}


# Search


@pytest.fixture
def found(data: Path) -> Gallery:
    pictures = sorted((data / "real2" / "g").iterdir())
    sources = tuple(Source(modality=RGB, value=str(path), record="gallery") for path in pictures)
    return Gallery(name="g", location=str(data), sources=sources)


def told_with(gallery: Gallery, instruction: Source | None) -> Gallery:
    return dataclasses.replace(gallery, instructions=(instruction,) * len(gallery.sources))


def described(value: str) -> Source:
    return Source(modality=TEXT, value=value)


def test_queries_and_gallery_are_searched_under_their_instructions(
    job: TrainingJob, data: Path, tmp_path: Path, trained: ToldModel, found: Gallery
) -> None:
    image = Source(modality=RGB, value=str(data / "real2" / "q" / "11_1.png"))
    box = dataclasses.replace(found.sources[0], crop="box")
    asked = [None, described("a person in red"), described("with a blue bag"), box, found.sources[0]]
    queries = [Query(name=str(number), sources=(image,), instruction=told) for number, told in enumerate(asked)]
    encoder = GalleryEncoder(trained, job.reader, EvaluationSpec(), CPU, identity={}, cache=tmp_path)
    for said in (None, described("Find this person again."), box):
        gallery = encoder.encode(told_with(found, said))
        assert not gallery.reused
        results = search(encode_queries(trained, queries, job.reader, EvaluationSpec(), CPU), gallery, 99)
        for told, ranked in zip(asked, results, strict=True):
            with torch.no_grad():
                query = feature(trained, image, told)
                items = torch.stack([feature(trained, source, said) for source in found.sources])
            cosines = torch.cosine_similarity(items, query[None]).tolist()
            wanted = [index for _, index in sorted((-value, index) for index, value in enumerate(cosines))]
            assert [item.index for item in ranked.results] == wanted
            assert [item.similarity for item in ranked.results] == pytest.approx(
                [cosines[index] for index in wanted], abs=1e-5
            )


def test_an_encoded_gallery_is_kept_under_its_instruction(
    job: TrainingJob, tmp_path: Path, trained: ToldModel, found: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    clothes = tmp_path / "clothes.png"
    clothes.write_bytes(Path(found.sources[0].value).read_bytes())
    shown = Source(modality=RGB, value=str(clothes))
    encoder = GalleryEncoder(trained, job.reader, EvaluationSpec(), CPU, identity={}, cache=tmp_path / "kept")
    said = [None, described("in red"), described("in blue"), shown, dataclasses.replace(shown, crop="box")]
    galleries = [told_with(found, told) for told in said]
    first = [encoder.encode(gallery) for gallery in galleries]
    assert not any(gallery.reused for gallery in first), "each instruction makes features of its own"
    again = [encoder.encode(gallery) for gallery in galleries]
    assert all(gallery.reused for gallery in again)
    assert all(torch.equal(one.features, other.features) for one, other in zip(first, again, strict=True))
    clothes.write_bytes(Path(found.sources[-1].value).read_bytes())
    assert [encoder.encode(gallery).reused for gallery in galleries] == [True, True, True, False, False]
    clothes.unlink()
    with pytest.raises(UserError, match=r"clothes\.png"):
        encoder.encode(galleries[3])
    # A model that follows none encodes the images alone, once for all instructions.
    monkeypatch.setattr(trained, "follows_instructions", False)
    assert len({str(encoder.path(gallery)) for gallery in galleries[:3]}) == 1
