"""Covers: solver/evaluation/evaluator, solver/evaluation/encoding, solver/evaluation/features, solver/evaluation/plan,
solver/evaluation/spec, solver/evaluation/result, datasets/modalities, configs/vocabulary. Evaluator against the plain
way: every entry of every list read, encoded and fused by itself, ranked by sorting.
"""

import dataclasses
import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import GROUP_NAMES, ORBENCH_KEYS, Modality, combination_name
from datasets.loading.transforms import model_input
from datasets.structures import EvalSplit, QueryList, Source
from model.interface import Fuses, RetrievalModel, Tokens
from solver.evaluation.encoding import inference
from solver.evaluation.evaluator import evaluate_split, evaluate_splits
from solver.evaluation.plan import SourceTable, plan_evaluation
from solver.evaluation.result import METRICS, EvaluationResult, ListResult
from solver.evaluation.spec import EvaluationSpec
from utils.errors import UserError
from utils.retrieval.metrics import evaluate

CPU = torch.device("cpu")
DIM = 6
DAMAGED: set[str] = set()
"""Values of sources that cannot be read."""


class SmallModel(RetrievalModel, Fuses):
    """Stands for a model: 5 tokens per image, 3 per text, a fusion by attention that is not linear. Counts its rows."""

    statistics = "clip"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed_dim, self.num_identities = DIM, 2
        self.image = nn.ParameterDict(
            {kind: torch.randn(3 * 8, 5 * DIM, generator=generator) for kind in ("rgb", "nir", "cp", "sk")}
        )
        self.text = nn.Parameter(torch.randn(50, DIM, generator=generator))
        self.projection = nn.Parameter(torch.randn(DIM, 3 * DIM, generator=generator))
        self.rows: Counter[str] = Counter()
        self.fused_rows = 0

    def encode_batch(self, inputs: Mapping[Modality, Tensor], instructions: Any = None) -> dict[Modality, Tokens]:
        return {kind: self._encoded(kind, rows) for kind, rows in inputs.items()}

    def identity_logits(self, features: Tensor) -> Tensor:
        raise AssertionError("an evaluation classifies nothing")

    def compile_blocks(self, **options: Any) -> None:
        raise AssertionError("an evaluation compiles nothing")

    def _encoded(self, kind: Modality, inputs: Tensor) -> Tokens:
        self.rows[kind.value] += len(inputs)
        tokens = (
            self.text[inputs]
            if kind is Modality.TEXT
            else (inputs.flatten(1) @ self.image[kind.value]).view(-1, 5, DIM)
        )
        return Tokens(tokens=torch.tanh(tokens), pooled=torch.tanh(tokens)[:, 0].float())

    def prepare(self, tokens: Tensor) -> Tensor:
        return tokens @ self.projection

    def fuse_prepared(self, prepared: Tensor) -> Tensor:
        self.fused_rows += len(prepared)
        query, key, value = prepared.chunk(3, dim=2)
        return (torch.softmax(query @ key.mT, dim=2) @ value).tanh().mean(dim=1).float()


class SmallReader:
    """Stands for the reader: pixels or ids that depend on the source's text alone."""

    def __call__(self, source: Source) -> Tensor:
        if source.value in DAMAGED:
            raise UserError(f"{source.value}: damaged")
        digest = hashlib.sha256(f"{source.modality.value}{source.value}".encode()).digest()
        if source.modality is Modality.TEXT:
            return torch.tensor([byte % 50 for byte in digest[:3]])
        return torch.tensor(list(digest[:24]), dtype=torch.uint8).view(3, 4, 2)

    def annotation(self, source: Source) -> Tensor:
        raise AssertionError("nobody is told anything here")


class MirrorReader(SmallReader):
    """Every image from right to left."""

    def __call__(self, source: Source) -> Tensor:
        read_from_left = super().__call__(source)
        return read_from_left if source.modality is Modality.TEXT else read_from_left.flip(-1)


read = SmallReader()


