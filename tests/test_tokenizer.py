"""Covers: datasets/loading/tokenizers, datasets/loading/caption_masking. CLIP's tokenizer and the mask augmentation
against the reference's ids and counted shares.
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from datasets.loading.caption_masking import mask_caption
from datasets.loading.tokenizers import ClipTokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden/reid5o/tokenizer.json").read_text(encoding="utf-8"))
MASK, START, END = 49405, 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.mark.parametrize("item", GOLDEN["captions"], ids=[str(index) for index in range(len(GOLDEN["captions"]))])
def test_golden_captions(tokenizer: ClipTokenizer, item: dict) -> None:
    assert tokenizer.encode(item["caption"]) == item["encode"]
    ids = tokenizer(item["caption"])
    assert ids.dtype == torch.int64 and ids.tolist() == item["padded77"]


@pytest.mark.parametrize("length", [3, 4, 10, 24, 77, 120])
def test_length_and_cut(tokenizer: ClipTokenizer, length: int) -> None:
    caption = GOLDEN["captions"][2]["caption"]
    whole = [START, *tokenizer.encode(caption), END]
    ids = tokenizer(caption, length).tolist()
    assert len(ids) == length
    if len(whole) > length:
        assert ids == whole[: length - 1] + [END]
    else:
        assert ids == whole + [0] * (length - len(whole))


def test_empty_caption_keeps_start_and_end(tokenizer: ClipTokenizer) -> None:
    for text in ("", "  \n\t "):
        assert tokenizer(text, 5).tolist() == [START, END, 0, 0, 0]


def test_the_word_whose_entry_the_mask_took_falls_apart(tokenizer: ClipTokenizer) -> None:
    pieces = tokenizer.encode("jekyll")
    assert len(pieces) > 1 and max(pieces) < MASK
    names = {index: piece for piece, index in tokenizer._pairs.encoder.items()}
    assert "".join(names[piece] for piece in pieces) == "jekyll</w>"
    assert tokenizer.encode("<|MASK|>") == [MASK]


def test_ids_cover_the_vocabulary_once(tokenizer: ClipTokenizer) -> None:
    assert sorted(tokenizer._pairs.encoder.values()) == list(range(tokenizer.vocab_size))


def test_of_a_long_caption_only_what_fits_is_computed(
    tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, split_words = tokenizer._pairs.bpe, Counter[str]()

    def counted(word: str) -> str:
        split_words.update([word])
        return real(word)

    monkeypatch.setattr(tokenizer._pairs, "bpe", counted)
    words = tokenizer("blue coat " * 2500)
    assert split_words.total() == 75
    letters = tokenizer("x" * 20000)
    assert words.tolist() == [START, *(tokenizer.encode("blue coat") * 38)[:75], END]
    assert letters[-1] == END and (letters > 0).all()


def test_survives_a_worker_process(tokenizer: ClipTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy("a red coat", 9).tolist() == tokenizer("a red coat", 9).tolist()


def test_does_not_import_the_whole_library() -> None:
    code = (
        "import sys; from datasets.loading.tokenizers import ClipTokenizer; "
        "ClipTokenizer()('x');sys.exit('torchvision' in "
        "sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


@pytest.mark.parametrize("item", GOLDEN["mask_augmentation"]["items"], ids=lambda item: str(item["seed"]))
def test_golden_masking(tokenizer: ClipTokenizer, item: dict) -> None:
    ids = tokenizer(item["caption"])
    masked = mask_caption(ids, random.Random(item["seed"]), mask_id=MASK, keep_eot=False)
    assert masked.dtype == torch.int64 and masked.tolist() == item["out"]


def test_an_empty_caption_keeps_its_end_unless_released(tokenizer: ClipTokenizer) -> None:
    ids = tokenizer("", 6)
    assert mask_caption(ids, random.Random(0), mask_id=MASK).tolist() == [START, END, 0, 0, 0, 0]
    assert mask_caption(ids, random.Random(0), mask_id=MASK, keep_eot=False).tolist() == [START, MASK, 0, 0, 0, 0]


def test_shares_of_masked_replaced_and_kept_tokens() -> None:
    ids = torch.tensor([START, *([7] * 20000), END, 0, 0])
    masked = mask_caption(ids, random.Random(3), probability=0.15, mask_id=MASK)
    body = masked[1:-3]
    assert (body == MASK).float().mean().item() == pytest.approx(0.12, abs=0.01)
    assert ((body != 7) & (body != MASK)).float().mean().item() == pytest.approx(0.015, abs=0.004)
    assert body.min() >= 1 and body.max() <= MASK
    assert masked[[0, -3, -2, -1]].tolist() == [START, END, 0, 0]
    assert ids[1:-3].eq(7).all()


def test_something_is_always_masked_and_the_stream_decides() -> None:
    ids = torch.tensor([START, 5, 6, END, 0])
    outcomes = [mask_caption(ids, random.Random(seed), mask_id=MASK, probability=1e-9).tolist() for seed in range(20)]
    assert outcomes == [[START, MASK, 6, END, 0]] * 20
    first, second = (mask_caption(ids, random.Random(11), mask_id=MASK, probability=0.5) for _ in range(2))
    assert torch.equal(first, second)
