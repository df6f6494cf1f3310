"""A picture of ranked lists: one row per query, its parts on the left, its results with rank, similarity and frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from configs.vocabulary import Modality
from datasets.loading.readers import open_image, open_source
from datasets.modalities import MODALITIES
from datasets.structures import Source
from solver.reports.fonts import Font, font_for, load_font, without_glyph
from solver.search.queries import Query
from solver.search.ranked import Answer, RankedImage, RankedQuery, Verdict
from utils.errors import UserError
from utils.files import atomic_path

logger = logging.getLogger(__name__)

IMAGE_WIDTH, IMAGE_HEIGHT = 96, 192
TEXT_WIDTH = 2 * IMAGE_WIDTH
FRAME = 4
GAP = 12
MARGIN = 24
LABEL = 20
ROW_GAP = 30
MAX_TEXT = 4000
"""Letters of a text that are laid out: more than fit."""
COLUMNS = 10
"""Results in one line; further ones follow below."""

INK, SOFT, PAPER, GROUND = (28, 30, 33), (104, 110, 118), (255, 255, 255), (238, 240, 242)
COLOURS = {
    Verdict.MATCH: (26, 140, 70),
    Verdict.BELOW: (226, 172, 0),
    Verdict.OTHER: (200, 48, 40),
    Verdict.UNKNOWN: (150, 156, 164),
}
"""Frame of a result. Labels say the same in words, for readers who see no colours."""
WORDS = {Verdict.MATCH: "match", Verdict.BELOW: "below tau", Verdict.OTHER: "other", Verdict.UNKNOWN: ""}
INSTRUCTION = "INSTRUCTION"
"""Name of the part that the model is told with the others."""
OWN_IMAGE = "own image"
"""What is said instead where a result is the query itself."""


def printable(text: str) -> str:
    """Return `text` on one line without characters that cannot be drawn or written (control characters, lone
    surrogates).
    """
    cleaned = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in cleaned)


def fit_image(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture, whole, in its own proportions, in the middle of a box of that size."""
    image = ImageOps.contain(picture, (width, height), Image.Resampling.BICUBIC)
    box = Image.new("RGB", (width, height), GROUND)
    box.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return box


def shorten(text: str, font: Font, width: int) -> str:
    """Return `text`, its end replaced by an ellipsis when it is wider than `width` pixels."""
    if len(text) <= width and font.getlength(text) <= width:
        return text
    # More letters than pixels never fit; measuring a very long text is slow, and refused beyond a million.
    text = text[:width]
    while text and font.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def file_label(path: str) -> str:
    """Return `folder/name` of a file: of a folder of persons, the name alone may say nothing."""
    return "/".join(Path(path).parts[-2:]).removeprefix("//") if path else ""


def shorten_front(text: str, font: Font, width: int) -> str:
    """Return `text`, its beginning replaced by an ellipsis when it is wider than `width` pixels."""
    if len(text) <= width and font.getlength(text) <= width:
        return text
    text = text[-width:]
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Break `text` at spaces, and inside words that are too long, into at most `lines` lines; the last may end in an
    ellipsis.
    """
    found: list[str] = []
    words = text.split()
    position = 0
    while position < len(words) and len(found) < lines:
        line = words[position]
        position += 1
        while position < len(words) and font.getlength(f"{line} {words[position]}") <= width:
            line = f"{line} {words[position]}"
            position += 1
        cut = len(line)
        while cut > 1 and font.getlength(line[:cut]) > width:
            cut = min(cut - 1, width)
        found.append(line[:cut])
        if cut < len(line):
            position -= 1
            words[position] = line[cut:]
    if position < len(words):
        found[-1] = shorten(f"{found[-1]} {words[position]} ……", font, width)
    return found


@dataclass(frozen=True, slots=True)
class _Layout:
    """parts: width in pixels of the widest query's parts. columns: results in one line."""

    parts: int
    columns: int

    @property
    def results_left(self) -> int:
        return MARGIN + self.parts + 2 * GAP

    @property
    def width(self) -> int:
        return self.results_left + self.columns * (IMAGE_WIDTH + 2 * FRAME + GAP) - GAP + MARGIN


LINE_HEIGHT = LABEL + IMAGE_HEIGHT + 2 * FRAME + LABEL
TITLE_HEIGHT = 26


