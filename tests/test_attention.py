"""Covers: solver/reports/attention, solver/commands/attention, solver/search/named. Where a model looks in one image
under the instructions of six tasks: what it is told, what is drawn, what is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instructed_family import (
    IMAGENET,
    INSTRUCTION_SIZE,
    RGB,
    TEXT,
    TEXT_LENGTH,
    ToldConfig,
    ToldModel,
    experiment,
    normalised,
    picture,
    register,
    vocabulary,
    words_of,
    write_data,
)
from PIL import Image
from scripts import exit_code
from tiny_irm import GRID, IMAGE_SIZE, images, texts, tiny_irm, told
from torch import Tensor

import model.build
from configs.vocabulary import BOX, Family, Modality, Task
from datasets.instructions import BANK
from datasets.structures import Source
from model.build import FamilyModel
from model.interface import AttentionMap, Instructions, MapsAttention
from model.weights.clip import InitialWeights
from solver.commands.attention import run_attention
from solver.commands.train import run_training
from solver.reports.attention import DEFAULT_TEXT, attention_maps, overlay, six_tasks, write_attention
from solver.search.arguments import SearchOptions
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("keep_logging")
CPU = torch.device("cpu")
ORDER = (Task.TRAD, Task.CC, Task.CTCC, Task.VI, Task.T2I, Task.LI)


class LookingModel(ToldModel, MapsAttention):
    """Looks at the first patch of six under an instruction, at the last beside a caption; keeps what it was asked."""

    asked: list[tuple[Tensor, Instructions, Tensor | None]] = []

    def attention_maps(
        self, modality: Modality, inputs: Tensor, instructions: Instructions = (), captions: Tensor | None = None
    ) -> AttentionMap:
        assert modality is RGB and not self.training
        self.asked.append((inputs, instructions, captions))
        weights = torch.zeros(len(inputs), 3, 2)
        row, column = (2, 1) if captions is not None else (0, 0)
        weights[:, row, column] = 1.0
        return AttentionMap(weights=weights, module="caption layer" if captions is not None else "editing layer")


@pytest.fixture(scope="module")
def family() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        made = register(patch)
        patch.setitem(
            model.build.FAMILIES, made, FamilyModel(LookingModel, lambda *_: InitialWeights(source="torch", rows=()))
        )
        yield made.value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def run(family: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    run_training(experiment(family, data, output), device="cpu", overwrite=False)
    return output / "told"


@pytest.fixture
def asked(data: Path) -> str:
    return str(data / "real2" / "q" / "11_1.png")


def call(run: Path, maps: Path, **options: Any) -> str:
    LookingModel.asked.clear()
    return run_attention(SearchOptions(run=str(run), attention=str(maps), device="cpu", **options))


def token_ids(text: str) -> Tensor:
    """[CLS] = 2, the words' places in the vocabulary or [UNK] = 1, 0; what is too long is cut."""
    known = vocabulary()
    ids = [2, *(known.index(word) if word in known else 1 for word in words_of(text))][:TEXT_LENGTH]
    return torch.tensor(ids + [0] * (TEXT_LENGTH - len(ids)))


def told_of(place: int) -> Tensor:
    _, (one,), caption = LookingModel.asked[place]
    assert caption is None and one.rows.tolist() == [0]
    return one.inputs[0]


def test_six_tasks_tell_the_same_image_what_each_has_to_say(run: Path, asked: str, tmp_path: Path) -> None:
    printed = call(run, tmp_path / "maps.png", parts={"rgb": asked})
    assert len(LookingModel.asked) == 6
    shown = normalised(picture(Source(modality=RGB, value=asked), (12, 6)))
    assert all(torch.allclose(inputs[0], shown, atol=1e-6) for inputs, _, _ in LookingModel.asked)
    for place, task in ((0, Task.TRAD), (1, Task.CC), (3, Task.VI)):
        assert torch.equal(told_of(place), token_ids(BANK[task][0]))
    box = normalised(picture(Source(modality=RGB, value=asked, crop=BOX), INSTRUCTION_SIZE), IMAGENET)
    assert torch.allclose(told_of(2), box, atol=1e-6)
    assert torch.equal(told_of(5), token_ids(DEFAULT_TEXT))
    _, none, caption = LookingModel.asked[4]
    assert not none and caption is not None and torch.equal(caption[0], token_ids(DEFAULT_TEXT))
    assert "editing layer" in printed and "t2i: " in printed and "caption layer" in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "maps.png"]


