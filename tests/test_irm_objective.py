"""Covers: solver/objectives/irm, solver/objectives/instructed_rows, solver/objectives/caption_terms. IRM's objective on
batches of all tasks: every term against one composed row by row, encode-once, state, draws, what is refused.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from irm_batches import (
    ALL,
    CAPTIONS,
    MIXED,
    RGB,
    TEXT,
    annotation,
    batch_of,
    context_of,
    encoded,
    objective_of,
    records_of,
)
from tiny_irm import tiny_irm
from torch import Tensor
from torch.nn import functional

from configs.schema.irm import IrmObjectiveConfig
from configs.vocabulary import Modality, Task
from datasets.loading.transforms import model_input
from datasets.structures import Batch
from model.irm import IRM
from solver.losses.adaptive_triplet import literal_adaptive_triplet_loss, released_adaptive_triplet_loss
from solver.losses.contrast import batch_contrast_loss
from solver.losses.triplet import batch_hard_triplet_loss
from solver.objectives.base import neighbour_rank1
from solver.objectives.irm import IrmObjective
from utils.errors import UserError

PLAIN = [place for place, row in enumerate(MIXED) if row[0] is not Task.T2I]
CAPTIONED = [place for place, row in enumerate(MIXED) if row[0] is Task.T2I]
GROUPS = {task: [place for place in PLAIN if MIXED[place][0] is task] for task in (Task.TRAD, Task.CTCC, Task.VI)}


def model_of(**options: Any) -> IRM:
    return tiny_irm(gates_at=0.7, **options)


def tower_features(model: IRM, batch: Batch) -> dict[int, Tensor]:
    """F of the rows without captions: what a model without an attention module compares."""
    twin = tiny_irm(gates_at=0.7, attention="none")
    own = twin.state_dict()
    twin.load_state_dict({name: model.state_dict().get(name, value) for name, value in own.items()})
    return {place: encoded(twin, batch, place)[:16] for place in PLAIN}


def by_task(loss: Any, model: IRM, batch: Batch, features: dict[int, Tensor]) -> float:
    """A triplet loss of each task by itself, weighted by rows."""
    total = 0.0
    for places in GROUPS.values():
        persons = torch.tensor([MIXED[place][2] for place in places])
        told = torch.stack([annotation(model, batch, place) for place in places])
        total += len(places) * loss(torch.stack([features[place] for place in places]), told, persons).item()
    return total / len(PLAIN)


@pytest.mark.parametrize("form", ["released", "literal", "plain"])
def test_terms_of_images_equal_those_composed_row_by_row(form: str) -> None:
    model, batch = model_of(), batch_of()
    losses = {
        "released": lambda x, told, ids: released_adaptive_triplet_loss(x, told, ids, margin=0.4),
        "literal": lambda x, told, ids: literal_adaptive_triplet_loss(x, told, ids, margin=0.4),
        "plain": lambda x, told, ids: batch_hard_triplet_loss(x, ids, margin=0.4),
    }
    weights = {"id": 0.5, "id_out": 2.0, "triplet": 3.0, "triplet_out": 4.0}
    with torch.no_grad():
        output = objective_of(model, weights, triplet=form, margin=0.4).step(model, batch, 0)
        labels = torch.tensor([MIXED[place][2] for place in PLAIN])
        tower = tower_features(model, batch)
        out = {place: encoded(model, batch, place)[:16] for place in PLAIN}
        expected = {
            "triplet": 3 * by_task(losses[form], model, batch, tower),
            "triplet_out": 4 * by_task(losses[form], model, batch, out),
        }
        for name, weight, neck, head, features in (
            ("id", 0.5, model.neck, model.classifier, tower),
            ("id_out", 2.0, model.out_neck, model.out_classifiers[0], out),
        ):
            logits = head(neck(torch.stack([features[place] for place in PLAIN])))
            expected[name] = weight * functional.cross_entropy(logits, labels).item()
    assert set(output.losses) == set(weights)
    for name, value in expected.items():
        assert output.losses[name].item() == pytest.approx(value, rel=2e-4), name
    gates = [value for name, value in model.named_parameters() if name.endswith("gate")]
    assert output.diagnostics["gate"].item() == pytest.approx(0.7) and len(gates) == 2


def test_two_streams_count_half_each_and_the_neck_may_be_compared() -> None:
    model, batch = model_of(attention="dual"), batch_of()
    with torch.no_grad():
        found = objective_of(model, ALL, triplet="plain", triplet_feature="neck").step(model, batch, 0).losses
        streams = torch.stack([encoded(model, batch, place)[:32].unflatten(0, (2, 16)) for place in PLAIN])
        necked = torch.stack([model.out_neck(stream) for stream in streams.unbind(1)], dim=1)
        labels = torch.tensor([MIXED[place][2] for place in PLAIN])
        scores = [
            functional.cross_entropy(head(stream), labels).item()
            for head, stream in zip(model.out_classifiers, necked.unbind(1))
        ]
        triplets = [
            by_task(
                lambda x, told, ids: batch_hard_triplet_loss(x, ids),
                model,
                batch,
                dict(zip(PLAIN, stream)),
            )
            for stream in necked.unbind(1)
        ]
    assert found["id_out"].item() == pytest.approx(sum(scores) / 2, rel=2e-4)
    assert found["triplet_out"].item() == pytest.approx(sum(triplets) / 2, rel=2e-4)


def test_terms_of_captions_equal_those_composed_by_hand() -> None:
    """Contrast of the caption parts; matching: the batch's own pairs and the two negatives that can be drawn."""
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        found = objective_of(model, {"contrast": 2.0, "match": 1.0, "id": 1.0}).step(model, batch, 3).losses
        texts = batch.annotations[TEXT].inputs[[2, 3, 4]]
        image = torch.stack([encoded(model, batch, place)[16:] for place in CAPTIONED])
        text = model.encode(TEXT, texts).pooled[:, 16:]
        persons = torch.tensor([5, 6, 5])
        contrast = batch_contrast_loss(image, text, persons, temperature=model.temperature)
        pictures = model_input(RGB, batch.inputs[RGB], None, "imagenet")
        numbers = [int((batch.rows[RGB] == place).nonzero()) for place in CAPTIONED]
        tokens = model.encode(RGB, pictures[numbers])
        words = model.encode(TEXT, texts)
        assert words.mask is not None
        masks = words.mask

        def score(t: int, i: int) -> Tensor:
            """Logits of one pair by `Matches.match`, which gives their column 1, and of the other column by hand."""
            return model.match(
                type(words)(tokens=words.tokens[t : t + 1], pooled=words.pooled[t : t + 1], mask=masks[t : t + 1]),
                type(tokens)(tokens=tokens.tokens[i : i + 1], pooled=tokens.pooled[i : i + 1]),
            )

        matched = model.match_head.weight.clone()
        logits = {}
        for t in range(3):
            for i in range(3):
                one = score(t, i)
                model.match_head.weight.copy_(matched.flip(0))
                model.match_head.bias.copy_(model.match_head.bias.flip(0))
                zero = score(t, i)
                model.match_head.weight.copy_(matched)
                model.match_head.bias.copy_(model.match_head.bias.flip(0))
                logits[t, i] = torch.cat([zero, one])
    assert found["contrast"].item() == pytest.approx(2 * contrast.item(), rel=2e-4)
    own = [functional.cross_entropy(logits[row, row][None], torch.tensor([1])).item() for row in range(3)]

    def apart(t: int, i: int) -> float:
        return functional.cross_entropy(logits[t, i][None], torch.tensor([0])).item()

    # Person 6 is row 1 alone, so rows 0 and 2 can only be paired with it; which of them it is paired with is drawn.
    fixed = sum(own) + apart(0, 1) + apart(2, 1) + apart(1, 0) + apart(1, 2)
    possible = [(fixed + apart(1, i) + apart(t, 1)) / 9 for i in (0, 2) for t in (0, 2)]
    assert min(abs(found["match"].item() - value) for value in possible) < 1e-4