def draw_grid(rows: Sequence[RankedQuery], title: str, subtitle: str) -> Image.Image:
    """Draw ranked lists below each other. Raises UserError for an image that cannot be read any more."""
    layout = _Layout(
        parts=max(_parts_width(row) for row in rows), columns=min(COLUMNS, max(len(row.results) for row in rows))
    )
    lines = [max(1, -(-len(row.results) // layout.columns)) for row in rows]
    heights = [TITLE_HEIGHT + count * LINE_HEIGHT + (count - 1) * GAP for count in lines]
    width = max(layout.width, 480)
    note = glyph_note(rows, title, subtitle)
    note_lines = wrap(note, load_font(12), width - 2 * MARGIN, 3)
    header = 64 + 16 * len(note_lines)
    canvas = Image.new("RGB", (width, MARGIN + header + sum(heights) + (len(rows) - 1) * ROW_GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (MARGIN, MARGIN), title, 19, INK, width - 2 * MARGIN, bold=True)
    _write(draw, (MARGIN, MARGIN + 28), subtitle, 12, SOFT, width - 2 * MARGIN)
    for number, line in enumerate(note_lines):
        _write(draw, (MARGIN, MARGIN + 46 + 16 * number), line, 12, COLOURS[Verdict.OTHER], width - 2 * MARGIN)
    top = MARGIN + header
    for number, (row, height) in enumerate(zip(rows, heights)):
        if number:
            draw.line((MARGIN, top - ROW_GAP // 2, width - MARGIN, top - ROW_GAP // 2), fill=(222, 226, 230))
        _draw_row(canvas, draw, row, layout, top)
        top += height + ROW_GAP
    return canvas


def write_grid(path: str | Path, rows: Sequence[RankedQuery], title: str, subtitle: str) -> None:
    """Write the picture as PNG, atomically."""
    picture = draw_grid(rows, title, subtitle)
    note = glyph_note(rows, title, subtitle)
    if note:
        logger.warning("%s: %s", path, note)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=False)


def glyph_note(rows: Sequence[RankedQuery], *texts: str) -> str:
    """Return what to say where no installed font has a letter of the texts that are drawn; empty = all are drawn."""
    drawn = [*texts, *map(describe_query, rows)]
    for row in rows:
        shown = [source for _, source in parts_of(row.query)]
        drawn += [source.value[:MAX_TEXT] for source in shown if source.modality is Modality.TEXT]
        drawn += [file_label(source.value) for source in shown if source.modality is not Modality.TEXT]
        drawn += [f"{file_label(image.path)} {image.person_id}" for image in row.results]
    lost = without_glyph(map(printable, drawn))
    if not lost:
        return ""
    return (
        f"letters drawn as boxes because no installed font has them: {len(lost)} different ones; install a font, for "
        "instance Noto Sans CJK, or read the page or the JSON file, which have them"
    )


def word_of(image: RankedImage) -> str:
    """Return what is said of a result: the query itself, or what it is to the query, and on which side of a threshold
    it is; empty = nothing is known.
    """
    word = OWN_IMAGE if image.own_image else WORDS[image.verdict]
    return ", ".join(filter(None, [word, image_answer(image), image.outdated and f"file {image.outdated}"]))


def image_answer(image: RankedImage) -> str:
    """Return on which side of a threshold a result is, empty = there is none."""
    return "" if image.answer is None or image.answer is Answer.NOT_CALIBRATED else image.answer.value


def parts_of(query: Query) -> list[tuple[str, Source]]:
    """Return what a query consists of and what the model is told with it, each with its name."""
    told = [] if query.instruction is None else [(INSTRUCTION, query.instruction)]
    return [*((source.modality.name, source) for source in query.sources), *told]


def describe_query(row: RankedQuery) -> str:
    """One line: the parts' names, the person, and what came out."""
    name = printable(row.query.name)
    found = [name] if name.startswith(row.query.task) else [name, row.query.task]
    if row.query.person_id is not None:
        found.append(printable(f"person {row.query.person_id}"))
    if row.first_match is not None:
        found.append(
            f"first match at rank {row.first_match} ({row.matches} in the gallery)"
            if row.first_match
            else "no match in the gallery"
        )
    if row.below is not None:
        found.append(f"{row.below} images of the person below tau")
    if row.cutoff is not None:
        found.append(
            f"{row.above} above the threshold {row.cutoff.threshold:.4f} ({row.cutoff.words})"
            if row.above
            else f"nobody above the threshold ({row.cutoff.words})"
        )
    if any(image.answer is Answer.NOT_CALIBRATED for image in row.results):
        found.append(Answer.NOT_CALIBRATED.value)
    if row.note:
        found.append(printable(row.note))
    return " · ".join(found)


def _parts_width(row: RankedQuery) -> int:
    return sum(_part_width(source) + 2 * FRAME + GAP for _, source in parts_of(row.query)) - GAP


def _part_width(source: Source) -> int:
    return IMAGE_WIDTH if MODALITIES[source.modality].is_image else TEXT_WIDTH


def _draw_row(canvas: Image.Image, draw: ImageDraw.ImageDraw, row: RankedQuery, layout: _Layout, top: int) -> None:
    _write(draw, (MARGIN, top), describe_query(row), 13, INK, canvas.width - 2 * MARGIN, bold=True)
    top += TITLE_HEIGHT
    left = MARGIN
    for name, source in parts_of(row.query):
        _draw_part(canvas, draw, name, source, left, top)
        left += _part_width(source) + 2 * FRAME + GAP
    bar = layout.results_left - GAP - 1
    lines = max(1, -(-len(row.results) // layout.columns))
    draw.line((bar, top + LABEL, bar, top + lines * (LINE_HEIGHT + GAP) - GAP - LABEL), fill=INK, width=2)
    for number, image in enumerate(row.results):
        down, across = divmod(number, layout.columns)
        _draw_result(
            canvas,
            draw,
            image,
            layout.results_left + across * (IMAGE_WIDTH + 2 * FRAME + GAP),
            top + down * (LINE_HEIGHT + GAP),
        )


def _draw_part(canvas: Image.Image, draw: ImageDraw.ImageDraw, name: str, source: Source, left: int, top: int) -> None:
    width = _part_width(source)
    _write(draw, (left + FRAME, top), name, 12, INK, width, bold=True)
    if source.modality is not Modality.TEXT:
        below = (left + FRAME, top + LABEL + IMAGE_HEIGHT + 2 * FRAME + 4)
        _write_file(draw, below, source.value, width)
    box = (left + FRAME, top + LABEL + FRAME)
    if MODALITIES[source.modality].is_image:
        canvas.paste(fit_image(open_source(source), IMAGE_WIDTH, IMAGE_HEIGHT), box)
    else:
        draw.rectangle((*box, box[0] + width - 1, box[1] + IMAGE_HEIGHT - 1), fill=(247, 248, 249))
        _draw_text(draw, printable(source.value[:MAX_TEXT]) or "(empty text)", box, width)
    draw.rectangle((box[0] - 1, box[1] - 1, box[0] + width, box[1] + IMAGE_HEIGHT), outline=SOFT)


def _draw_text(draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int], width: int) -> None:
    padding = 8
    for size in (13, 12, 11, 10):
        font, height = font_for(text, size), size + 4
        room = (IMAGE_HEIGHT - 2 * padding) // height
        lines = wrap(text, font, width - 2 * padding, room)
        if size == 10 or not lines[-1:] or not lines[-1].endswith("…"):
            break
    for number, line in enumerate(lines):
        draw.text((box[0] + padding, box[1] + padding + number * height), line, font=font, fill=INK)


def result_image(image: RankedImage) -> Image.Image:
    """Return the picture of a result; an empty one where its file is gone since it was encoded. Raises UserError."""
    try:
        return open_image(image.path)
    except UserError:
        if not image.outdated:
            raise
        return Image.new("RGB", (IMAGE_WIDTH, IMAGE_HEIGHT), GROUND)


def _draw_result(canvas: Image.Image, draw: ImageDraw.ImageDraw, image: RankedImage, left: int, top: int) -> None:
    width = IMAGE_WIDTH + 2 * FRAME
    box = (left, top + LABEL)
    draw.rectangle((*box, box[0] + width - 1, box[1] + IMAGE_HEIGHT + 2 * FRAME - 1), fill=COLOURS[image.verdict])
    canvas.paste(fit_image(result_image(image), IMAGE_WIDTH, IMAGE_HEIGHT), (box[0] + FRAME, box[1] + FRAME))
    rank = f"#{image.rank}"
    _write(draw, (left, top), rank, 12, INK, width // 2, bold=True)
    value, font = f"{image.similarity:.4f}", load_font(12)
    draw.text((left + width - font.getlength(value), top), value, font=font, fill=INK)
    person = "" if image.person_id is None else printable(f"id {image.person_id}")
    label = " · ".join(filter(None, [word_of(image), person]))
    below = (left, box[1] + IMAGE_HEIGHT + 2 * FRAME + 4)
    if label and label == image_answer(image):
        # Nothing else is known of it: its file's name says more than an answer alone.
        _write(draw, below, label, 11, INK, width)
        taken = int(load_font(11).getlength(label)) + FRAME
        _write_file(draw, (left + taken, below[1]), image.path, width - taken)
    elif label:
        _write(draw, below, label, 11, COLOURS[image.verdict] if image.verdict is not Verdict.UNKNOWN else SOFT, width)
    else:
        _write_file(draw, below, image.path, width)


def _write_file(draw: ImageDraw.ImageDraw, place: tuple[int, int], path: str, width: int) -> None:
    label = printable(file_label(path))
    font = font_for(label, 10)
    draw.text(place, shorten_front(label, font, width), font=font, fill=SOFT)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
    bold: bool = False,
) -> None:
    font = font_for(text[:MAX_TEXT], size, bold)
    draw.text(place, shorten(text, font, width), font=font, fill=colour)