def test_the_user_replaces_description_caption_and_clothes(run: Path, asked: str, data: Path, tmp_path: Path) -> None:
    call(run, tmp_path / "maps.png", parts={"rgb": asked}, instruction="a person in red")
    _, _, caption = LookingModel.asked[4]
    assert caption is not None and torch.equal(caption[0], token_ids("a person in red"))
    assert torch.equal(told_of(5), token_ids("a person in red"))
    call(run, tmp_path / "maps.png", parts={"rgb": asked, "text": "in blue"}, instruction="a person in red")
    _, _, caption = LookingModel.asked[4]
    assert caption is not None and torch.equal(caption[0], token_ids("in blue"))
    coat = data / "real2" / "c" / "0.png"
    call(run, tmp_path / "maps.png", parts={"rgb": asked}, instruction_image=str(coat))
    clothes = normalised(picture(Source(modality=RGB, value=str(coat)), INSTRUCTION_SIZE), IMAGENET)
    assert torch.allclose(told_of(2), clothes, atol=1e-6) and torch.equal(told_of(5), token_ids(DEFAULT_TEXT))


def test_the_order_is_that_of_the_tasks_and_notes_say_where_things_come_from() -> None:
    found = six_tasks(Source(modality=RGB, value="a.jpg"), None, None)
    assert tuple(one.task for one in found) == ORDER
    assert [one.note for one in found] == [
        "bank of sentences",
        "bank of sentences",
        "the image's own clothes",
        "bank of sentences",
        "default text",
        "default text",
    ]
    told = six_tasks(Source(modality=RGB, value="a.jpg"), Source(modality=TEXT, value="red"), None)
    assert [one.note for one in told[4:]] == ["", ""] and told[2].source.crop == BOX


def test_a_map_colours_where_its_weights_are() -> None:
    grey = Image.new("RGB", (40, 60), (120, 120, 120))
    weights = np.zeros((3, 2), dtype=np.float32)
    weights[2, 1] = 0.4
    pixels = np.asarray(overlay(grey, weights)).astype(int)
    assert pixels[:20, :20].tolist() == [[[120, 120, 120]] * 20] * 20, "the least weight shows nothing"
    red, green, blue = pixels[58, 38]
    assert red > 150 and green < 90 and blue < 90
    assert (np.asarray(overlay(grey, np.full((3, 2), 0.3, dtype=np.float32))) == 120).all(), "all alike shows nothing"


def test_the_picture_has_a_panel_for_each_task(run: Path, asked: str, tmp_path: Path) -> None:
    call(run, tmp_path / "maps.png", parts={"rgb": asked})
    drawn = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).astype(int)
    red = (drawn[..., 0] - drawn[..., 1:].max(-1) > 60).any(axis=0)
    starts = np.flatnonzero(red[1:] & ~red[:-1])
    assert drawn.shape[1] > 7 * 176 and len(starts) >= 6


class PixelReader:
    """Images at the size of the tiny IRM, instructions at theirs."""

    def __call__(self, source: Source) -> Tensor:
        return torch.full((3, *IMAGE_SIZE), 99, dtype=torch.uint8)

    def annotation(self, source: Source) -> Tensor:
        if source.modality is TEXT:
            return torch.tensor([len(source.value) % 90 + 1, 5, 7] + [0] * 7)
        return torch.full((3, 32, 32), 40, dtype=torch.uint8)


def test_irm_shows_six_maps_and_names_their_modules(asked: str, tmp_path: Path, data: Path) -> None:
    image = Source(modality=RGB, value=asked)
    found = attention_maps(
        tiny_irm(gates_at=0.7, matching="fusion"), image, six_tasks(image, None, None), PixelReader(), CPU, "fp32"
    )
    for one in found:
        assert one.weights is not None and one.weights.shape == GRID and (one.weights >= 0).all()
        assert ("cross-attention" in one.module) == (one.asked.task is Task.T2I)
    maps = {one.asked.task: one.weights for one in found}
    assert not np.allclose(maps[Task.TRAD], maps[Task.CTCC])  # type: ignore[arg-type]
    write_attention(tmp_path / "irm.png", image, IMAGE_SIZE, found, "title")
    assert Image.open(tmp_path / "irm.png").width > 7 * 176


