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
from solver.losses.numerics import unit_rows
from solver.losses.replaced_tokens import replace_pieces, replaced_tokens_loss
from solver.objectives.base import ObjectiveContext
from solver.objectives.instructed_rows import InstructedRows, at, index_of
from solver.objectives.training_state import FeatureQueue, MomentumCopy
from utils.errors import UserError
from utils.seeding import stream_seed

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
        self._generator: torch.Generator | None = None
        self._step: int | None = None

    def terms(self, model: IRM, captions: Captioned | None, nothing: Tensor, step: int) -> dict[str, Tensor]:
        """Return every weighted term; `nothing`, a scalar, stands for each in a batch without captions.

        Whatever is drawn depends on (seed, step) and on which of the step's micro-batches it is.
        """
        if captions is None or not self.weights:
            return dict.fromkeys(self.weights, nothing)
        self._begin(model, step, captions.ids.device)
        terms: dict[str, Tensor] = {}
        if "contrast" in self.weights or "match" in self.weights:
            terms |= self._compared(model, captions)
        if "masked_language" in self.weights:
            terms["masked_language"] = self._masked_language(model, captions)
        if "replaced" in self.weights:
            terms["replaced"] = self._replaced(model, captions)
        return {name: weight * terms[name] for name, weight in self.weights.items()}

    def _begin(self, model: IRM, step: int, device: torch.device) -> None:
        if self._generator is None or step != self._step:
            self._generator = torch.Generator(device).manual_seed(stream_seed(self.seed, "captions", step))
        self._step = step
        if self.teacher is not None:
            self.teacher.follow(_taught(model), step)

    def _compared(self, model: IRM, captions: Captioned) -> dict[str, Tensor]:
        """Contrast, and matching with negatives by the same similarities."""
        image = model.image_caption_feature(captions.tower.cls)
        text = model.caption_feature(captions.said)[captions.texts]
        terms: dict[str, Tensor] = {}
        if "contrast" in self.weights:
            terms["contrast"] = self._contrast(model, captions, image, text)
        if "match" in self.weights:
            assert self._generator is not None
            with torch.no_grad():
                similarities = unit_rows(image.float()) @ unit_rows(text.float()).T / model.temperature
            pairs = matching_pairs(similarities, captions.persons, self._generator)
            logits = model.match_logits(captions.said, captions.texts[pairs.texts], captions.tower, pairs.images)
            terms["match"] = matching_loss(logits, pairs.matched)
        return terms

    def _contrast(self, model: IRM, captions: Captioned, image: Tensor, text: Tensor) -> Tensor:
        if self.queue is None:
            return batch_contrast_loss(image, text, captions.persons, temperature=model.temperature)
        taught = unit_rows(self._taught_features(captions.ids))
        loss = queue_contrast_loss(
            image,
            text,
            captions.persons,
            taught_text=taught,
            # Copies: the queue is overwritten before the backward pass.
            image_queue=self.queue.image.clone(),
            text_queue=self.queue.text.clone(),
            queue_ids=self.queue.person_ids,
            temperature=model.temperature,
            distillation=self.config.distillation,
        )
        self.queue.push(unit_rows(image.detach().float()), taught, captions.persons)
        return loss

    @torch.no_grad()
    def _taught_features(self, ids: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.teacher["text_projection"](self._teacher_encoder()(ids).cls).float()

    @torch.no_grad()
    def _taught_logits(self, ids: Tensor, tower: Tower) -> Tensor:
        """(b, T, C): what the copy's language head reads."""
        encoder = self._teacher_encoder()
        return encoder.fuse(encoder(ids), tower.tokens)

    def _hidden(self, ids: Tensor, share: float) -> tuple[Tensor, Tensor]:
        assert self.tokenizer is not None and self._generator is not None
        return hide_pieces(
            ids,
            self._askable(ids),
            share=share,
            mask_id=self.tokenizer.mask_id,
            drawn_ids=self.tokenizer.ordinary_ids,
            generator=self._generator,
        )

    def _askable(self, ids: Tensor) -> Tensor:
        assert self.tokenizer is not None
        ordinary = self.tokenizer.ordinary_ids
        return (ids >= ordinary.start) & (ids < ordinary.stop)

    def _masked_language(self, model: IRM, captions: Captioned) -> Tensor:
        shown, labels = self._hidden(captions.ids, self.config.mask_share)
        fused = model.fused_tokens(model.encode_instructions(Modality.TEXT, shown), captions.tower.tokens)
        teaches = self.teacher is not None and self.config.distillation > 0
        lesson = self._taught_logits(shown, captions.tower) if teaches else None
        if self.config.distillation_axis == "vocabulary":
            # Scores of the asked positions alone: the vocabulary is large and most positions are not asked.
            asked = labels != UNASKED
            fused, labels, lesson = fused[asked], labels[asked], None if lesson is None else lesson[asked]
        taught = None
        if lesson is not None:
            with torch.no_grad():
                taught = self._teacher_encoder().language_logits(lesson)
        return masked_language_loss(
            model.masked_language_logits(fused),
            labels,
            taught=taught,
            distillation=self.config.distillation,
            axis=self.config.distillation_axis,
        )

    def _replaced(self, model: IRM, captions: Captioned) -> Tensor:
        assert self._generator is not None
        shown, _ = self._hidden(captions.ids, self.config.replace_share)
        with torch.no_grad():
            scores = self._teacher_encoder().language_logits(self._taught_logits(shown, captions.tower))
        askable = self._askable(captions.ids)
        replaced = replace_pieces(scores, captions.ids, askable, self._generator)
        fused = model.fused_tokens(model.encode_instructions(Modality.TEXT, replaced), captions.tower.tokens)
        return replaced_tokens_loss(model.replaced_logits(fused), replaced != captions.ids, askable)

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
