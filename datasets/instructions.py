"""Instructions of the six tasks: a bank of sentences, clothes images, descriptions and captions, and how one is chosen.

An instruction is made from a record's task and annotations. What mAP at a threshold compares are the annotations
themselves, so that shuffling or changing the instructions a model gets never changes what is relevant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from configs.schema.data import InstructionConfig
from configs.vocabulary import BOX, AnnotationKind, Modality, Task
from datasets.catalogue import CATALOGUE, dataset_entry
from datasets.loading.crops import BOX_TEXT
from datasets.modalities import MODALITIES
from datasets.structures import Record, Release, Source
from utils.errors import UserError
from utils.seeding import stream

BANK: dict[Task, tuple[str, ...]] = {
    Task.TRAD: (
        "The person wears the same clothes in both pictures.",
        "Find this person again, dressed exactly as here.",
        "The clothes have not changed.",
        "Look for the same person in the same outfit.",
        "Do not expect a change of clothes.",
        "Clothes and body both help to recognise this person.",
        "The person was seen again on the same day, in the same clothes.",
        "Use everything that is visible, clothes included.",
        "The outfit in the other picture is the one worn here.",
        "Keep the clothes as they are and find the person.",
        "Search for pictures of this person with unchanged clothes.",
        "What the person wears here can be trusted.",
        "Another camera saw this person without a change of outfit.",
        "Jacket, trousers and shoes are the same as in this picture.",
        "Find the same identity wearing the same things.",
        "The person has kept the same clothes on.",
        "Match the whole appearance, from the hair to the shoes.",
        "Return pictures in which this person is dressed as in the query.",
        "The person appears elsewhere with the same garments.",
        "Compare body and clothing; both stay the same.",
    ),
    Task.CC: (
        "Ignore the clothes and find the same person.",
        "The clothes may have changed.",
        "The person has put on other clothes.",
        "Look at face, hair and build, not at the outfit.",
        "Find this person in a different outfit.",
        "What the person wears here is of no use for the search.",
        "Search for the same person on another day, dressed differently.",
        "Do not rely on the colour of the garments.",
        "The person was seen again after a change of clothes.",
        "Body shape and face stay the same, the clothes do not.",
        "Return pictures of this person in any clothes.",
        "The same identity, but with another outfit.",
        "Jacket, trousers and shoes can all be different.",
        "Recognise the person in spite of new clothes.",
        "Pay no attention to what the person is wearing.",
        "Clothing is misleading here; use the features of the body.",
        "The person changed clothes between the two pictures.",
        "Find everyone who has the same face and figure, whatever they wear.",
        "A different outfit does not mean a different person.",
        "Match the person and leave the clothing aside.",
    ),
    Task.VI: (
        "Find the same person across infrared and visible pictures.",
        "One picture is infrared, the other one is a colour photograph.",
        "Match an infrared image with a visible image of the same person.",
        "The two cameras work in different parts of the spectrum.",
        "Colours cannot be compared between infrared and visible light.",
        "Search from visible to infrared or from infrared to visible.",
        "The person was seen by day in colour and at night in infrared.",
        "Ignore the difference between infrared and visible light.",
        "Use shape and structure, because colour is missing in the infrared.",
        "Look for this person in pictures of the other spectrum.",
        "Infrared and colour pictures of one person belong together.",
        "The other picture was taken with another kind of sensor.",
        "Recognise the person although the picture changes from colour to infrared.",
        "Find the visible picture that belongs to this infrared one, or the other way round.",
        "A night camera and a day camera saw the same person.",
        "Bridge the gap between infrared and visible pictures.",
        "Compare outlines and textures, not colours.",
        "The same identity appears in another spectrum.",
        "Return pictures of this person from the other type of camera.",
        "Match the person between a thermal or near-infrared view and a visible view.",
    ),
}
"""Sentences by task. Source: our own; the paper draws one of twenty too, its list was not published with the code."""

RELEASED: dict[Task, str] = {Task.TRAD: "do not change clothes", Task.VI: "cross modiality"}
"""Fixed strings of the released code, spelled as there. It has none for clothes-changing, where it takes an image."""


def _sentence_sources() -> dict[Task, tuple[Source, ...]]:
    return {
        task: tuple(
            Source(modality=Modality.TEXT, value=sentence, record=f"instruction bank, {task.value} {number}")
            for number, sentence in enumerate(sentences)
        )
        for task, sentences in BANK.items()
    }


_BANK_SOURCES = _sentence_sources()
_RELEASED_SOURCES = {
    task: Source(modality=Modality.TEXT, value=sentence, record=f"released instruction, {task.value}")
    for task, sentence in RELEASED.items()
}


@dataclass(frozen=True, slots=True)
class InstructionMaker:
    """Makes instructions by the configuration's section `instruction`."""

    config: InstructionConfig = InstructionConfig()

    def for_training(self, record: Record, seed: int, epoch: int, index: int) -> Source | None:
        """Return the annotation of a training record; a sentence is drawn per (seed, epoch, index), unless it is fixed.

        Raises UserError for a record without the annotation that its task needs.
        """
        number = self.config.test_sentence
        if record.task in BANK and self.config.sentences != "fixed":
            number = stream(seed, epoch, index, "instruction").randrange(len(BANK[record.task]))
        return self._make(record, number)

    def require(self, record: Record) -> None:
        """Raise UserError for a record without the annotation that its task needs."""
        self._make(record, self.config.test_sentence)

    def for_test(self, record: Record) -> Source | None:
        """Return the instruction of a query or gallery item: sentences are fixed. None for ORBench, for a caption that
        is itself the query, and for an image that captions are compared with. Raises UserError as `for_training`.
        """
        return self._make(record, self.config.test_sentence)

    def _make(self, record: Record, number: int) -> Source | None:
        if record.task is Task.CTCC or (record.task is Task.CC and self.config.cc == "image"):
            return clothes_of(record, self.config.crop)
        if record.task in BANK:
            return self._sentence(record.task, number)
        if record.task is Task.LI:
            return description_of(record)
        if record.task is Task.T2I and len(record.sources) > 1:
            return record.sources.get(Modality.TEXT)
        return None

    def _sentence(self, task: Task, number: int) -> Source:
        if self.config.sentences == "released" and task in _RELEASED_SOURCES:
            return _RELEASED_SOURCES[task]
        return _BANK_SOURCES[task][number]


