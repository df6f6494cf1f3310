"""Which annotation a training row has, and whether it is given it as its instruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from configs.vocabulary import Task
from datasets.instructions import InstructionMaker, box_of
from datasets.loading.record_dataset import DrawnAnnotation
from datasets.structures import Record
from utils.seeding import stream

PAIRED = (Task.CTCC, Task.LI)
"""Tasks whose instruction asks for an outfit."""


class TrainingInstructions:
    """Draws the annotation of each training row by the section `instruction`, from (seed, epoch, index) alone.

    typing `all`: every row is given its annotation as instruction, as a query is. `coin`: each row with probability one
    half is a query; the others are as gallery images of IRM++ are, not instructed, with an annotation that losses alone
    look at. `lists`: the others are as gallery images of the lists are, given what belongs to the image itself, which
    is the box of its upper body under CTCC. Rows of text-to-image retrieval are never instructed: the caption is what
    is searched with. pairing `other`: a query of CTCC and LI has the annotation of an image of the same person and task
    in other clothes, each such image equally likely, and its own where none is known; `own`, and every row that is no
    query: its own.

    Source: Instruct-ReID++, IV-C, types images as query or gallery and pairs them, without saying how; the released
    lists of Instruct-ReID give each image its own annotation and no type. `coin`, `lists` and the draw are ours.
    """

    def __init__(self, records: Sequence[Record], maker: InstructionMaker) -> None:
        """Take the training records. Raises UserError for one without the annotation that its task needs."""
        self.maker, self.config = maker, maker.config
        for record in records:
            maker.require(record)
        self._outfits = _by_outfit(records) if self.config.pairing == "other" else {}

    def __call__(self, record: Record, seed: int, epoch: int, index: int) -> DrawnAnnotation | None:
        """Return what row `index` of an epoch is told; None for a record that no instruction belongs to."""
        if record.task is Task.T2I:
            return self._drawn(record, seed, epoch, index, instructed=False)
        if self.config.typing == "all" or stream(seed, epoch, index, "typing").random() < 0.5:
            return self._drawn(self._other(record, seed, epoch, index), seed, epoch, index, instructed=True)
        if self.config.typing == "lists" and record.task is Task.CTCC:
            return DrawnAnnotation(box_of(record), instructed=True)
        return self._drawn(record, seed, epoch, index, instructed=self.config.typing == "lists")

    def _drawn(
        self, described: Record, seed: int, epoch: int, index: int, *, instructed: bool
    ) -> DrawnAnnotation | None:
        source = self.maker.for_training(described, seed, epoch, index)
        return None if source is None else DrawnAnnotation(source, instructed=instructed)

    def _other(self, record: Record, seed: int, epoch: int, index: int) -> Record:
        outfits = self._outfits.get((record.person_id, record.task), {})
        candidates = [
            other for clothes, worn in sorted(outfits.items()) if clothes != record.clothes_id for other in worn
        ]
        if record.clothes_id < 0 or not candidates:
            return record
        return stream(seed, epoch, index, "pairing").choice(candidates)


def _by_outfit(records: Iterable[Record]) -> dict[tuple[int, Task], dict[int, list[Record]]]:
    """Return (person, task) -> clothes -> records, of the tasks that ask for an outfit and of known clothes."""
    found: dict[tuple[int, Task], dict[int, list[Record]]] = {}
    for record in records:
        if record.task in PAIRED and record.clothes_id >= 0:
            outfits = found.setdefault((record.person_id, record.task), {})
            outfits.setdefault(record.clothes_id, []).append(record)
    return found
