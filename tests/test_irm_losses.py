"""Covers: solver/losses/adaptive_triplet, solver/losses/contrast, solver/losses/matching,
solver/losses/masked_language, solver/losses/replaced_tokens. Losses of instructions and captions against loops and
cases worked by hand.
"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from solver.losses.adaptive_triplet import (
    literal_adaptive_triplet_loss,
    released_adaptive_triplet_loss,
)
from solver.losses.contrast import batch_contrast_loss, queue_contrast_loss
from solver.losses.masked_language import UNASKED, hide_pieces, masked_language_loss
from solver.losses.matching import matching_loss, matching_pairs
from solver.losses.replaced_tokens import replace_pieces, replaced_tokens_loss
from solver.losses.triplet import batch_hard_triplet_loss

ADAPTIVE = {"released": released_adaptive_triplet_loss, "literal": literal_adaptive_triplet_loss}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(rows: int = 9, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, instructions and persons, three rows each."""
    values = torch.randn(2, rows, width, generator=seeded(seed), dtype=torch.float64)
    return values[0], values[1], torch.arange(rows) % (rows // 3)


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def literal_by_hand(features: Tensor, instructions: Tensor, ids: Tensor, margin: float) -> float:
    count, terms = len(ids), []
    for a in range(count):
        others = [row for row in range(count) if row != a]
        for place, first in enumerate(others):
            for second in others[place + 1 :]:
                b1, b2 = (
                    cosine(instructions[a], instructions[row]) if ids[row] == ids[a] else 0.0 for row in (first, second)
                )
                if abs(b1 - b2) < 1e-6:
                    continue
                d1, d2 = ((features[a] - features[row]).square().sum().item() for row in (first, second))
                terms.append(max(0.0, math.copysign(1.0, b1 - b2) * (d1 + (b1 - b2) * margin - d2)))
    return sum(terms) / len(terms)


def released_by_hand(features: Tensor, instructions: Tensor, ids: Tensor, margin: float) -> float:
    total = 0.0
    for a in range(len(ids)):
        reach = sorted(((features[a] - features[row]).norm().item(), row) for row in range(len(ids)) if row != a)
        own = [(distance, row) for distance, row in reach if ids[row] == ids[a]]
        (d1, p1), (d2, p2) = own[-1], own[-2]
        nearest = next(distance for distance, row in reach if ids[row] != ids[a])
        a1, a2 = cosine(instructions[a], instructions[p1]), cosine(instructions[a], instructions[p2])
        sign = 0.0 if abs(a1 - a2) < 1e-6 else math.copysign(1.0, a1 - a2)
        within = max(0.0, sign * (d1 - d2 + (a1 - a2) * margin))
        total += 0.1 * within + max(0.0, d1 + a1 * margin - nearest)
    return total / len(ids)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adaptive_triplets_equal_loops(seed: int) -> None:
    features, instructions, ids = example(seed=seed)
    for name, oracle in (("released", released_by_hand), ("literal", literal_by_hand)):
        found = ADAPTIVE[name](features, instructions, ids, margin=0.7)
        assert found.item() == pytest.approx(oracle(features, instructions, ids, 0.7), rel=1e-10), name
        leaf = features.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, f=ADAPTIVE[name]: f(x, instructions, ids), (leaf,)), name


def test_references_told_alike_want_equal_distances() -> None:
    """Fig. 6 (b) of the paper: the margin between two references that are told nearly the same is nearly zero."""
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    features = torch.cat([triangle, torch.full((2, 2), 9.0, dtype=torch.float64)])
    angles = torch.tensor([0.0, 0.01, 0.03, 1.0, 1.0], dtype=torch.float64)
    instructions, ids = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 0, 1, 1])
    # Cosines of 0 and .01, .01 and .03, 0 and .03 differ by some 1e-4, which is all that equal distances cost.
    assert 0 < literal_adaptive_triplet_loss(features, instructions, ids, margin=0.3).item() < 1e-4
    # With the second moved away the squared distances are 1.5625, 1 and 1.3125, all three in the wrong order: .5625,
    # .25 and .3125 too much among 3 x (1 + 4) + 2 x 3 = 21 ordered pairs.
    features[1, 0] = 1.25
    found = literal_adaptive_triplet_loss(features, instructions, ids, margin=0.3).item()
    assert found == pytest.approx(1.125 / 21, abs=1e-4)
    # References that are told exactly the same are not ordered, however far they are.
    ties = torch.ones_like(instructions)
    assert literal_adaptive_triplet_loss(features, ties, ids, margin=0.3).item() == 0