def test_each_annotation_is_encoded_once_and_all_images_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(), batch_of()
    counted: Counter[str] = Counter()
    instructions, images = model.encode_instructions, model.encode_images

    def count_instructions(modality: Modality, inputs: Tensor) -> Any:
        counted[modality.value] += len(inputs)
        return instructions(modality, inputs)

    def count_images(inputs: Tensor, told: Any = ()) -> Any:
        counted["images"] += len(inputs)
        counted["passes"] += 1
        return images(inputs, told)

    monkeypatch.setattr(model, "encode_instructions", count_instructions)
    monkeypatch.setattr(model, "encode_images", count_images)
    objective_of(model, ALL | {"contrast": 1.0, "match": 1.0}).step(model, batch, 0)
    assert counted == {"text": 5, "rgb": 3, "images": len(MIXED), "passes": 1}


@pytest.mark.parametrize("captioned", [False, True])
def test_terms_without_a_row_are_zero_and_the_others_train(captioned: bool) -> None:
    model = model_of().train()
    rows = [MIXED[place] for place in (CAPTIONED if captioned else PLAIN)]
    objective = objective_of(model, ALL | CAPTIONS)
    output = objective.step(model, batch_of(rows), 0)
    assert list(output.losses) == [*ALL, *CAPTIONS]
    zero = {name for name, value in output.losses.items() if value.item() == 0}
    assert zero >= set(ALL if captioned else CAPTIONS) and not zero & set(CAPTIONS if captioned else ALL)
    assert list(output.diagnostics) == ["batch_rank1", "gate"]
    assert bool(output.diagnostics["batch_rank1"].isnan()) == captioned
    output.total.backward()
    assert model.image.embed.proj.weight.grad is not None
    assert (model.classifier.weight.grad is None) == captioned
    alone = objective_of(model, ALL).step(model, batch_of([MIXED[place] for place in CAPTIONED]), 0)
    alone.total.backward()
    assert alone.total.item() == 0


