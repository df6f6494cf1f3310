"""What is said of texts that a model does not read as they were written: cut ones and empty ones."""

from __future__ import annotations

from collections.abc import Iterable

from datasets.loading.readers import SourceReader
from datasets.modalities import MODALITIES
from datasets.structures import Source

SHOWN_LETTERS = 40


def text_notes(sources: Iterable[Source], reader: SourceReader) -> list[str]:
    """Return a sentence on the texts that are longer than the model reads, and one on those that are empty.

    Images are passed over. A reader without texts says nothing, for it refuses them.
    """
    texts = reader.texts
    if texts is None:
        return []
    written = {source.value: source for source in sources if not MODALITIES[source.modality].is_image}
    empty = [source for value, source in written.items() if not value.strip()]
    lost = {source: count for value, source in written.items() if (count := texts.pieces_lost(value))}
    notes = []
    if lost:
        longest = max(lost, key=lost.__getitem__)
        notes.append(
            f"{len(lost)} of {len(written)} texts are longer than the model reads (model.text_length = {texts.length}) "
            f"and lose their ends, at most {lost[longest]} pieces: {_named(longest)}"
        )
    if empty:
        notes.append(f"{len(empty)} of {len(written)} texts are empty and say nothing: {_named(empty[0])}")
    return notes


def _named(source: Source) -> str:
    start = source.value[:SHOWN_LETTERS]
    quoted = repr(start + "…" * (len(start) < len(source.value)))
    return f"{source.record}, {quoted}" if source.record else quoted