def clothes_of(record: Record, crop: str) -> Source:
    """Return the clothes image of a record: its annotation, else, with crop `box`, the upper-body box of its own image.

    Raises UserError when there is none and crop is `none`.
    """
    known = record.annotations.get(AnnotationKind.CLOTHES)
    if known is not None:
        return known
    if crop != BOX or not _images(record):
        raise UserError(
            f"{record.name}: {record.dataset} ships no clothes image for it; set instruction.crop=box to take the "
            f"{BOX_TEXT} of the image itself"
        )
    return box_of(record)


def box_of(record: Record) -> Source:
    """Return the upper-body box of a record's first image."""
    return replace(_images(record)[0], crop=BOX)


def _images(record: Record) -> list[Source]:
    return [source for modality, source in record.sources.items() if MODALITIES[modality].is_image]


def description_of(record: Record) -> Source:
    """Return the description of a record. Raises UserError that names the file that would be needed when it has
    none.
    """
    known = record.annotations.get(AnnotationKind.DESCRIPTION)
    if known is None:
        name = record.dataset.partition("/")[0]
        needed = dataset_entry(name).descriptions if name in CATALOGUE else ""
        needed = needed or "a JSON file of image path -> description"
        raise UserError(
            f"{record.name}: {record.dataset} has no description of this image, which language-instructed retrieval "
            f"needs; put {needed} (a JSON object: image path -> description) into the data set's folder"
        )
    return known


def annotate(records: Iterable[Record], maker: InstructionMaker) -> tuple[Record, ...]:
    """Return the records with the annotation that mAP at a threshold compares for their task, where it can be made.

    Trad, CC, VI: the first sentence of the bank, whatever a model is given. CTCC: the clothes image, with the box as
    fallback. Descriptions cannot be made. An annotation that is there is kept.
    """
    return tuple(_annotated(record, maker) for record in records)


def _annotated(record: Record, maker: InstructionMaker) -> Record:
    added: dict[AnnotationKind, Source] = {}
    if record.task in BANK and AnnotationKind.SENTENCE not in record.annotations:
        added[AnnotationKind.SENTENCE] = _BANK_SOURCES[record.task][0]
    if record.task is Task.CTCC and AnnotationKind.CLOTHES not in record.annotations:
        added[AnnotationKind.CLOTHES] = clothes_of(record, maker.config.crop)
    return replace(record, annotations={**record.annotations, **added}) if added else record


def annotate_release(release: Release, maker: InstructionMaker) -> Release:
    """Return the release with every part but the training ones annotated, and a note for each part that uses the
    box.
    """
    parts = {
        name: records if name.rpartition("/")[2] == "train" else annotate(records, maker)
        for name, records in release.parts.items()
    }
    return replace(release, parts=parts, notes=(*release.notes, *box_notes(release.parts, maker)))


def box_notes(parts: Mapping[str, Iterable[Record]], maker: InstructionMaker) -> tuple[str, ...]:
    """Return one note per part with records whose task needs a clothes image and that have none, with their number."""
    needing = {Task.CTCC, Task.CC} if maker.config.cc == "image" else {Task.CTCC}
    missing = {
        name: sum(record.task in needing and AnnotationKind.CLOTHES not in record.annotations for record in records)
        for name, records in parts.items()
    }
    return tuple(box_note(name, count) for name, count in missing.items() if count)


def box_note(part: str, count: int) -> str:
    """Return the note that the upper-body box stands for the clothes images of `count` records of a part."""
    return f"{part}: {count:,} records have no clothes image; the {BOX_TEXT} of their own image stands for it"
