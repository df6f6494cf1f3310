"""Covers: datasets/instruction_pairing, datasets/given_instructions. Which annotation a training row has and whether it
is given it; tests whose queries get another person's instruction, or none.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from configs.load import build_experiment
from configs.schema.data import InstructionConfig
from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.formats.listing import outfit_id
from datasets.given_instructions import with_given
from datasets.instruction_pairing import TrainingInstructions
from datasets.instructions import BANK, InstructionMaker
from datasets.protocols import Search, assemble_split
from datasets.releases.cocas import in_target_outfit
from datasets.structures import EvalSplit, Record, Source
from utils.errors import UserError

RGB, TEXT = Modality.RGB, Modality.TEXT
CLOTHES, DESCRIPTION = AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION


def image(path: str) -> Source:
    return Source(modality=RGB, value=path)


def text(value: str) -> Source:
    return Source(modality=TEXT, value=value)


def record(task: Task, person: int, outfit: int, number: int = 0, **changes: Any) -> Record:
    """A picture of a person in an outfit (-1 unknown), with its own template and description."""
    name = f"{person}-{outfit}-{number}"
    annotations = {CLOTHES: image(f"template {name}"), DESCRIPTION: text(f"description {name}")}
    values: dict[str, Any] = {
        "person_id": person,
        "clothes_id": outfit_id(person, outfit) if outfit >= 0 else -1,
        "sources": {RGB: image(name)},
        "annotations": annotations if task in (Task.CTCC, Task.LI) else {},
        "name": name,
        "dataset": "mine",
    }
    return Record(**{**values, **changes}, task=task)


RECORDS = (
    record(Task.CTCC, 1, 0),
    record(Task.CTCC, 1, 1, 0),
    record(Task.CTCC, 1, 1, 1),
    record(Task.CTCC, 1, 2),
    # The same person under another task, another person, one in a single outfit, and unknown clothes.
    record(Task.LI, 1, 0),
    record(Task.LI, 1, 3),
    record(Task.CTCC, 2, 5),
    record(Task.LI, 3, 0, 0),
    record(Task.LI, 3, 0, 1),
    record(Task.LI, 1, -1),
    record(Task.TRAD, 1, -1),
    record(Task.CC, 1, 0),
    record(Task.T2I, 4, -1, sources={RGB: image("photo"), TEXT: text("caption")}),
)
OWN = [
    *(f"template {name}" for name in ("1-0-0", "1-1-0", "1-1-1", "1-2-0")),
    *(f"description {name}" for name in ("1-0-0", "1-3-0")),
    "template 2-5-0",
    *(f"description {name}" for name in ("3-0-0", "3-0-1", "1--1-0")),
]


def drawn(seed: int = 3, epochs: int = 200, **options: Any) -> list[list[tuple[str, bool]]]:
    """What each record is told in each epoch: (text or picture, instructed)."""
    tell = TrainingInstructions(RECORDS, InstructionMaker(InstructionConfig(**options)))
    found = []
    for index, item in enumerate(RECORDS):
        rows = [tell(item, seed, epoch, index) for epoch in range(epochs)]
        found.append([(f"{row.source.crop} {row.source.value}".strip(), row.instructed) for row in rows if row])
    return found


def test_by_default_every_row_is_given_its_own_but_captions_are_not_instructions() -> None:
    found = drawn(epochs=30)
    assert [set(rows) for rows in found[:10]] == [{(own, True)} for own in OWN]
    assert {text for text, _ in found[10]} <= {*BANK[Task.TRAD]} and {text for text, _ in found[11]} <= {*BANK[Task.CC]}
    assert {told for rows in found[10:12] for _, told in rows} == {True} and set(found[12]) == {("caption", False)}
    assert all(len(rows) == 30 for rows in found)


def test_a_fixed_sentence_is_the_same_in_training_and_at_test() -> None:
    found = drawn(epochs=30, sentences="fixed", test_sentence=7)
    assert set(found[10]) == {(BANK[Task.TRAD][7], True)} and set(found[11]) == {(BANK[Task.CC][7], True)}
    maker = InstructionMaker(InstructionConfig(sentences="fixed", test_sentence=7))
    given = maker.for_test(record(Task.VI, 1, -1))
    assert given is not None and given.value == BANK[Task.VI][7]


def test_of_another_image_in_other_clothes_of_the_same_person_and_task() -> None:
    found = [Counter(text for text, _ in rows) for rows in drawn(epochs=600, pairing="other")]
    others = {"template 1-1-0", "template 1-1-1", "template 1-2-0"}
    # Each image is equally likely: 200 of 600, sd 12.
    assert set(found[0]) == others and all(140 < count < 260 for count in found[0].values())
    assert set(found[1]) == {"template 1-0-0", "template 1-2-0"} == set(found[2])
    assert set(found[3]) == {"template 1-0-0", "template 1-1-0", "template 1-1-1"}
    assert set(found[4]) == {"description 1-3-0"} and set(found[5]) == {"description 1-0-0"}
    # No other clothes, or none that are known: its own.
    assert [set(rows) for rows in found[6:10]] == [{own} for own in OWN[6:]]


def test_a_coin_tells_queries_from_gallery_images() -> None:
    found = drawn(epochs=400, typing="coin", pairing="other")
    for index, rows in enumerate(found[:12]):
        # 200 of 400, sd 10.
        assert 150 < sum(told for _, told in rows) < 250, index
    assert {told for _, told in found[12]} == {False}
    for index, own in enumerate(OWN):
        assert {text for text, told in found[index] if not told} == {own}
        others = {text for text, told in found[index] if told}
        assert own in others if index >= 6 else own not in others
    assert found == drawn(epochs=400, typing="coin", pairing="other") != drawn(4, 400, typing="coin", pairing="other")
    # Rows of one epoch are typed by themselves.
    assert len({tuple(told for _, told in rows) for rows in found[:12]}) == 12


def test_galleries_of_lists_are_given_what_their_image_shows() -> None:
    found = drawn(epochs=400, typing="lists", pairing="other")
    coin = drawn(epochs=400, typing="coin", pairing="other")
    for index, rows in enumerate(found[:12]):
        # The same coin: who is a query has what it has there; the others are given their own.
        assert all(told for _, told in rows)
        queries = [told for _, told in coin[index]]
        for (text, _), (before, _), query in zip(rows, coin[index], queries, strict=True):
            own_box = RECORDS[index].task is Task.CTCC and not query
            assert text == (f"box {RECORDS[index].name}" if own_box else before), index
    assert set(found[12]) == {("caption", False)}


def test_boxes_that_are_refused_are_not_drawn() -> None:
    with pytest.raises(UserError, match="instruction.typing = 'lists'.*instruction.crop=none"):
        build_experiment([("here", {"family": "irm", "instruction": {"typing": "lists", "crop": "none"}})])


def test_a_training_row_without_its_annotation_is_refused_before_any_batch() -> None:
    without = record(Task.LI, 8, 0, annotations={}, name="train_attr.txt line 3", dataset="omnireid")
    with pytest.raises(UserError, match=r"train_attr.txt line 3: .*put datalist/runner_real2_v1_gpt.json"):
        TrainingInstructions([*RECORDS, without], InstructionMaker())


def split_of(queries: list[Record], *more: Search) -> EvalSplit:
    gallery = [record(Task.CTCC, person, outfit, 9) for person in (1, 2, 3) for outfit in (0, 1)]
    search = Search(title="asked", protocol="target", query=queries, gallery=gallery, group="all", pooled=True)
    return assemble_split("test", [search, *more], {"target": "what is right", "t2i": "x"}, InstructionMaker().for_test)


def person_of(source: Source | None) -> int:
    assert source is not None
    return int(source.value.split(" ")[1].split("-")[0])


@pytest.mark.parametrize("identity", ["person", "outfit"])
def test_shuffled_instructions_are_of_other_persons_and_change_nothing_else(identity: str) -> None:
    queries = [record(Task.CTCC, person, outfit) for person in (1, 2, 3, 4) for outfit in range(person)]
    queries += [record(Task.LI, person, 0) for person in (5, 6)]
    if identity == "outfit":
        # An identity is a person in one outfit; the same person's other outfit is no other person's.
        queries = list(in_target_outfit(queries))
    plain = split_of(queries)
    shuffled = with_given(plain, "shuffled")
    (before,), (after,) = plain.query_lists, shuffled.query_lists
    persons = [person_of(source) for source in before.instructions]
    given = [person_of(source) for source in after.instructions]
    assert all(one != other for one, other in zip(persons, given))
    # A ring over persons: each gives to one other; templates go to those who ask by templates.
    assert len(set(zip(persons, given))) == 6 and Counter(zip(persons, given)).keys() >= {(5, 6), (6, 5)}
    assert [source.modality for source in after.instructions if source] == [RGB] * 10 + [TEXT] * 2
    assert with_given(plain, "shuffled") == shuffled and with_given(plain, "right") is plain
    kept = dataclasses.replace(
        after, instructions=before.instructions, title="asked", protocol=before.protocol, group="all"
    )
    assert kept == before and shuffled.gallery_instructions == plain.gallery_instructions
    assert (after.title, after.protocol) == ("asked [instructions shuffled]", "target [instructions shuffled]")
    assert after.group == "all [instructions shuffled]" == shuffled.pooled_groups[0]
    assert shuffled.protocol == (
        "target: what is right; target [instructions shuffled]: target in which every query has the instruction of a "
        "query of another person, drawn once"
    )


def test_no_instructions_and_lists_that_never_had_any() -> None:
    captions = Search(
        title="t",
        protocol="t2i",
        query=[record(Task.T2I, person, -1, sources={TEXT: text(f"words {person}")}) for person in (1, 2)],
        gallery=[record(Task.T2I, person, -1) for person in (1, 2)],
    )
    plain = split_of([record(Task.CTCC, person, 0) for person in (1, 2)], captions)
    found = with_given(plain, "none")
    assert found.query_lists[1] == plain.query_lists[1] == with_given(plain, "shuffled").query_lists[1]
    assert not found.query_lists[0].instructions and found.query_lists[0].annotations
    assert found.query_lists[0].name == "asked [no instructions]" and "t2i: x" in found.protocol
    assert found.gallery_instructions == plain.gallery_instructions and any(found.gallery_instructions)


def test_what_cannot_be_taken_away_is_refused() -> None:
    one = split_of([record(Task.CTCC, 1, outfit) for outfit in (0, 1)])
    with pytest.raises(UserError, match="all queries of asked with an instruction are of one person"):
        with_given(one, "shuffled")
    with pytest.raises(UserError, match="instruction.given = 'none'.*the family reid5o is given no instruction"):
        build_experiment([("here", {"family": "reid5o", "instruction": {"given": "none"}})])
    for key, wrong, near in (("pairing", "others", "other"), ("typing", "coins", "coin"), ("given", "shuffle", "shuf")):
        with pytest.raises(UserError, match=f"instruction.{key}.*{near}"):
            build_experiment([("here", {"family": "reid5o", "instruction": {key: wrong}})])