def make_split(keys: Sequence[tuple[Modality, ...]] = ORBENCH_KEYS, people: int = 5, seed: int = 0) -> EvalSplit:
    """A gallery of 4 images a person and lists led by each of 3 anchors a person, partners drawn from the same
    person.
    """
    draw = np.random.default_rng(seed)

    def source(kind: Modality, person: int, number: int) -> Source:
        return Source(modality=kind, value=f"{kind.value} person {person} number {number}", record="made up")

    lists = []
    for combination in keys:
        entries = tuple(
            tuple(
                source(kind, person, number if kind is combination[0] else int(draw.integers(3)))
                for kind in combination
            )
            for person in range(people)
            for number in range(3)
        )
        lists.append(
            QueryList(
                combination=combination,
                entries=entries,
                person_ids=tuple(int(person) for person in np.repeat(range(people), 3)),
                group=GROUP_NAMES[len(combination)],
                draws=False,
            )
        )
    gallery = tuple(source(Modality.RGB, person, number) for person in range(people) for number in range(4))
    return EvalSplit(
        name="test",
        protocol="made up",
        gallery=gallery,
        gallery_ids=tuple(int(person) for person in np.repeat(range(people), 4)),
        query_lists=tuple(lists),
        groups=tuple(GROUP_NAMES.values()),
    )


@torch.no_grad()
def plain_metrics(model: SmallModel, split: EvalSplit) -> dict[str, dict[str, float]]:
    """The reference's way in float64: one entry at a time, members in the list's order, a stable sort, Python loops."""
    model = model.double()

    def encode(source: Source) -> Tokens:
        inputs = model_input(source.modality, read(source)[None])
        return model.encode(source.modality, inputs if source.modality is Modality.TEXT else inputs.double())

    gallery = torch.cat([encode(source).tokens[:, 0] for source in split.gallery])
    gallery = gallery / gallery.norm(dim=1, keepdim=True)
    found = {}
    for entry in split.query_lists:
        totals: list[list[float]] = []
        firsts: list[int] = []
        for sources, person in zip(entry.entries, entry.person_ids):
            members = [encode(source) for source in sources]
            if len(members) == 1:
                feature = members[0].tokens[:, 0]
            else:
                query, key, value = (torch.cat([member.tokens for member in members], dim=1) @ model.projection).chunk(
                    3, dim=2
                )
                feature = (torch.softmax(query @ key.mT, dim=2) @ value).tanh().mean(dim=1)
            similarity = (gallery @ (feature / feature.norm()).T).squeeze(1)
            order = sorted(range(len(gallery)), key=lambda index: (-float(similarity[index]), index))
            ranks = [rank for rank, index in enumerate(order, start=1) if split.gallery_ids[index] == person]
            if ranks:
                precision = sum((position + 1) / rank for position, rank in enumerate(ranks)) / len(ranks)
                shares = [ranks[0] <= depth for depth in (1, 5, 10, 20)]
                totals.append([*shares, precision, len(ranks) / ranks[-1]])
                firsts.append(ranks[0])
        if totals:
            means = [100 * sum(column) / len(totals) for column in zip(*totals)]
            found[entry.name] = dict(zip(("R1", "R5", "R10", "R20", "mAP", "mINP"), means))
            found[entry.name]["median_rank"] = statistics.median(firsts)
    return found


def assert_equal_metrics(result: EvaluationResult, expected: dict[str, dict[str, float]]) -> None:
    assert [entry.task for entry in result.lists if entry.queries] == list(expected)
    for entry in result.lists:
        if entry.queries:
            assert entry.metrics() == pytest.approx(expected[entry.task], abs=1e-6), entry.task


def test_equals_the_plain_way_on_all_lists() -> None:
    split = make_split()
    result = evaluate_split(SmallModel(), split, read, EvaluationSpec(config=EvalConfig(batch_size=7)), CPU)
    expected = plain_metrics(SmallModel(), split)
    assert len(expected) == 32 and len({round(row["mAP"], 6) for row in expected.values()}) > 20
    assert_equal_metrics(result, expected)


