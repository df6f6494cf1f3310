"""Losses of images and their captions (T2I): contrast, matching, masked language, replaced pieces.

Shapes: b captions and their images, T ids of a caption, E caption_dim, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema.irm import CaptionOptions
from configs.vocabulary import Modality, Task
from model.editing import Tower
from model.instruction_encoders import TextEncoder
from model.irm import IRM
from model.said import Said
from solver.losses.contrast import batch_contrast_loss, queue_contrast_loss
from solver.losses.masked_language import UNASKED, hide_pieces, masked_language_loss
from solver.losses.matching import matching_loss, matching_pairs
from solver.losses.numerics import same_person, unit_rows
from solver.losses.replaced_tokens import replace_pieces, replaced_tokens_loss
from solver.objectives.base import ObjectiveContext
from solver.objectives.instructed_rows import InstructedRows, at, index_of
from solver.objectives.rows import Rows, Spread
from solver.objectives.training_state import FeatureQueue, MomentumCopy
from utils.errors import UserError
from utils.seeding import stream_seed

IMAGE, TEXT, PATCHES, WORDS = "caption image", "caption text", "caption patches", "caption words"
ASKED, REPLACED = "caption asked", "caption replaced"
"""Columns of features. Features of images and captions (b, E); what matching looks at, (b, 1 + P, C) and (b, T, C);
what the language head reads, (asked, C) or (b, T, C); scores of replaced pieces (b, T, 2)."""
PERSONS, TAUGHT, PIECES, LABELS = "caption persons", "caption taught", "caption pieces", "caption labels"
LESSON, IS_REPLACED, ASKABLE = "caption lesson", "caption is replaced", "caption askable"
"""Facts: (b,) persons; (b, E) the copy's features of the captions; (b, T) which pieces are no padding; the hidden ids,
and what the copy's language head reads, as the features asked; (b, T) which pieces are replaced, which could be."""
CAPTION_LOSSES = ("contrast", "match", "masked_language", "replaced")


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """Image rows with their captions."""

    tower: Tower
    """Of the b images."""
    said: Said
    """The distinct texts of the batch."""
    texts: Tensor
    """(b,) int64: which of them is each image's caption."""
    ids: Tensor
    """(b, T) int64: the captions."""
    persons: Tensor
    """(b,) int64."""
    records: tuple[int, ...]
    """(b,): index of each image's training record."""


def captioned_rows(rows: InstructedRows) -> Captioned | None:
    """Return the T2I rows of a batch with their captions, None without any."""
    places = rows.places(captioned=True)
    if not places:
        return None
    assert rows.texts is not None, "a batch with T2I rows has their captions as annotations"
    index = index_of(places, rows.labels.device)
    texts = rows.annotated[Modality.TEXT][index]
    return Captioned(
        tower=at(rows.tower, index),
        said=rows.said[Modality.TEXT],
        texts=texts,
        ids=rows.texts[texts],
        persons=rows.labels[index],
        records=tuple(rows.records[place] for place in places),
    )


