"""Covers: utils/checkpoint_io, solver/runs, model/weights/archives, model/weights/clip_sources,
datasets/checks/matches, datasets/loading/text_notes, datasets/loading/tokenizers, solver/evaluation/result. What would
change a result without a word is refused or said: fields and sums of a checkpoint, an edited configuration, an
unfinished run, another activation, cut and empty texts, a gallery of one person.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from protocol_oracle import ToyModel, ToyReader
from test_runs import make_run
from torch import Tensor, nn
from trees import plant

from configs.vocabulary import Modality
from datasets.checks.run import CheckOptions, run_check
from datasets.loading.readers import PillowReader, SourceReader
from datasets.loading.text_notes import text_notes
from datasets.loading.tokenizers import TextReader
from datasets.structures import EvalSplit, QueryList, ReadOptions, Source
from model.weights.archives import scripted_activations
from model.weights.clip_sources import read_clip
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.spec import EvaluationSpec
from solver.runs import open_run
from utils.checkpoint_io import load_checkpoint, load_tensors, save_checkpoint
from utils.errors import UserError

GOOD: dict[str, Any] = {
    "format_version": 1,
    "model": {"weight": torch.arange(6.0).view(3, 2)},
    "config": {},
    "family": "reid5o",
    "num_identities": 3,
    "epoch": 2,
    "step": 7,
    "selected_on": "val",
    "trials": {"regdb": 1},
}
WEIGHT = GOOD["model"]["weight"]
WRONG: dict[str, dict[str, Any]] = {
    "format_version 99": {"format_version": 99},
    "format_version True": {"format_version": True},
    "num_identities is 10000000000": {"num_identities": 10**10},
    "num_identities is 0": {"num_identities": 0},
    "num_identities is True": {"num_identities": True},
    "epoch is nan": {"epoch": float("nan")},
    "epoch is a Tensor": {"epoch": torch.ones(3)},
    "step is b'x'": {"step": b"x"},
    "step is -1": {"step": -1},
    "selected_on is ": {"selected_on": "\ud800"},
    "selected_on is 3": {"selected_on": 3},
    "trials is {'regdb': 'x'}": {"trials": {"regdb": "x"}},
    "trials is {'regdb': None}": {"trials": {"regdb": None}},
    "trials is [1]": {"trials": [1]},
    "meta": {"model": {"weight": WEIGHT.to("meta")}},
    "sparse": {"model": {"weight": WEIGHT.to_sparse()}},
    "complex": {"model": {"weight": WEIGHT + 1j}},
}


@pytest.mark.parametrize("words", WRONG)
def test_fields_of_a_checkpoint_are_checked(tmp_path: Path, words: str) -> None:
    save_checkpoint(tmp_path / "good.pth", GOOD)
    assert load_checkpoint(tmp_path / "good.pth")["epoch"] == 2
    torch.save({**GOOD, **WRONG[words]}, tmp_path / "bad.pth")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "bad.pth")
    assert words in str(caught.value) and str(tmp_path / "bad.pth") in str(caught.value)


def test_a_flipped_bit_in_a_tensor_is_seen(tmp_path: Path) -> None:
    values = torch.linspace(0, 1, 2000)
    save_checkpoint(tmp_path / "a.pth", {"values": values})
    content = bytearray((tmp_path / "a.pth").read_bytes())
    place = content.index(values.numpy().tobytes()) + 4001
    content[place] ^= 2
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth is damaged: the checksum of"):
        load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("change", ["bool", "long"])
def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path, change: str) -> None:
    make_run(tmp_path)
    content = load_checkpoint(tmp_path / "best.pth")
    name = next(name for name, value in content["model"].items() if value.ndim == 2)
    content["model"][name] = content["model"][name].bool() if change == "bool" else content["model"][name].long()
    save_checkpoint(tmp_path / "best.pth", content)
    with pytest.raises(UserError, match=rf"entries of another kind of number: {name}"):
        open_run(tmp_path)


def test_an_edited_model_section_is_refused_and_an_override_is_said(tmp_path: Path) -> None:
    make_run(tmp_path)
    content = load_checkpoint(tmp_path / "best.pth")
    content["config"] = {"model": {"vision_heads": 2, "text_heads": 4, "init": "elsewhere", "of_a_later_version": 1}}
    save_checkpoint(tmp_path / "best.pth", content)
    with pytest.raises(UserError, match=r"model.vision_heads is None \(the checkpoint: 2\)") as caught:
        open_run(tmp_path, overrides=["model.text_heads=2"])
    assert "text_heads" not in str(caught.value) and "config.yaml" in str(caught.value)
    trained = open_run(tmp_path, overrides=["model.vision_heads=4", "model.text_heads=4"])
    assert "model.vision_heads is 4, the checkpoint was trained with 2" in trained.notes
    assert not [note for note in trained.notes if "text_heads" in note or "init" in note]


def test_weights_of_an_unfinished_run_are_said(tmp_path: Path) -> None:
    make_run(tmp_path)
    (note,) = open_run(tmp_path, "last").notes
    assert "has not finished (no outcome.json): last.pth is of epoch 2 of 60" in note
    (tmp_path / "outcome.json").write_text(json.dumps({}))
    assert open_run(tmp_path, "last").notes == ()


class Activated(nn.Module):
    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.quick, self.weight = quick, nn.Parameter(torch.ones(2))
        self.gelu = nn.GELU()

    def forward(self, values: Tensor) -> Tensor:
        values = values * self.weight
        return values * torch.sigmoid(1.702 * values) if self.quick else self.gelu(values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
def test_an_archive_that_computes_gelu_is_refused(tmp_path: Path, scripted: bool) -> None:
    for quick in (True, False):
        module = Activated(quick)
        archive = torch.jit.script(module) if scripted else torch.jit.trace(module, torch.zeros(2))
        torch.jit.save(archive, str(tmp_path / f"{quick}.pt"))
    assert "GELU" in scripted_activations(tmp_path / "False.pt")
    with pytest.raises(UserError, match="activation GELU, and ReID5o computes QuickGELU"):
        read_clip(str(tmp_path / "False.pt"))
    if not scripted:
        assert read_clip(str(tmp_path / "True.pt")).tensors.keys() == {"weight"}


def test_a_state_dict_that_does_not_say_its_activation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    with caplog.at_level(logging.WARNING):
        read_clip(str(tmp_path / "a.pt"))
    assert "does not say which activation" in caplog.text


class Letters:
    """Stands for a tokenizer: a piece for each letter."""

    vocab_size, pad_id, mask_id, start_id, ordinary_ids = 300, 0, 299, 298, range(1, 290)

    def __init__(self, end_id: int | None) -> None:
        self.end_id = end_id

    def encode(self, text: str) -> list[int]:
        return [1 + ord(letter) % 200 for letter in text]

    def __call__(self, text: str, length: int) -> Tensor:
        raise AssertionError("nothing is read here")


@pytest.mark.parametrize(("end", "room"), [(297, 4), (None, 5)])
def test_texts_that_lose_their_ends_and_empty_ones_are_said(end: int | None, room: int) -> None:
    reader = TextReader(Letters(end), 6)
    assert [reader.pieces_lost("x" * count) for count in (0, room, room + 1, 20)] == [0, 0, 1, 20 - room]
    texts = ["abcd", "a very long text", " ", ""]
    sources = [Source(modality=Modality.TEXT, value=text, record=f"entry {n}") for n, text in enumerate(texts)]
    sources += [*sources[:1], Source(modality=Modality.RGB, value="a file whose name is long")]
    images = PillowReader((8, 4))
    cut, empty = text_notes(sources, SourceReader(images, reader))
    assert cut.startswith("1 of 4 texts are longer than the model reads (model.text_length = 6)")
    assert f"at most {16 - room} pieces: entry 1, 'a very long text'" in cut
    assert empty == "2 of 4 texts are empty and say nothing: entry 2, ' '"
    assert text_notes(sources[:1], SourceReader(images, reader)) == text_notes(sources, SourceReader(images)) == []


def test_the_check_says_that_a_gallery_is_of_one_person(tmp_path: Path) -> None:
    plant(tmp_path, "query/a/1.png", "gallery/a/1.png", "gallery/a/2.png")
    options = CheckOptions(dataset="folders", root=tmp_path, reading=ReadOptions(need_train=False))
    found = {finding.kind: finding for finding in run_check(options)[0].findings}
    assert found["one_person"].level == "warning" and found["one_person"].count == 2
    plant(tmp_path, "gallery/b/1.png")
    assert "one_person" not in {finding.kind for finding in run_check(options)[0].findings}


def test_a_gallery_of_one_person_says_nothing() -> None:
    gallery = tuple(Source(modality=Modality.RGB, value=f"{number}.jpg") for number in range(4))
    query = ((Source(modality=Modality.RGB, value="q.jpg"),),)
    lists = [
        QueryList(combination=(Modality.RGB,), entries=query, person_ids=(1,), title=title, gallery=part)
        for title, part in (("all", None), ("one", (0, 1)), ("two", (1, 2)))
    ]
    split = EvalSplit(name="test", protocol="p", gallery=gallery, gallery_ids=(1, 1, 2, 1), query_lists=tuple(lists))
    result = evaluate_split(ToyModel(), split, ToyReader(), EvaluationSpec(), torch.device("cpu"))
    (note,) = [note for note in result.notes() if "of one person" in note]
    assert note.endswith(": one") and np.isfinite(result.average())