def test_averages_are_means_of_lists_and_of_groups() -> None:
    result = evaluate_split(SmallModel(), make_split(), read, EvaluationSpec(), CPU)
    expected = plain_metrics(SmallModel(), make_split())
    rows = {row.task: row for row in result.averages()}
    assert list(rows) == ["ONE_AVER", "TWO_AVER", "THREE_AVER", "FOUR_AVER", "ALL_AVER"]
    for size, task in ((1, "ONE_AVER"), (2, "TWO_AVER"), (3, "THREE_AVER"), (4, "FOUR_AVER")):
        values = [expected[combination_name(key)]["mAP"] for key in ORBENCH_KEYS if len(key) == size]
        assert rows[task].metrics["mAP"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert rows[task].lists == rows[task].expected == len(values)
    groups = [rows[task].metrics["R1"] for task in list(rows)[:4]]
    assert (
        rows["ALL_AVER"].metrics["R1"] == pytest.approx(sum(groups) / 4) == pytest.approx(result.average(metric="R1"))
    )


def test_each_source_is_encoded_once_and_each_set_fused_once() -> None:
    model, split = SmallModel(), make_split()
    result = evaluate_split(model, split, read, EvaluationSpec(config=EvalConfig(batch_size=4)), CPU)
    listed = {
        (source.modality, source.value)
        for entry in split.query_lists
        for sources in entry.entries
        for source in sources
    }
    listed |= {(source.modality, source.value) for source in split.gallery}
    assert model.rows == Counter(kind.value for kind, _ in listed)
    sets = {
        frozenset((source.modality, source.value) for source in sources)
        for entry in split.query_lists
        for sources in entry.entries
        if len(sources) > 1
    }
    assert model.fused_rows == len(sets) < 28 * 15 == result.counts["mixed_entries"]
    assert result.counts["distinct_sets_fused"] == len(sets)
    assert result.counts["sources_encoded"] == dict(model.rows)
    assert result.counts["query_list_entries"] == 32 * 15


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"batch_size": 50},
        {"memory_mb": 1},
        {"cache_device_mb": 0},
        {"cache_device_mb": 0, "cache_host_mb": 0},
    ],
)
def test_block_sizes_and_tiers_change_nothing(changes: dict[str, Any]) -> None:
    split = make_split(seed=4)
    result = evaluate_split(SmallModel(), split, read, EvaluationSpec(config=EvalConfig(**changes)), CPU)
    assert_equal_metrics(result, plain_metrics(SmallModel(), split))
    prepared = changes.get("cache_host_mb", 1) > 0
    assert result.cache["stored"] == ("prepared tokens" if prepared else "plain tokens")


def test_missing_lists_shrink_the_averages() -> None:
    split = dataclasses.replace(
        make_split(keys=[key for key in ORBENCH_KEYS if key[0] is not Modality.CP and len(key) != 4]),
        missing_lists={
            combination_name(key): GROUP_NAMES[len(key)]
            for key in ORBENCH_KEYS
            if key[0] is Modality.CP or len(key) == 4
        },
    )
    result = evaluate_split(SmallModel(), split, read, EvaluationSpec(), CPU)
    assert_equal_metrics(result, plain_metrics(SmallModel(), split))
    assert [(row.task, row.lists, row.expected) for row in result.averages()] == [
        ("ONE_AVER", 3, 4),
        ("TWO_AVER", 9, 12),
        ("THREE_AVER", 9, 12),
        ("FOUR_AVER", 0, 4),
        ("ALL_AVER", 21, 32),
    ]
    rows = {row.task: row.metrics["mAP"] for row in result.averages()}
    assert math.isnan(rows.pop("FOUR_AVER"))
    assert rows.pop("ALL_AVER") == pytest.approx(sum(rows.values()) / 3)
    assert any("11 query lists are missing" in note for note in result.notes())


def test_queries_without_match_are_left_out_and_listed() -> None:
    split = make_split()
    stranger = dataclasses.replace(split.query_lists[4], person_ids=(99,) * 3 + split.query_lists[4].person_ids[3:])
    nobody = dataclasses.replace(split.query_lists[5], person_ids=(99,) * 15)
    split = dataclasses.replace(split, query_lists=(*split.query_lists[:4], stranger, nobody))
    result = evaluate_split(SmallModel(), split, read, EvaluationSpec(), CPU)
    assert_equal_metrics(result, plain_metrics(SmallModel(), split))
    assert result.lists[4].without_match.tolist() == [0, 1, 2] and result.lists[4].queries == 12
    assert result.lists[5].queries == 0 and math.isnan(result.lists[5].metrics()["mAP"])
    assert [(row.task, row.lists) for row in result.averages()] == [("ONE_AVER", 4), ("TWO_AVER", 1), ("ALL_AVER", 5)]
    assert "TWO_AVER: 18 of 30 queries in 2 lists have no valid match" in "".join(result.notes())