class CaptionTerms(torch.nn.Module):
    """The weighted losses of captions and what they remember: queues and a momentum copy of the text encoder.

    paper form (eq. 10): contrast within the batch and matching. Released form: the options queue and distillation, and
    the weights .5 contrast, match, masked_language, .5 replaced.
    """

    queue: FeatureQueue | None
    teacher: MomentumCopy | None

    def __init__(self, config: CaptionOptions, weights: Mapping[str, float], context: ObjectiveContext) -> None:
        """weights: of all losses; those of captions are taken. Raises UserError for T2I records without a caption."""
        super().__init__()
        model = context.model
        assert isinstance(model, IRM)
        self.config, self.seed, self.tokenizer = config, context.seed, context.tokenizer
        self.weights = {name: weights[name] for name in CAPTION_LOSSES if name in weights}
        if self.weights:
            _check_captions(context)
        width = model.config.caption_dim
        queued = bool(config.queue) and "contrast" in self.weights
        generator = torch.Generator().manual_seed(stream_seed(context.seed, "queue"))
        self.queue = FeatureQueue(config.queue, width, generator) if queued else None
        taught = "masked_language" in self.weights and config.distillation > 0
        copied = queued or taught or "replaced" in self.weights
        self.teacher = MomentumCopy(_taught(model), config.momentum) if copied else None

    def encode(self, model: IRM, captions: Captioned | None, step: int) -> Rows:
        """Return the columns that the terms look at, none without captions.

        What is hidden and replaced is drawn for each caption by (seed, step, record), whatever stands beside it.
        """
        if captions is None or not self.weights:
            return Rows(features={})
        self._follow(model, step)
        features: dict[str, Tensor] = {}
        facts = {PERSONS: captions.persons}
        if "contrast" in self.weights or "match" in self.weights:
            features[IMAGE] = model.image_caption_feature(captions.tower.cls)
            features[TEXT] = model.caption_feature(captions.said)[captions.texts]
        if self.queue is not None:
            facts[TAUGHT] = unit_rows(self._taught_features(captions.ids))
        if "match" in self.weights:
            features[PATCHES] = captions.tower.tokens
            features[WORDS] = captions.said.tokens[captions.texts]
            facts[PIECES] = captions.said.mask[captions.texts]
        if "masked_language" in self.weights:
            features[ASKED], more = self._masked(model, captions, step)
            facts |= more
        if "replaced" in self.weights:
            features[REPLACED], more = self._replaced(model, captions, step)
            facts |= more
        return Rows(features=features, facts=facts)

    def terms(self, model: IRM, rows: Rows, nothing: Tensor, step: int, spread: Spread) -> dict[str, Tensor]:
        """Return every weighted term; `nothing`, a scalar, stands for each in a batch without captions, and
        for the matching where all captions are of one person.

        Which pairs are matched is drawn by (seed, step).
        """
        if not rows.count(PERSONS) or not self.weights:
            return dict.fromkeys(self.weights, nothing)
        # Encoding has done it, but for a process that had no caption.
        self._follow(model, step)
        terms: dict[str, Tensor] = {}
        if "contrast" in self.weights:
            terms["contrast"] = self._contrast(model, rows)
        if "match" in self.weights:
            # Captions of one person alone have no wrong image to be told from.
            alone = bool(same_person(rows.facts[PERSONS]).all())
            terms["match"] = nothing if alone else self._match(model, rows, step, spread)
        if "masked_language" in self.weights:
            terms["masked_language"] = self._masked_language(model, rows)
        if "replaced" in self.weights:
            terms["replaced"] = replaced_tokens_loss(
                rows.features[REPLACED], rows.facts[IS_REPLACED], rows.facts[ASKABLE]
            )
        return {name: weight * terms[name] for name, weight in self.weights.items()}

    def _follow(self, model: IRM, step: int) -> None:
        if self.teacher is not None:
            self.teacher.follow(_taught(model), step)

    def _contrast(self, model: IRM, rows: Rows) -> Tensor:
        image, text, persons = rows.features[IMAGE], rows.features[TEXT], rows.facts[PERSONS]
        if self.queue is None:
            return batch_contrast_loss(image, text, persons, temperature=model.temperature)
        taught = rows.facts[TAUGHT]
        loss = queue_contrast_loss(
            image,
            text,
            persons,
            taught_text=taught,
            # Copies: the queue is overwritten before the backward pass.
            image_queue=self.queue.image.clone(),
            text_queue=self.queue.text.clone(),
            queue_ids=self.queue.person_ids,
            temperature=model.temperature,
            distillation=self.config.distillation,
        )
        self.queue.push(unit_rows(image.detach().float()), taught, persons)
        return loss

    def _match(self, model: IRM, rows: Rows, step: int, spread: Spread) -> Tensor:
        """Matching with negatives by the similarities of the contrast."""
        image, text, persons = rows.features[IMAGE], rows.features[TEXT], rows.facts[PERSONS]
        with torch.no_grad():
            similarities = unit_rows(image.float()) @ unit_rows(text.float()).T / model.temperature
        pairs = matching_pairs(similarities, persons, self._draws(persons.device, "captions", step))
        texts, images = spread.agreed(pairs.texts), spread.agreed(pairs.images)
        patches = rows.features[PATCHES]
        tower = Tower(cls=patches[:, 0], tokens=patches)
        said = Said(tokens=rows.features[WORDS], mask=rows.facts[PIECES])
        logits = spread.rows(len(texts), lambda part: model.match_logits(said, texts[part], tower, images[part]))
        return matching_loss(logits, pairs.matched)

    @torch.no_grad()
    def _taught_features(self, ids: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.teacher["text_projection"](self._teacher_encoder()(ids).cls).float()

    @torch.no_grad()
    def _taught_tokens(self, ids: Tensor, tower: Tower) -> Tensor:
        """(b, T, C): what the copy's language head reads."""
        encoder = self._teacher_encoder()
        return encoder.fuse(encoder(ids), tower.tokens)

    def _draws(self, device: torch.device, *key: int | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(stream_seed(self.seed, *key))

    def _hidden(self, captions: Captioned, share: float, name: str, step: int) -> tuple[Tensor, Tensor]:
        assert self.tokenizer is not None
        drawn = [
            hide_pieces(
                ids[None],
                self._askable(ids[None]),
                share=share,
                mask_id=self.tokenizer.mask_id,
                drawn_ids=self.tokenizer.ordinary_ids,
                generator=self._draws(ids.device, name, step, record),
            )
            for ids, record in zip(captions.ids, captions.records, strict=True)
        ]
        return torch.cat([shown for shown, _ in drawn]), torch.cat([labels for _, labels in drawn])

    def _askable(self, ids: Tensor) -> Tensor:
        assert self.tokenizer is not None
        ordinary = self.tokenizer.ordinary_ids
        return (ids >= ordinary.start) & (ids < ordinary.stop)

    def _masked(self, model: IRM, captions: Captioned, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the language head reads of captions with pieces hidden, and the facts about it."""
        shown, labels = self._hidden(captions, self.config.mask_share, "masked", step)
        fused = model.fused_tokens(model.encode_instructions(Modality.TEXT, shown), captions.tower.tokens)
        lesson = self._taught_tokens(shown, captions.tower) if self._teaches else None
        if self.config.distillation_axis == "vocabulary":
            # Asked positions alone: the vocabulary is large and most positions are not asked.
            asked = labels != UNASKED
            fused, labels, lesson = fused[asked], labels[asked], None if lesson is None else lesson[asked]
        return fused, {LABELS: labels} | ({} if lesson is None else {LESSON: lesson})

    @property
    def _teaches(self) -> bool:
        return self.teacher is not None and self.config.distillation > 0

    def _masked_language(self, model: IRM, rows: Rows) -> Tensor:
        taught = None
        if self._teaches:
            with torch.no_grad():
                taught = self._teacher_encoder().language_logits(rows.facts[LESSON])
        return masked_language_loss(
            model.masked_language_logits(rows.features[ASKED]),
            rows.facts[LABELS],
            taught=taught,
            distillation=self.config.distillation,
            axis=self.config.distillation_axis,
        )

    def _replaced(self, model: IRM, captions: Captioned, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scores (b, T, 2) of captions of which the copy has drawn some pieces anew."""
        shown, _ = self._hidden(captions, self.config.replace_share, "replaced", step)
        with torch.no_grad():
            scores = self._teacher_encoder().language_logits(self._taught_tokens(shown, captions.tower))
        askable = self._askable(captions.ids)
        drawn = [
            replace_pieces(
                scores[row, None],
                captions.ids[row, None],
                askable[row, None],
                self._draws(askable.device, "replacing", step, record),
            )
            for row, record in enumerate(captions.records)
        ]
        replaced = torch.cat(drawn)
        fused = model.fused_tokens(model.encode_instructions(Modality.TEXT, replaced), captions.tower.tokens)
        return model.replaced_logits(fused), {IS_REPLACED: replaced != captions.ids, ASKABLE: askable}

    def _teacher_encoder(self) -> TextEncoder:
        assert self.teacher is not None
        encoder = self.teacher["text_encoder"]
        assert isinstance(encoder, TextEncoder)
        return encoder


def _taught(model: IRM) -> dict[str, torch.nn.Module]:
    return {"text_encoder": model.text_encoder, "text_projection": model.text_projection}


def _check_captions(context: ObjectiveContext) -> None:
    for record in context.records:
        if record.task is Task.T2I and Modality.TEXT not in record.sources:
            raise UserError(
                f"training record {record.name or record.person_id} is of task {Task.T2I.value} and has no caption: "
                "give it one, or leave the task out with train.task_weights"
            )