def test_captions_of_one_person_are_not_matched_and_the_others_train() -> None:
    model = model_of().train()
    kept = [row for place, row in enumerate(MIXED) if place in PLAIN or row[2] == 5]
    assert {row[2] for row in kept if row[0] is Task.T2I} == {5}
    output = objective_of(model, ALL | CAPTIONS).step(model, batch_of(kept), 0)
    assert {name for name, value in output.losses.items() if value.item() == 0} == {"match"}
    output.total.backward()
    gradient = model.image.embed.proj.weight.grad
    assert gradient is not None and bool(torch.as_tensor(gradient).isfinite().all())


def test_a_softmax_of_the_task_alone() -> None:
    """Persons 0 and 1 are of Trad, 2 and 3 of CTCC, 4 and 5 of VI, 5 and 6 of T2I."""
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        found = objective_of(model, {"id": 1.0}, identity_scope="task").step(model, batch, 0).losses["id"]
        features = tower_features(model, batch)
        logits = model.classifier(model.neck(torch.stack([features[place] for place in PLAIN])))
        total = 0.0
        for row, place in zip(logits, PLAIN):
            task, _, person, _, _ = MIXED[place]
            among = {Task.TRAD: [0, 1], Task.CTCC: [2, 3], Task.VI: [4, 5]}[task]
            total -= row[among].log_softmax(0)[among.index(person)].item()
    assert found.item() == pytest.approx(total / len(PLAIN), rel=2e-4)


def test_a_model_that_follows_nothing_is_told_nothing() -> None:
    model = model_of(editing="none", attention="none")
    assert not model.follows_instructions
    rows = [(*row[:4], False) for row in MIXED]
    weights = {"id": 1.0, "id_out": 1.0, "triplet": 1.0}
    with torch.no_grad():
        told, untold = (
            objective_of(model, weights, triplet="plain").step(model, batch, 0).losses
            for batch in (batch_of(), batch_of(rows))
        )
    for name, value in told.items():
        torch.testing.assert_close(value, untold[name])


def test_rank_one_of_the_batch_leaves_out_the_row_itself() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.9, 1.0]])
    assert neighbour_rank1(features, torch.tensor([0, 0, 1, 0])).item() == pytest.approx(50.0)


def test_queues_fill_and_wrap() -> None:
    model = model_of(dropout=0.0)
    objective = objective_of(model, {"contrast": 1.0}, queue=4)
    queue = objective.captions.queue
    assert queue is not None
    first = queue.image.clone()
    loss = objective.step(model, batch_of(), 0).losses["contrast"]
    assert queue.person_ids.tolist() == [5, 6, 5, -100] and queue.pointer.item() == 3
    batch = batch_of()
    image = torch.stack([encoded(model, batch, place)[16:] for place in CAPTIONED])
    torch.testing.assert_close(queue.image[:3], functional.normalize(image), rtol=1e-4, atol=1e-5)
    captions = model.encode(TEXT, batch.annotations[TEXT].inputs[2:]).pooled[:, 16:]
    torch.testing.assert_close(queue.text[:3], functional.normalize(captions), rtol=1e-4, atol=1e-5)
    assert torch.equal(queue.image[3], first[3])
    # Written after the loss: the gradient is that of the queue as it was.
    loss.backward()
    objective.step(model, batch_of(seed=1), 1)
    assert queue.person_ids.tolist() == [6, 5, 5, 5] and queue.pointer.item() == 2
    assert set(objective.state_dict()) >= {"captions.queue.image", "captions.queue.pointer"}