def test_unreadable_sources_stop_or_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result equals that of a split without the gallery images and the queries that hold a damaged source."""
    split = make_split()
    numbers = ("person 0 number 1", "person 3 number 2")
    damaged = {f"{kind.value} {number}" for kind in Modality for number in numbers}
    monkeypatch.setattr("test_evaluator.DAMAGED", damaged)
    with pytest.raises(UserError, match="person 0 number 1: damaged"):
        evaluate_split(SmallModel(), split, read, EvaluationSpec(), CPU)
    result = evaluate_split(
        SmallModel(), split, read, EvaluationSpec(config=EvalConfig(batch_size=2), skip_unreadable=True), CPU
    )
    monkeypatch.setattr("test_evaluator.DAMAGED", set())
    kept = [index for index, source in enumerate(split.gallery) if source.value not in damaged]
    lists = []
    for entry in split.query_lists:
        whole = [
            index for index, sources in enumerate(entry.entries) if not damaged & {source.value for source in sources}
        ]
        lists.append(
            dataclasses.replace(
                entry,
                entries=tuple(entry.entries[index] for index in whole),
                person_ids=tuple(entry.person_ids[index] for index in whole),
            )
        )
    smaller = dataclasses.replace(
        split,
        gallery=tuple(split.gallery[index] for index in kept),
        gallery_ids=tuple(split.gallery_ids[index] for index in kept),
        query_lists=tuple(lists),
    )
    assert_equal_metrics(result, plain_metrics(SmallModel(), smaller))
    assert len(result.skipped) == 2 * 5 and {skipped.source.value for skipped in result.skipped} == damaged
    for found, rest in zip(result.lists, smaller.query_lists):
        assert len(found.unreadable) == 15 - len(rest.entries) > 0 and found.gallery == 18
    assert any(note.startswith("10 unreadable sources were skipped") for note in result.notes())


def test_a_modality_without_any_readable_source_leaves_its_lists_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split(keys=[(Modality.NIR,), (Modality.NIR, Modality.TEXT)])
    texts = tuple(dataclasses.replace(sources[1], value="gone") for sources in split.query_lists[1].entries)
    pair = dataclasses.replace(
        split.query_lists[1],
        entries=tuple((sources[0], text) for sources, text in zip(split.query_lists[1].entries, texts)),
    )
    monkeypatch.setattr("test_evaluator.DAMAGED", {"gone"})
    result = evaluate_split(
        SmallModel(),
        dataclasses.replace(split, query_lists=(split.query_lists[0], pair)),
        read,
        EvaluationSpec(skip_unreadable=True),
        CPU,
    )
    assert [entry.queries for entry in result.lists] == [15, 0]


def test_one_source_under_two_people_is_ranked_for_each() -> None:
    split = make_split(keys=[(Modality.NIR,), (Modality.NIR, Modality.CP)])
    twice = [
        dataclasses.replace(entry, entries=entry.entries * 2, person_ids=entry.person_ids + (0,) * 15)
        for entry in split.query_lists
    ]
    split = dataclasses.replace(split, query_lists=tuple(twice))
    assert_equal_metrics(
        evaluate_split(SmallModel(), split, read, EvaluationSpec(), CPU), plain_metrics(SmallModel(), split)
    )


def test_splits_share_what_they_have_in_common() -> None:
    """Ten draws of a gallery are ten splits: sources are encoded once for all of them."""
    whole = make_split(keys=[(Modality.NIR,), (Modality.NIR, Modality.TEXT)])
    draws = [
        dataclasses.replace(
            whole, name=f"draw {start}", gallery=whole.gallery[start::2], gallery_ids=whole.gallery_ids[start::2]
        )
        for start in (0, 1)
    ]
    model = SmallModel()
    results = evaluate_splits(model, draws, read, EvaluationSpec(), CPU)
    texts = {sources[1].value for sources in whole.query_lists[1].entries}
    assert model.rows == {"rgb": 20, "nir": 15, "text": len(texts)}
    for result, draw in zip(results, draws):
        assert_equal_metrics(result, plain_metrics(SmallModel(), draw))


def test_the_search_of_one_query_agrees_with_its_rank() -> None:
    result = evaluate_split(SmallModel(), make_split(), read, EvaluationSpec(), CPU)
    entry: ListResult = result.lists[7]
    for index in range(15):
        gallery, similarity = result.ranked.search(entry.task, index, top_k=100)
        assert len(gallery) == 20 and (np.diff(similarity) <= 0).all()
        hits = [
            rank for rank, image in enumerate(gallery, start=1) if result.ranked.split.gallery_ids[image] == index // 3
        ]
        assert hits[0] == entry.first_rank[index]


def test_training_mode_and_gradients_are_restored() -> None:
    model = SmallModel()
    model.train()
    evaluate_split(
        model, make_split(keys=[(Modality.NIR,)]), read, EvaluationSpec(config=EvalConfig(precision="bf16")), CPU
    )
    assert model.training and model.projection.requires_grad and torch.is_grad_enabled()


def test_each_part_of_a_model_gets_back_its_own_mode() -> None:
    model: Any = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model.train()
    model[1].eval()
    with inference(model, CPU, "fp32"):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False, False]


def test_same_text_in_two_modalities_is_two_sources() -> None:
    plan = plan_evaluation([make_split()])
    assert len(plan.table) == 20 + 4 * 15
    assert {combination for combination in plan.sets} == {
        tuple(sorted(key, key=list(Modality).index)) for key in ORBENCH_KEYS if len(key) > 1
    }


def test_a_source_under_two_instructions_is_two_slots() -> None:
    table = SourceTable()
    image = Source(modality=Modality.RGB, value="a.jpg")
    spoken = [Source(modality=Modality.TEXT, value=text) for text in ("red coat", "blue coat")]
    slots = [
        table.add(Modality.RGB, [image, image], [instruction] * 2).tolist()
        for instruction in (None, *spoken, spoken[0])
    ]
    assert slots == [[0, 0], [1, 1], [2, 2], [1, 1]] and table.add(Modality.RGB, [image]).tolist() == [0]
    assert table.instructions == [None, *spoken]
    assert {key: list(found) for key, found in table.by_space().items()} == {
        (Modality.RGB, None): [0],
        (Modality.RGB, Modality.TEXT): [1, 2],
    }
    cropped = dataclasses.replace(image, crop="box")
    assert table.add(Modality.RGB, [cropped, cropped]).tolist() == [3, 3] and table.items().tolist() == [0, 0, 0, 0]


def test_flip_of_combinations_fuses_the_mirror_images_and_keeps_the_plain_rows() -> None:
    split = make_split(seed=2)

    plain, turned = (
        evaluate_split(SmallModel(), split, reader, EvaluationSpec(), CPU) for reader in (read, MirrorReader())
    )
    result = evaluate_split(SmallModel(), split, read, EvaluationSpec(config=EvalConfig(flip=True)), CPU)
    assert [row for row in result.averages() if not row.stamp] == list(plain.averages())
    assert [row.task for row in result.averages() if row.stamp] == [f"{row.task} [flip]" for row in plain.averages()]
    both = (plain.ranked, turned.ranked)
    features = torch.stack([torch.nn.functional.normalize(ranked.features, dim=1) for ranked in both]).sum(0)
    gallery = torch.stack([torch.nn.functional.normalize(ranked.gallery_features, dim=1) for ranked in both]).sum(0)
    for entry, listed in zip((entry for entry in result.lists if entry.stamp), plain.ranked.plan.lists):
        queries = listed.queries
        similarity = (
            torch.nn.functional.normalize(features[listed.rows], dim=1)
            @ torch.nn.functional.normalize(gallery, dim=1).T
        )
        wanted = evaluate(similarity, queries.person_ids, split.gallery_ids)
        assert entry.metrics() == pytest.approx({name: wanted[name] for name in METRICS}, abs=1e-3), entry.task
    different = [
        entry.task for entry, other in zip(result.lists[32:], plain.lists) if entry.metrics() != other.metrics()
    ]
    assert len(different) == 32