def test_a_reference_of_another_person_has_the_full_margin() -> None:
    """Fig. 6 (c): b is 1 and 0. Two persons at distance .5 on a line, squared .25: .05 are missing to the margin .3."""
    alike, ids = torch.ones(4, 2, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    line = torch.tensor([[0.0], [0.0], [0.5], [0.5]], dtype=torch.float64)
    assert literal_adaptive_triplet_loss(line, alike, ids, margin=0.3).item() == pytest.approx(0.05)
    assert literal_adaptive_triplet_loss(line * 2, alike, ids, margin=0.3).item() == 0


def test_released_form_is_the_plain_triplet_where_all_are_told_the_same() -> None:
    features, _, ids = example(seed=4)
    # Rounding makes these cosines differ in the last digits only.
    alike = torch.rand(1, 7, generator=seeded()).repeat(9, 1) * torch.linspace(0.1, 3, 9)[:, None]
    plain = batch_hard_triplet_loss(features.float(), ids)
    assert released_adaptive_triplet_loss(features.float(), alike, ids).item() == pytest.approx(plain.item(), rel=1e-6)


def test_instructions_get_no_gradient_and_equal_rows_no_nan() -> None:
    for loss in ADAPTIVE.values():
        features = torch.zeros(4, 3).requires_grad_()
        instructions = torch.randn(4, 2, generator=seeded()).requires_grad_()
        loss(features, instructions, torch.tensor([0, 0, 1, 1])).backward()
        assert features.grad is not None and bool(torch.isfinite(features.grad).all())
        assert instructions.grad is None


@pytest.mark.parametrize("form", ADAPTIVE)
@pytest.mark.parametrize(("ids", "said"), [([0, 0, 0, 0], "two persons"), ([0, 0, 1, 2], "two rows of every person")])
def test_one_person_and_one_row_are_refused(form: str, ids: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ADAPTIVE[form](torch.randn(4, 3), torch.randn(4, 2), torch.tensor(ids))
    with pytest.raises(ValueError, match="instructions"):
        ADAPTIVE[form](torch.randn(4, 3), torch.randn(3, 2), torch.tensor([0, 0, 1, 1]))


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def picked(rows: Tensor, columns: Tensor, own: list[list[bool]], temperature: float, taught: Tensor | None) -> float:
    """Mean cross-entropy with the even target, mixed 6 : 4 with the answers of `taught` rows."""
    total = 0.0
    for i, row in enumerate(rows):
        answers = softmax([cosine(row, column) / temperature for column in columns])
        target = [hit / sum(own[i]) for hit in own[i]]
        if taught is not None:
            lessons = softmax([cosine(taught[i], column) / temperature for column in columns])
            target = [0.6 * wanted + 0.4 * lesson for wanted, lesson in zip(target, lessons)]
        total -= sum(wanted * math.log(answer) for wanted, answer in zip(target, answers))
    return total / len(rows)


def test_contrast_within_the_batch_equals_the_loop() -> None:
    image, text, ids = example(6, 4)
    own = [[bool(a == b) for b in ids] for a in ids]
    expected = (picked(image, text, own, 0.3, None) + picked(text, image, own, 0.3, None)) / 2
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = batch_contrast_loss(image, text, ids, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    leaves = (image.requires_grad_(), text.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(lambda a, b, c: batch_contrast_loss(a, b, ids, temperature=c), leaves)


def test_contrast_with_queues_equals_the_loop() -> None:
    image, text, ids = example(6, 4)
    queues = torch.randn(2, 7, 4, generator=seeded(5), dtype=torch.float64)
    taught, queue_ids = text + 0.3 * image.flip(0), torch.tensor([0, 1, -100, -100, 5, 1, 0])

    def loss(image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        return queue_contrast_loss(
            image, text, ids, taught_text=taught, image_queue=queues[0], text_queue=queues[1], queue_ids=queue_ids,
            temperature=temperature,
        )  # fmt: skip

    images, texts = torch.cat([image, queues[0]]), torch.cat([taught, queues[1]])
    own = [[bool(a == b) for b in torch.cat([ids, queue_ids])] for a in ids]
    expected = [
        picked(image, texts, own, 0.3, image),
        picked(text, images, own, 0.3, taught),
        picked(image, images, own, 0.3, image),
        picked(text, texts, own, 0.3, taught),
    ]
    temperature = torch.tensor(0.3, dtype=torch.float64)
    assert loss(image, text, temperature).item() == pytest.approx(sum(expected) / 4, rel=1e-10)
    with pytest.raises(ValueError, match="queues"):
        queue_contrast_loss(
            image, text, ids, taught_text=taught, image_queue=queues[0], text_queue=queues[1], queue_ids=ids,
            temperature=0.1,
        )  # fmt: skip


def test_contrast_with_queues_teaches_through_the_rows_alone() -> None:
    """Columns and targets have no gradient: one pair against a stranger is a softmax by hand."""
    image, text = torch.tensor([[0.6, 0.8]], requires_grad=True), torch.tensor([[-0.8, 0.6]], requires_grad=True)
    taught = torch.tensor([[-0.28, 0.96]], requires_grad=True)
    stranger = torch.tensor([[-0.8, 0.6]])
    queue_contrast_loss(
        image, text, torch.tensor([3]), taught_text=taught, image_queue=stranger, text_queue=stranger,
        queue_ids=torch.tensor([-100]), temperature=1.0, distillation=0.0,
    ).backward()  # fmt: skip
    assert taught.grad is None
    # Along the image, texts have .6 and 0, images 1 and 0; across it .8 and 1, 0 and 1. A row's derivative across
    # itself is sum_j p_j across_j - across_own; two of the four terms have the image as a row.
    p, q = softmax([0.6, 0.0]), softmax([1.0, 0.0])
    across = (p[0] * 0.8 + p[1] - 0.8 + q[1]) / 4
    torch.testing.assert_close(image.grad, across * torch.tensor([[-0.8, 0.6]]))


def test_negatives_are_of_other_persons_and_hard() -> None:
    ids = torch.tensor([0, 0, 1, 2])
    # The image of row 0 is much more like the caption of row 3 than like that of row 2, and most like its own person's.
    similarities = torch.tensor([[9.0, 9.0, 0.0, 4.0], [0.0] * 4, [0.0] * 4, [0.0] * 4])
    drawn = [matching_pairs(similarities, ids, seeded(seed)) for seed in range(300)]
    assert all(pairs.matched.tolist() == [1] * 4 + [0] * 8 for pairs in drawn)
    assert all(bool((pairs.texts[:4] == pairs.images[:4]).all()) for pairs in drawn)
    assert all(bool((ids[pairs.texts] == ids[pairs.images]).eq(pairs.matched == 1).all()) for pairs in drawn)
    for_captions = {tuple(pairs.texts[4:8].tolist()) for pairs in drawn}
    for_images = {tuple(pairs.images[8:].tolist()) for pairs in drawn}
    assert for_captions == for_images == {(0, 1, 2, 3)}
    hard = sum(pairs.texts[8].item() == 3 for pairs in drawn) / len(drawn)
    assert hard == pytest.approx(math.exp(4) / (math.exp(4) + 1), abs=0.03)
    # The images for the caption of row 3 are drawn down its column: 4, 0 and 0 for rows 0, 1, 2.
    column = sum(pairs.images[7].item() == 0 for pairs in drawn) / len(drawn)
    assert column == pytest.approx(math.exp(4) / (math.exp(4) + 2), abs=0.05)
    again = matching_pairs(similarities, ids, seeded(7))
    assert torch.equal(again.texts, drawn[7].texts) and torch.equal(again.images, drawn[7].images)
    with pytest.raises(ValueError, match="two persons with captions"):
        matching_pairs(similarities, torch.zeros(4, dtype=torch.int64), seeded())


def test_matching_loss_takes_column_one_for_a_match() -> None:
    logits, matched = torch.tensor([[0.0, 3.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([1, 0])
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))) / 2
    assert matching_loss(logits, matched).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="pairs"):
        matching_loss(logits, torch.tensor([1]))


def test_pieces_are_hidden_in_bert_s_shares_where_asked() -> None:
    ids = torch.arange(10, 30).repeat(2000, 1)
    askable = torch.ones_like(ids, dtype=torch.bool)
    askable[:, 0] = False
    shown, labels = hide_pieces(ids, askable, share=0.15, mask_id=3, drawn_ids=range(10, 30), generator=seeded())
    chosen = labels != UNASKED
    assert not bool(chosen[:, 0].any()) and torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(shown[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    masked, kept = (shown[chosen] == 3).float().mean().item(), (shown[chosen] == ids[chosen]).float().mean().item()
    # A twentieth of those that are drawn anew come out as they were.
    assert masked == pytest.approx(0.8, abs=0.02) and kept == pytest.approx(0.1 + 0.1 / 20, abs=0.015)
    assert set(shown[chosen].tolist()) <= {3, *range(10, 30)}
    again, _ = hide_pieces(ids, askable, share=0.15, mask_id=3, drawn_ids=range(10, 30), generator=seeded())
    assert torch.equal(again, shown)


@pytest.mark.parametrize("axis", ["vocabulary", "sequence"])
def test_masked_language_equals_the_loop(axis: Literal["vocabulary", "sequence"]) -> None:
    logits, taught = torch.randn(2, 2, 3, 4, generator=seeded(), dtype=torch.float64)
    labels = torch.tensor([[UNASKED, 2, UNASKED], [1, UNASKED, 3]])
    asked = [(0, 1, 2), (1, 0, 1), (1, 2, 3)]
    plain = distilled = 0.0
    for row, place, label in asked:
        scores = logits[row, place].tolist()
        plain -= math.log(softmax(scores)[label]) / 3
        along = [
            softmax(logits[row, :, piece].tolist())[place] if axis == "sequence" else softmax(scores)[piece]
            for piece in range(4)
        ]
        lesson = softmax(taught[row, place].tolist())
        distilled -= sum(p * math.log(q) for p, q in zip(lesson, along)) / 3
    found = masked_language_loss(logits, labels, taught=taught, distillation=0.4, axis=axis)
    assert found.item() == pytest.approx(0.6 * plain + 0.4 * distilled, rel=1e-10)
    assert masked_language_loss(logits, labels).item() == pytest.approx(plain, rel=1e-10)


def test_nothing_asked_costs_nothing() -> None:
    logits = torch.randn(1, 3, 5, generator=seeded()).requires_grad_()
    nothing = torch.full((1, 3), UNASKED)
    loss = masked_language_loss(logits, nothing, taught=torch.zeros(1, 3, 5))
    loss = loss + replaced_tokens_loss(logits[..., :2], nothing == 0, nothing == 0)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and bool((logits.grad == 0).all())
    with pytest.raises(ValueError, match="labels"):
        masked_language_loss(logits, nothing[:, :2])
    with pytest.raises(ValueError, match="sequence axis"):
        masked_language_loss(logits[0], nothing[0], taught=logits[0], axis="sequence")
    with pytest.raises(ValueError, match="replaced"):
        replaced_tokens_loss(logits, nothing == 0, nothing == 0)


def test_pieces_are_drawn_by_the_teacher_s_softmax_at_every_askable_place() -> None:
    ids = torch.tensor([[7, 1, 2, 0]]).repeat(3000, 1)
    askable = torch.tensor([[False, True, True, False]]).repeat(3000, 1)
    logits = torch.full((3000, 4, 8), -torch.inf)
    logits[:, :, 4] = 0.0
    logits[:, 2, 5] = math.log(3)
    drawn = replace_pieces(logits, ids, askable, seeded())
    assert torch.equal(drawn[:, [0, 3]], ids[:, [0, 3]]) and bool((drawn[:, 1] == 4).all())
    assert set(drawn[:, 2].tolist()) == {4, 5}
    assert (drawn[:, 2] == 5).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_replaced_pieces_are_column_one() -> None:
    logits = torch.tensor([[[5.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 9.0]]], dtype=torch.float64)
    replaced, askable = torch.tensor([[True, False, True, False]]), torch.tensor([[False, True, True, False]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert replaced_tokens_loss(logits, replaced, askable).item() == pytest.approx(expected)
