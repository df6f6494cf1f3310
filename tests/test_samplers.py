"""Covers: datasets/loading/samplers, datasets/loading/task_mixture, datasets/loading/loaders, datasets/structures.
Samplers: what every batch holds, that epochs are shuffled anew, positions, processes, mixtures; batches of mixed
modality.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.train import TrainConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.instruction_pairing import TrainingInstructions
from datasets.instructions import BANK, RELEASED, InstructionMaker
from datasets.loading.loaders import SAMPLERS, TrainLoader, build_batches, build_train_loader
from datasets.loading.readers import PillowReader, SourceReader
from datasets.loading.record_dataset import RecordDataset, collate
from datasets.loading.samplers import (
    Batches,
    IdentityBatches,
    ModalityBatches,
    RandomBatches,
    most_batches,
    process_share,
)
from datasets.loading.task_mixture import MixtureSpec, TaskBatches, apportion, compose
from datasets.loading.tokenizers import ClipTokenizer, TextReader
from datasets.loading.transforms import ImageAugmentation
from datasets.structures import Batch, Benchmark, Record, Source
from utils.errors import UserError


def record(person: int, task: Task = Task.TRAD, modality: Modality = Modality.RGB, **fields: Any) -> Record:
    return Record(
        person_id=person, sources={modality: Source(modality=modality, value=f"{person}.png")}, task=task, **fields
    )


def indices(batches: Sequence[Sequence[tuple[int, int]]]) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


# Groups of different persons


def greedy_count(groups: Sequence[int], persons: int) -> int:
    """Batches of P persons by always taking those with most groups left."""
    left, count = sorted(groups, reverse=True), 0
    while len(left) >= persons and left[persons - 1] > 0:
        left = sorted([left[place] - (place < persons) for place in range(len(left))], reverse=True)
        count += 1
    return count


def test_an_epoch_has_as_many_batches_as_can_be() -> None:
    random = np.random.default_rng(0)
    for persons in (1, 2, 5):
        for _ in range(30):
            groups = random.integers(0, 7, random.integers(0, 12)).tolist()
            assert most_batches(groups, persons) == greedy_count(groups, persons)
            ids = [person for person, count in enumerate(groups) for _ in range(count)]
            sampler = IdentityBatches(ids, persons, 0, 1)
            batches = indices(list(sampler.epoch(0)))
            assert len(batches) == len(sampler) == greedy_count(groups, persons)
            assert all(len({ids[index] for index in batch}) == persons for batch in batches)


def test_identities_change_from_batch_to_batch_and_from_epoch_to_epoch() -> None:
    ids = [person for person in range(40) for _ in range(12)]
    sampler = IdentityBatches(ids, 8 * 4, seed=3, instances=4)
    epochs = [indices(list(sampler.epoch(epoch))) for epoch in range(3)]
    people = [[frozenset(ids[index] for index in batch) for batch in batches] for batches in epochs]
    # Three groups each: five batches go round all forty persons before anyone comes again.
    for found in people:
        assert [set().union(*found[start : start + 5]) for start in (0, 5, 10)] == [set(range(40))] * 3
        assert all(not first & second for first, second in zip(found[:4], found[1:5]))
    assert len({frozenset(found) for found in people}) == 3
    together = [
        {frozenset(batch[start : start + 4]) for batch in batches for start in range(0, 32, 4)} for batches in epochs
    ]
    assert not together[0] & together[1], "no four records are grouped as in the epoch before"
    assert all(sorted(itertools.chain.from_iterable(batches)) == list(range(480)) for batches in epochs)


def test_persons_with_as_many_records_are_drawn_by_streams_of_their_own() -> None:
    persons, each = 12, 8
    ids = [person for person in range(persons) for _ in range(each)]
    plain = IdentityBatches(ids, 8, 0, 4)
    both = ModalityBatches(ids, [index % 2 == 0 for index in range(len(ids))], 8, 0, 2)
    for sampler in (plain, both):
        orders = {
            tuple(index - person * each for group in sampler.draw_groups(person, 0) for index in group)
            for person in range(persons)
        }
        assert len(orders) > 1, type(sampler).__name__


def test_identities_short_of_records_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = IdentityBatches(
            [0, 0, 0, 1, 2, 2], 9, 0, 3, {person: f"{person} (list.txt line {person})" for person in range(3)}
        )
        drawn = [indices(list(sampler.epoch(epoch))) for epoch in range(3)]
    assert sampler.resampled == (1, 2) and all({3, 4, 5} < set(batch) for batches in drawn for batch in batches)
    assert [entry.message for entry in caplog.records] == [
        "2 identities have fewer than 3 records, which are drawn more than once: 1 (list.txt line 1), 2 (list.txt line "
        "2)"
    ]


# Both modalities


def test_short_identities_are_drawn_again_and_those_without_a_modality_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Person: (infrared, visible). 1 lacks infrared, 2 has one infrared image, 3 one visible, 4 lacks visible.
    sizes = {0: (4, 7), 1: (0, 5), 2: (1, 6), 3: (5, 1), 4: (3, 0), 5: (6, 6)}
    rows = [
        (person, infrared)
        for person, counts in sizes.items()
        for infrared, count in zip((True, False), counts)
        for _ in range(count)
    ]
    names = {person: f"{person} (list.txt line {person})" for person in sizes}
    with caplog.at_level(logging.WARNING):
        sampler = ModalityBatches([person for person, _ in rows], [infrared for _, infrared in rows], 8, 0, 2, names)
        for epoch in range(4):
            for batch in indices(list(sampler.epoch(epoch))):
                for start in (0, 4):
                    group = [rows[index] for index in batch[start : start + 4]]
                    assert len({person for person, _ in group}) == 1 and [infrared for _, infrared in group] == [
                        True,
                        True,
                        False,
                        False,
                    ]
    assert (sampler.left_out, sampler.resampled) == ((1, 4), (2, 3))
    assert [entry.message for entry in caplog.records] == [
        "2 identities are left out of training because they lack infrared or visible images: 1 (list.txt line 1), 4 "
        "(list.txt line 4)",
        "2 identities have fewer than 2 infrared or visible images, which are drawn more than once: 2 (list.txt line "
        "2), 3 (list.txt line 3)",
    ], "named once"
    # Groups: 0 offers 2, 2 and 3 one each, 5 three: 7 groups, at most 3 batches of two persons.
    assert len(sampler) == 3
    seen = {index for epoch in range(30) for batch in indices(list(sampler.epoch(epoch))) for index in batch}
    assert seen == {index for index, (person, _) in enumerate(rows) if person not in (1, 4)}, (
        "the surplus comes in other epochs"
    )


def test_many_left_out_are_cut_short_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ModalityBatches([*range(30), 30, 30], [True] * 30 + [True, False], 2, 0, 1)
    assert "30 identities are left out" in caplog.text and "19 and 10 more" in caplog.text


# Mixtures


def mixed_records() -> list[Record]:
    """Tasks of different sizes; captions have one record per person, infrared data both modalities."""
    records = [record(person, Task.TRAD) for person in range(12) for _ in range(9)]
    records += [record(100 + person, Task.T2I) for person in range(30)]
    records += [
        record(200 + person, Task.VI, modality)
        for person in range(6)
        for modality in (Modality.NIR, Modality.RGB)
        for _ in range(5)
    ]
    return [records[place] for place in np.random.default_rng(1).permutation(len(records))]


SPEC = MixtureSpec(weights={Task.TRAD: 2.0}, instances={Task.T2I: 1}, default_instances=4)


def test_every_batch_has_its_rows_of_every_task() -> None:
    records = mixed_records()
    sampler = TaskBatches(records, 32, seed=0, spec=SPEC)
    # Shares 16, 8, 8 of 32 rows; T2I fills with single rows.
    assert sampler.rows == {Task.TRAD: 16, Task.VI: 8, Task.T2I: 8}
    assert len(sampler) == len(records) // 32
    visits: dict[Task, Counter[tuple[int, int]]] = {task: Counter() for task in Task}
    for epoch in range(6):
        for batch in sampler.epoch(epoch):
            chosen = [records[index] for _, index in batch]
            assert Counter(found.task for found in chosen) == sampler.rows
            people = {task: Counter(found.person_id for found in chosen if found.task is task) for task in sampler.rows}
            assert set(people[Task.TRAD].values()) == {4} and set(people[Task.T2I].values()) == {1}
            sides = Counter((found.person_id, next(iter(found.sources))) for found in chosen if found.task is Task.VI)
            assert list(sides.values()) == [2] * 4
            assert len(people[Task.VI]) == 2
            for key in batch:
                visits[records[key[1]].task].update([key])
    # A task's own epoch is part of the key: what comes again within one of them was drawn again to fill a group.
    assert max(visits[Task.T2I].values()) == 1 and {epoch for epoch, _ in visits[Task.T2I]} == set(range(12))


def test_each_batch_of_one_task_in_fixed_numbers() -> None:
    records = mixed_records()
    spec = MixtureSpec(mixture="step", weights={Task.TRAD: 3.0, Task.VI: 1.0, Task.T2I: 0.0}, default_instances=4)
    sampler = TaskBatches(records, 12, seed=0, spec=spec)
    # 168 records of two tasks make 14 batches: 10.5 to 3.5, at least one each.
    assert len(sampler) == 14 and sampler.batches_of in ({Task.TRAD: 10, Task.VI: 4}, {Task.TRAD: 11, Task.VI: 3})
    orders = []
    for epoch in range(3):
        tasks = [{records[index].task for index in batch} for batch in indices(list(sampler.epoch(epoch)))]
        assert all(len(found) == 1 for found in tasks)
        orders.append([found.pop() for found in tasks])
        assert Counter(orders[-1]) == sampler.batches_of
    assert orders[0] != orders[1]


def test_rows_and_batches_are_apportioned() -> None:
    assert compose(12, {Task.TRAD: 1, Task.VI: 1}, {Task.TRAD: 2, Task.VI: 2}) == {Task.TRAD: 6, Task.VI: 6}
    assert compose(24, {Task.TRAD: 5, Task.VI: 1}, {Task.TRAD: 4, Task.VI: 4}) == {Task.TRAD: 16, Task.VI: 8}, (
        "two identities at least"
    )
    assert apportion(10, {Task.TRAD: 1.0, Task.VI: 3.0, Task.CC: 0.01}) == {Task.TRAD: 2, Task.VI: 7, Task.CC: 1}
    with pytest.raises(UserError, match="2 tasks with at least 2 identities each need 16 rows"):
        compose(12, {Task.TRAD: 1, Task.VI: 1}, {Task.TRAD: 4, Task.VI: 4})
    with pytest.raises(UserError, match="leaves 2 rows"):
        compose(10, {Task.TRAD: 1}, {Task.TRAD: 4})
    with pytest.raises(UserError, match="epoch of 1 batches cannot serve 2 tasks"):
        apportion(1, {Task.TRAD: 1.0, Task.VI: 1.0})


def test_mixtures_that_cannot_be_made() -> None:
    records = mixed_records()
    with pytest.raises(UserError, match="train.task_weights names li, but the training records are of"):
        TaskBatches(records, 32, 0, MixtureSpec(weights={Task.LI: 1.0}))
    with pytest.raises(UserError, match="leaves no task"):
        TaskBatches(records, 32, 0, MixtureSpec(weights=dict.fromkeys(Task, 0.0)))
    with pytest.raises(UserError, match="task vi has 6 identities, but a batch needs 10"):
        TaskBatches([found for found in records if found.task is Task.VI], 40, 0, MixtureSpec())
    with pytest.raises(
        UserError, match=r"line 3: batches of both modalities need records with one image each, this one has 2"
    ):
        both = {modality: Source(modality=modality, value="a.png") for modality in (Modality.RGB, Modality.NIR)}
        SAMPLERS["modality"](
            [Record(person_id=0, sources=both, name="line 3")], TrainConfig(sampler="modality", batch_size=8), 0
        )
    with pytest.raises(ValueError, match="train.task_weights"):
        TrainConfig(task_weights={"market": 1.0})
    with pytest.raises(ValueError, match="2 x train.instances"):
        TrainConfig(sampler="modality", batch_size=12, instances=4)


# Positions and processes


def samplers(seed: int = 0) -> dict[str, Batches]:
    ids = [person for person in range(9) for _ in range(6)]
    infrared = [place % 6 < 3 for place in range(54)]
    return {
        "random": RandomBatches(ids, 8, seed, False),
        "identity": IdentityBatches(ids, 12, seed, 4),
        "modality": ModalityBatches(ids, infrared, 12, seed, 2),
        "tasks": TaskBatches(mixed_records(), 32, seed, SPEC),
        "tasks by step": TaskBatches(mixed_records(), 8, seed, MixtureSpec(mixture="step", default_instances=2)),
    }


@pytest.mark.parametrize("name", samplers())
def test_a_resumed_epoch_equals_an_uninterrupted_one(name: str) -> None:
    whole = [list(samplers()[name].epoch(epoch)) for epoch in range(3)]
    assert all(len(batches) == len(samplers()[name]) > 2 for batches in whole)
    for stop in (0, 1, len(whole[1]) - 1, len(whole[1])):
        first = samplers()[name]
        ahead = first.epoch(1)
        # A loader reads on before a batch is used; only what was used counts.
        for _ in range(min(stop + 1, len(whole[1]))):
            next(ahead)
        first.used(1, stop)
        second = samplers()[name]
        second.load_state_dict(first.state_dict())
        assert (
            second.position == ((1, stop) if stop < len(whole[1]) else (2, 0))
            and second.state_dict() == first.state_dict()
        )
        if stop < len(whole[1]):
            assert list(second.epoch(1)) == whole[1][stop:]
        assert list(second.epoch(2)) == whole[2] and list(second.epoch(1)) == whole[1], "later iterations are whole"


def test_positions_of_other_batches_are_refused() -> None:
    known = samplers()
    state = known["identity"].state_dict()
    assert state == {"sampler": "IdentityBatches", "digest": known["identity"].digest(), "epoch": 0, "batch": 0}
    for other in (known["modality"], samplers(seed=1)["identity"], IdentityBatches([0, 0, 1, 1], 4, 0, 2)):
        with pytest.raises(UserError, match="saved position is of another sampler"):
            other.load_state_dict(state)
    assert len({sampler.digest() for sampler in (*known.values(), *samplers(seed=1).values())}) == 10


@pytest.mark.parametrize("name", samplers())
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_the_same_batches(name: str, world_size: int) -> None:
    whole = list(samplers()[name].epoch(2))
    shares = [list(samplers()[name].epoch(2, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert list(itertools.chain.from_iterable(parts)) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert process_share([(0, 1), (0, 2), (0, 3)], 1, 2) == [(0, 2), (0, 3)]


# Batches

WORDS = TextReader(ClipTokenizer(), 32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for person in range(4):
        for modality in ("rgb", "nir"):
            Image.new("RGB", (4, 8), (10 * person, 0, 200 if modality == "nir" else 0)).save(
                folder / f"{person}_{modality}.png"
            )
    return folder


def infrared_records(folder: Path) -> list[Record]:
    return [
        Record(
            person_id=person,
            camera_id=3 if modality is Modality.NIR else 1,
            task=Task.VI,
            name=f"{person} {modality.value}",
            sources={modality: Source(modality=modality, value=str(folder / f"{person}_{modality.value}.png"))},
        )
        for person in range(4)
        for modality in (Modality.RGB, Modality.NIR)
    ]


def load(folder: Path, told: InstructionConfig | None = None, **train: Any) -> TrainLoader:
    benchmark = Benchmark(name="vi", train=tuple(infrared_records(folder)), num_identities=4, splits={}, fingerprint="")
    reader = SourceReader(PillowReader((8, 4)), WORDS, PillowReader((4, 4)))
    return build_train_loader(
        benchmark,
        DataConfig(),
        AugmentConfig(flip=0.5),
        reader,
        build_batches(benchmark, TrainConfig(**train), 0),
        seed=0,
        workers=0,
        instruction=told,
    )


@pytest.mark.parametrize(
    "train",
    [
        {"sampler": "modality", "batch_size": 4, "instances": 1},
        {"sampler": "random", "batch_size": 3},
        {"sampler": "tasks", "batch_size": 4, "instances": 2},
    ],
)
def test_batches_say_which_rows_show_which_modality(pictures: Path, train: dict[str, Any]) -> None:
    records = infrared_records(pictures)
    loader = load(pictures, **train)
    batches = list(loader.epoch(0))
    assert batches and loader.batches.position == (1, 0)
    for batch in batches:
        chosen = [records[index] for index in batch.record_ids.tolist()]
        assert batch.person_ids.tolist() == [found.person_id for found in chosen]
        assert batch.camera_ids is not None
        assert batch.camera_ids.tolist() == [found.camera_id for found in chosen] and set(batch.tasks) == {Task.VI}
        assert sorted(itertools.chain.from_iterable(rows.tolist() for rows in batch.rows.values())) == list(
            range(len(chosen))
        )
        for modality, rows in batch.rows.items():
            assert all(modality in chosen[row].sources for row in rows.tolist())
            # Red tells the person, blue the modality: entry i of an input is row rows[i].
            assert batch.inputs[modality][:, 0, 0, 0].tolist() == [
                10 * person for person in batch.person_ids[rows].tolist()
            ]
            assert set(batch.inputs[modality][:, 2, 0, 0].tolist()) == {200 if modality is Modality.NIR else 0}
            assert len(batch.erased[modality]) == len(rows)
        moved = batch.to(torch.device("cpu"))
        assert (
            all(torch.equal(moved.rows[modality], rows) for modality, rows in batch.rows.items())
            and moved.tasks == batch.tasks
        )
        assert [modality for modality in Modality if modality in batch.inputs] == list(batch.inputs)


def test_a_loader_resumes_where_its_batches_were_used(pictures: Path) -> None:
    options: dict[str, Any] = {"sampler": "random", "batch_size": 2}
    whole = [batch.record_ids.tolist() for batch in load(pictures, **options).epoch(1)]
    first = load(pictures, **options)
    batches = first.epoch(1)
    used = [next(batches).record_ids.tolist() for _ in range(2)]
    second = load(pictures, **options)
    second.batches.load_state_dict(first.batches.state_dict())
    rest = [batch.record_ids.tolist() for batch in second.epoch(1)]
    assert used + rest == whole and second.batches.position == (2, 0)


def said(batch: Batch | None) -> list[tuple[int, ...]]:
    """What each row was told."""
    assert batch is not None
    told = batch.annotations[Modality.TEXT]
    return [tuple(told.inputs[number].tolist()) for number in told.rows]


def test_instructions_are_drawn_read_and_told_apart_for_each_row(pictures: Path) -> None:
    reader = SourceReader(PillowReader((8, 4)), WORDS, PillowReader((4, 4)))
    records = infrared_records(pictures)
    dataset = RecordDataset(
        records,
        reader,
        ImageAugmentation(AugmentConfig(flip=0)),
        None,
        5,
        TrainingInstructions(records, InstructionMaker()),
    )
    drawn = [
        [collate(dataset.__getitems__([(epoch, index) for index in range(8)]))[0] for epoch in range(30)]
        for _ in range(2)
    ]
    assert [said(batch) for batch in drawn[0]] == [said(batch) for batch in drawn[1]]
    bank = {tuple(WORDS(sentence).tolist()) for sentence in BANK[Task.VI]}
    assert {row for batch in drawn[0] for row in said(batch)} == bank, "240 draws meet all twenty"
    for batch in drawn[0]:
        assert batch is not None and batch.instructed is not None
        assert batch.instructed.all() and len(batch.annotations[Modality.TEXT].inputs) == len(set(said(batch)))
    plain, _ = collate([RecordDataset(records, reader, ImageAugmentation(AugmentConfig(flip=0)), None, 5)[0, 0]])
    assert plain is not None and plain.instructed is not None
    assert plain.annotations == {} and not plain.instructed.any()
    released = next(
        load(
            pictures, told=InstructionConfig(sentences="released"), sampler="modality", batch_size=4, instances=1
        ).epoch(0)
    )
    assert said(released) == [tuple(WORDS(RELEASED[Task.VI]).tolist())] * 4
    needy = RecordDataset(
        [Record(person_id=0, sources=records[0].sources, task=Task.LI, dataset="cocas", name="list line 4")],
        reader,
        ImageAugmentation(AugmentConfig(flip=0)),
        None,
        5,
        TrainingInstructions(records, InstructionMaker()),
    )
    batch, (failure,) = collate([needy[0, 0]])
    assert batch is None and "list line 4" in failure.reason and "description" in failure.reason


def test_clothes_pictures_are_cut_and_a_shared_one_is_read_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 8, 3), dtype=np.uint8)
    for name in ("a", "b", "shirt"):
        Image.fromarray(pixels if name != "b" else pixels[::-1].copy()).save(tmp_path / f"{name}.png")
    shirt = Source(modality=Modality.RGB, value=str(tmp_path / "shirt.png"))
    records = [
        Record(
            person_id=index,
            sources={Modality.RGB: Source(modality=Modality.RGB, value=str(tmp_path / f"{name}.png"))},
            task=Task.CTCC,
            annotations=annotations,
        )
        for index, (name, annotations) in enumerate(
            [("a", {AnnotationKind.CLOTHES: shirt}), ("b", {}), ("b", {AnnotationKind.CLOTHES: shirt})]
        )
    ]
    opened: list[str] = []

    class Counting(PillowReader):
        def __call__(self, source: Source) -> np.ndarray:
            opened.append(source.value)
            return super().__call__(source)

    reader = SourceReader(PillowReader((20, 8)), None, Counting((8, 8)))
    dataset = RecordDataset(
        records,
        reader,
        ImageAugmentation(AugmentConfig(flip=0)),
        None,
        5,
        TrainingInstructions(records, InstructionMaker()),
    )
    batch, failures = collate(dataset.__getitems__([(0, 0), (0, 1), (0, 2)]))
    assert batch is not None and not failures and opened == [str(tmp_path / "shirt.png"), str(tmp_path / "b.png")]
    told = batch.annotations[Modality.RGB]
    assert told.rows.tolist() == [0, 1, 0] and told.inputs.shape == (2, 3, 8, 8)
    box = Image.fromarray(pixels[::-1][3:11].copy())
    assert np.array_equal(told.inputs[1].numpy(), np.moveaxis(np.asarray(box), 2, 0)), "rows 15 to 55 % of b.png"


def test_batches_that_disagree_are_refused() -> None:
    ids, images = torch.arange(3), torch.zeros(2, 3, 1, 1)
    whole = Batch(inputs={Modality.RGB: torch.zeros(3, 3, 1, 1)}, erased={}, person_ids=ids, record_ids=ids)
    assert whole.camera_ids is not None
    assert whole.rows[Modality.RGB].tolist() == [0, 1, 2] and whole.camera_ids.tolist() == [-1] * 3
    wrong: list[dict[str, Any]] = [
        {"inputs": {Modality.RGB: images}},
        {"inputs": {Modality.RGB: images}, "rows": {Modality.NIR: ids[:2]}},
        {"inputs": {Modality.RGB: images}, "rows": {Modality.RGB: ids[:2]}, "tasks": (Task.VI,)},
        {
            "inputs": {Modality.RGB: images},
            "rows": {Modality.RGB: ids[:2]},
            "erased": {Modality.RGB: torch.zeros(3, 4)},
        },
    ]
    for columns in wrong:
        with pytest.raises(AssertionError):
            Batch(**{"erased": {}, "person_ids": ids, "record_ids": ids, **columns})