@torch.no_grad()
@pytest.mark.parametrize("form", ["joint", "dual"])
def test_without_editing_the_last_layer_of_the_attention_module_is_shown(form: str) -> None:
    """IRM++: the image's class token (joint) or the instruction's (dual) over the patches, a head at a time."""
    model = tiny_irm(editing="none", heads_shared=True, attention=form)
    pictures, ids = images(3), texts(4, 7, 10)
    found = model.attention_maps(RGB, pictures, (told(TEXT, ids, 0, 1, 2),))
    assert found.weights.shape == (3, *GRID) and "last layer of the attention module" in found.module
    assert ("the instruction's class token" in found.module) == (form == "dual")
    first, last = model.attention.blocks
    for row in range(3):
        patches = model.encode_images(pictures[row : row + 1]).tokens
        said = model.encode_instructions(TEXT, ids[row : row + 1]).tokens[:, : int((ids[row] > 0).sum())]
        joined = [patches, said] if form == "joint" else [said[:, :1], patches[:, 1:]]
        hidden = last.norm1(first(torch.cat(joined, dim=1)))[0]  # type: ignore[operator]
        query, key, _ = last.attn.qkv(hidden).chunk(3, dim=1)  # type: ignore[operator, union-attr]
        heads = [
            (query[0, part] @ key[:, part].T / 2).softmax(dim=0) for part in (slice(n, n + 4) for n in (0, 4, 8, 12))
        ]
        wanted = torch.stack(heads).mean(dim=0)[1 : patches.shape[1]]
        torch.testing.assert_close(found.weights[row].flatten(), wanted, rtol=1e-4, atol=1e-6)


def test_a_part_that_the_model_lacks_is_said_in_its_panel(asked: str, tmp_path: Path, data: Path) -> None:
    image = Source(modality=RGB, value=asked)
    found = attention_maps(
        tiny_irm(attention="none", matching="attention"),
        image,
        six_tasks(image, None, None),
        PixelReader(),
        CPU,
        "fp32",
    )
    lacking = [one for one in found if one.weights is None]
    assert [one.asked.task for one in lacking] == [Task.T2I] and "model.attention=none" in lacking[0].module
    write_attention(tmp_path / "irm.png", image, IMAGE_SIZE, found, "title")


WRONG = {
    "no image": (["--text", "a coat"], "one image is looked at"),
    "two images": (["--rgb", "Q", "--nir", "Q"], "one image is looked at"),
    "a search": (["--rgb", "Q", "--gallery", "G", "--export", "f.npz"], "leave out --gallery, --export"),
    "no picture": (["--rgb", "J"], "not an image"),
    "instructions": (["--rgb", "Q", "--instruction", "a", "--instruction-image", "Q"], "give one of both"),
    "itself": (["--rgb", "maps.png"], "it is what is looked at"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(
    run: Path,
    asked: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "J").write_text("no picture")
    if case == "itself":
        (tmp_path / "maps.png").write_bytes(Path(asked).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    given, words = WRONG[case]
    replaced = {"Q": asked, "G": str(data)}
    arguments = [replaced.get(word, word) for word in given]
    assert exit_code("infer", "--run", run, "--device", "cpu", "--attention", "maps.png", *arguments) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_family_that_shows_nothing_is_refused(
    run: Path, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(
            model.build.FAMILIES,
            Family.VIREID,
            FamilyModel(ToldModel, lambda *_: InitialWeights(source="torch", rows=())),
        )
        with pytest.raises(UserError, match="--attention: this model does not show where it looks"):
            call(run, tmp_path / "maps.png", parts={"rgb": asked})
    monkeypatch.setattr(ToldConfig, "follows", False)
    monkeypatch.setattr("solver.runs.load_checkpoint", lambda path: pytest.fail("the weights are read first"))
    with pytest.raises(UserError, match="--attention: this model does not show where it looks"):
        call(run, tmp_path / "maps.png", parts={"rgb": asked})
    assert not list(tmp_path.iterdir())


def test_the_script_writes_the_picture(
    run: Path, asked: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "maps"
    assert exit_code("infer", "--run", run, "--device", "cpu", "--rgb", asked, "--attention", place) == 0
    assert f"written: {place}.png" in capfd.readouterr().out and place.with_suffix(".png").is_file()
