"""Where a model looks in one image under the instructions of the six tasks, as one picture (paper, Fig. 11).

Shapes: ny, nx patches of an image, h, w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from configs.vocabulary import BOX, Modality, Task
from datasets.instructions import BANK
from datasets.loading.readers import Reader, open_source
from datasets.loading.transforms import model_input
from datasets.modalities import MODALITIES
from datasets.structures import Source
from model.interface import Instruction, MapsAttention, RetrievalModel
from solver.evaluation.encoding import inference
from solver.reports.fonts import font_for
from solver.reports.grid import GAP, GROUND, INK, MARGIN, PAPER, SOFT, fit_image, printable, shorten, wrap
from utils.errors import UserError
from utils.files import atomic_path

DEFAULT_TEXT = "A person with dark hair, in a red jacket and black trousers."
"""What the two tasks of descriptions are shown with where the user gives none."""
TITLES = {task: task.value.upper() for task in Task} | {Task.TRAD: "Trad"}
PANEL, HEIGHT = 176, 300
"""Width of a panel and height of its image in pixels."""
CLOTHES = 56
"""Side of an instruction picture."""
TEXT_LINES, LINE = 5, 15
RAMP = np.array([(40, 60, 190), (60, 190, 200), (245, 225, 70), (225, 40, 30)], dtype=np.float64)
"""Colours from the least to the largest weight."""
NO_MAPS = (
    "--attention: this model does not show where it looks under an instruction; leave it out, or use a model of a "
    "family that does"
)
STRENGTH = 0.65
"""Share of the colour where the weight is largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an image is shown under."""

    task: Task
    source: Source
    """The instruction, or the caption of T2I."""
    note: str = ""
    """Where it comes from, empty = from the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A map and what it is of."""

    asked: Asked
    weights: NDArray[np.float32] | None
    """(ny, nx); None = the model has no such map."""
    module: str
    """What it is taken from, or why there is none."""


def six_tasks(image: Source, told: Source | None, caption: str | None) -> tuple[Asked, ...]:
    """Return what an image is shown under, task by task.

    told: a picture for CTCC or a text for LI, from the user. caption: for T2I; None = that of LI. Where the user gives
    nothing, CTCC gets the image's own upper body, LI and T2I get `DEFAULT_TEXT`; the others get their first sentence.
    """
    own = Source(modality=Modality.RGB, value=image.value, crop=BOX)
    sentences = {
        task: Asked(task=task, source=Source(modality=Modality.TEXT, value=sentences[0]), note="bank of sentences")
        for task, sentences in BANK.items()
    }
    picture = told is not None and MODALITIES[told.modality].is_image
    clothes = Asked(task=Task.CTCC, source=told) if told is not None and picture else None
    given = told.value if told is not None and not picture else None
    texts = {Task.LI: given, Task.T2I: caption if caption is not None else given}
    described = {
        task: Asked(
            task=task,
            source=Source(modality=Modality.TEXT, value=DEFAULT_TEXT if text is None else text),
            note="default text" if text is None else "",
        )
        for task, text in texts.items()
    }
    asked = {
        **sentences,
        Task.CTCC: clothes or Asked(task=Task.CTCC, source=own, note="the image's own clothes"),
        **described,
    }
    return tuple(asked[task] for task in Task if task in asked)


def require_maps(model: RetrievalModel) -> None:
    """Raise UserError for a model that does not show where it looks, or is told nothing."""
    if not isinstance(model, MapsAttention) or not model.follows_instructions:
        raise UserError(NO_MAPS)


def attention_maps(
    model: RetrievalModel,
    image: Source,
    asked: Sequence[Asked],
    reader: Reader,
    device: torch.device,
    precision: str,
) -> tuple[Shown, ...]:
    """Return where the model looks in an image under each of `asked`. Raises UserError as `require_maps` does."""
    require_maps(model)
    assert isinstance(model, MapsAttention)
    shown = []
    with inference(model, device, precision):
        pixels = model_input(image.modality, reader(image)[None].to(device), statistics=model.statistics)
        for one in asked:
            statistics = model.instruction_statistics or model.statistics
            kind = one.source.modality
            said = model_input(kind, reader.annotation(one.source)[None].to(device), statistics=statistics)
            try:
                if one.task is Task.T2I:
                    found = model.attention_maps(image.modality, pixels, captions=said)
                else:
                    told = Instruction(
                        modality=kind, inputs=said, rows=torch.zeros(1, dtype=torch.int64, device=device)
                    )
                    found = model.attention_maps(image.modality, pixels, (told,))
            except UserError as error:
                shown.append(Shown(asked=one, weights=None, module=str(error)))
                continue
            shown.append(Shown(asked=one, weights=found.weights[0].float().cpu().numpy(), module=found.module))
    return tuple(shown)


def overlay(picture: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """Return a picture in grey with a map over it, smoothed between patches; the least weight shows nothing."""
    span = float(weights.max() - weights.min())
    scaled = (weights - weights.min()) / span if span > 0 else np.zeros_like(weights)
    smooth = Image.fromarray(scaled.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)
    place = share * (len(RAMP) - 1)
    lower = np.minimum(place.astype(np.int64), len(RAMP) - 2)
    colour = RAMP[lower] + (RAMP[lower + 1] - RAMP[lower]) * (place - lower)[..., None]
    alpha = STRENGTH * np.sqrt(share)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray(np.round(grey * (1 - alpha) + colour * alpha).astype(np.uint8))


def draw_attention(image: Source, size: tuple[int, int], shown: Sequence[Shown], title: str) -> Image.Image:
    """Draw the image as the model sees it, stretched to its proportions, and the maps beside it with their labels.

    size: height and width of the model's images.
    """
    width = min(round(HEIGHT * size[1] / size[0]), PANEL)
    picture = open_source(image).resize((width, HEIGHT), Image.Resampling.BICUBIC)
    labels = 24 + CLOTHES + TEXT_LINES * LINE + 4 * LINE
    canvas = Image.new(
        "RGB",
        (2 * MARGIN + (len(shown) + 1) * (PANEL + GAP) - GAP, 2 * MARGIN + 40 + 24 + HEIGHT + labels),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    _line(draw, (MARGIN, MARGIN), title, 19, canvas.width - 2 * MARGIN, bold=True)
    top = MARGIN + 40
    _line(draw, (MARGIN, top), image.modality.name, 14, PANEL, bold=True)
    canvas.paste(picture, (MARGIN, top + 24))
    for number, one in enumerate(shown, start=1):
        _draw_panel(canvas, draw, picture, one, MARGIN + number * (PANEL + GAP), top)
    return canvas


def _draw_panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, shown: Shown, left: int, top: int
) -> None:
    _line(draw, (left, top), TITLES[shown.asked.task], 14, PANEL, bold=True)
    if shown.weights is None:
        draw.rectangle((left, top + 24, left + picture.width - 1, top + 23 + HEIGHT), fill=GROUND)
    else:
        canvas.paste(overlay(picture, shown.weights), (left, top + 24))
    below = top + 24 + HEIGHT + 8
    source = shown.asked.source
    if MODALITIES[source.modality].is_image:
        canvas.paste(fit_image(open_source(source), CLOTHES, CLOTHES), (left, below))
        below += CLOTHES + 4
        said = [shown.asked.note or Path(source.value).name]
    else:
        said = [source.value, *([f"({shown.asked.note})"] if shown.asked.note else [])]
    for text in said:
        below = _block(draw, (left, below), printable(text), INK, TEXT_LINES)
    below = _block(draw, (left, below + 4), printable(shown.module), SOFT, 3)
    if shown.weights is not None:
        peak = float(shown.weights.max() / max(float(shown.weights.mean()), 1e-12))
        _block(draw, (left, below), f"largest weight {peak:.2f} x mean", SOFT, 1)


def _block(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int], lines: int
) -> int:
    """Write a text in lines; return where the next one begins."""
    font = font_for(text, 11)
    found = wrap(text, font, PANEL, lines)
    for number, line in enumerate(found):
        draw.text((place[0], place[1] + number * LINE), line, font=font, fill=colour)
    return place[1] + len(found) * LINE


def _line(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int, bold: bool = False
) -> None:
    font = font_for(text, size, bold)
    draw.text(place, shorten(text, font, width), font=font, fill=INK)


def write_attention(path: Path, image: Source, size: tuple[int, int], shown: Sequence[Shown], title: str) -> None:
    """Write the picture as PNG, atomically."""
    picture = draw_attention(image, size, shown, title)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