def test_the_copy_moves_once_for_all_micro_batches_and_only_with_captions() -> None:
    model = model_of().train()
    objective = objective_of(model, CAPTIONS | ALL, momentum=0.5)
    teacher = objective.captions.teacher
    assert teacher is not None
    weight = model.text_projection.weight
    with torch.no_grad():
        copied, was = teacher["text_projection"].weight, weight.clone()
        weight.add_(1.0)
        objective.step(model, batch_of([MIXED[place] for place in PLAIN]), 0)
        torch.testing.assert_close(copied, was)
        for _ in range(2):
            objective.step(model, batch_of(), 1)
            torch.testing.assert_close(copied, was + 0.5)
        objective.step(model, batch_of(), 2)
    torch.testing.assert_close(copied, was + 0.75)
    assert not any(value.requires_grad for value in objective.parameters())
    assert objective_of(model, {"contrast": 1.0}).captions.teacher is None


def test_draws_follow_seed_and_step_and_micro_batches_differ() -> None:
    model = model_of(dropout=0.0, drop_path=0.0)
    losses = {name: CAPTIONS[name] for name in ("masked_language", "replaced")}
    values = {}
    # What is drawn for a row is decided by its record.
    batches = [dataclasses.replace(batch_of(), record_ids=torch.arange(15) + first) for first in (0, 15)]
    for name, seed, steps in (("one", 0, (4, 4)), ("again", 0, (4,)), ("later", 0, (5,)), ("other", 1, (4,))):
        objective = objective_of(model, losses, seed)
        with torch.no_grad():
            values[name] = [objective.step(model, batch, step).total.item() for batch, step in zip(batches, steps)]
    assert values["one"][0] == values["again"][0]
    assert len({*values["one"], *values["later"], *values["other"]}) == 4


def test_state_comes_back() -> None:
    """A step after restoring equals the step of the objective that went on."""
    model = model_of(dropout=0.0, drop_path=0.0)
    losses = CAPTIONS
    going, other = (objective_of(model, losses, queue=7, momentum=0.9) for _ in range(2))
    with torch.no_grad():
        going.step(model, batch_of(), 0)
        model.text_encoder.embeddings.word_embeddings.weight.add_(0.3)
        going.step(model, batch_of(seed=1), 1)
        fresh = other.step(model, batch_of(seed=2), 2).losses["contrast"].item()
        other = objective_of(model, losses, queue=7, momentum=0.9)
        other.load_state_dict(going.state_dict())
        expected, found = (objective.step(model, batch_of(seed=2), 2).losses for objective in (going, other))
    assert expected["contrast"].item() != pytest.approx(fresh, rel=1e-4)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, value in going.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_row_left_alone_is_no_anchor_and_one_identity_is_refused() -> None:
    model = model_of()
    alone = (*MIXED, (Task.TRAD, RGB, 6, 0, True))
    with torch.no_grad():
        # The lone row takes no part in triplets: they are those of the batch without it.
        few, more = (
            objective_of(model, {"triplet": 1.0}, triplet="plain").step(model, batch_of(rows), 0)
            for rows in (MIXED, alone)
        )
    assert more.losses["triplet"].item() == pytest.approx(few.losses["triplet"].item(), rel=1e-4) != 0
    for rows in (
        [(Task.TRAD, RGB, person, 0, True) for person in (0, 1, 2)],
        [(Task.TRAD, RGB, 0, 0, True), (Task.TRAD, RGB, 0, 1, True)],
    ):
        with pytest.raises(UserError, match="of task trad, so that its triplet loss"):
            objective_of(model, {"triplet": 1.0}).step(model, batch_of(rows), 0)


def test_captions_that_are_missing_and_unknown_losses_are_refused() -> None:
    model = model_of()
    bare = [record for record in records_of() if record.task is not Task.T2I]
    uncaptioned = records_of([(Task.TRAD, RGB, 1, 0, False)])[0]
    record = type(uncaptioned)(person_id=1, sources=uncaptioned.sources, task=Task.T2I, name="train row 7")
    context = context_of(model)
    told = type(context)(seed=0, model=model, records=[*bare, record], tokenizer=context.tokenizer)
    with pytest.raises(UserError, match="train row 7 is of task t2i and has no caption"):
        IrmObjective(IrmObjectiveConfig(losses={"match": 1.0}), told)
    IrmObjective(IrmObjectiveConfig(losses={"id": 1.0}), told)
    with pytest.raises(UserError, match="contrast"):
        objective_of(model, {"contrst": 1.0})
