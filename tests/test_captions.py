"""Covers: datasets/loading/captions, datasets/loading/tokenizers, datasets/loading/caption_masking, utils/texts.
Caption preprocessing against a loop over characters, word pieces of a tiny vocabulary, masks and their ranges of ids.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import huggingface_hub
import pytest
import torch

from datasets.loading.caption_masking import mask_caption
from datasets.loading.captions import preprocess_caption
from datasets.loading.tokenizers import ClipTokenizer, WordPieces
from utils.errors import UserError
from utils.texts import attention_mask

PIECES = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[unused1]",
    "a",
    "red",
    "coat",
    "##s",
    "dark",
    "!",
    "[",
    "]",
    "pad",
]
CLS, MASK, UNK = 3, 5, 2


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPieces:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPieces(str(folder), 8)


def by_characters(text: str, max_words: int) -> str:
    """The rule of the facts, one step at a time, with loops."""
    kept = []
    for character in text.lower():
        if character in "-/":
            kept.append(" ")
        elif character not in ",.'!?\"()*#:;~":
            kept.append(character)
    text = "person".join("".join(kept).split("<person>"))
    out: list[str] = []
    run: list[str] = []
    for character in [*text, "end"]:
        if len(character) == 1 and character.isspace():
            run.append(character)
            continue
        out += run if len(run) < 2 else [" "]
        run = []
        out.append(character if len(character) == 1 else "")
    text = "".join(out)
    while text.endswith("\n"):
        text = text[:-1]
    while text.startswith(" "):
        text = text[1:]
    while text.endswith(" "):
        text = text[:-1]
    words = text.split(" ")
    return " ".join(words[:max_words])


def test_preprocessing_equals_the_rule_step_by_step() -> None:
    rng = random.Random(8)
    alphabet = [*"abZ", *" \t\n", *" \t\n", *"-/,.'!?\"()*#:;~", "<person>", "<PERSON>", "é", "&", "[", "\u201c"]
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(25)))
        limit = rng.choice([1, 3, 50])
        assert preprocess_caption(text, limit) == by_characters(text, limit), repr(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, in a T-shirt.", "a man in a t shirt"),
        ("<Person> left/right", "person left right"),
        (" \n ", ""),
        ("tab\tinside", "tab\tinside"),
        ("curly \u201cquotes\u201d stay [here]", "curly \u201cquotes\u201d stay [here]"),
    ],
)
def test_preprocessing_by_hand(text: str, expected: str) -> None:
    assert preprocess_caption(text) == expected and preprocess_caption(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red coat", [7, 8, 9]),
        ("Coats!", [9, 10, 12]),
        ("", []),
        ("darkred blue", [UNK, UNK]),
        ("RED\tred\n", [8, 8]),
    ],
)
def test_word_pieces_by_hand(pieces: WordPieces, text: str, expected: list[int]) -> None:
    assert pieces.encode(text) == expected
    ids = pieces(text)
    assert ids.dtype == torch.int64 and ids.tolist() == [CLS, *expected] + [0] * (7 - len(expected))
    assert attention_mask(ids, pieces.pad_id).tolist() == [True] * (1 + len(expected)) + [False] * (7 - len(expected))


def test_a_long_text_loses_its_last_pieces(pieces: WordPieces) -> None:
    assert pieces("a red coat " * 5).tolist() == [CLS, 7, 8, 9, 7, 8, 9, 7]
    assert pieces("a red coat", 2).tolist() == [CLS, 7] and pieces("a red coat", 5).tolist() == [CLS, 7, 8, 9, 0]


def test_ranges_of_ids(pieces: WordPieces) -> None:
    assert (pieces.vocab_size, pieces.pad_id, pieces.start_id, pieces.mask_id, pieces.end_id) == (
        16,
        0,
        CLS,
        MASK,
        None,
    )
    assert pieces.ordinary_ids == range(7, 16)
    assert ClipTokenizer.ordinary_ids == range(1, 49405)


def test_masking_keeps_to_the_ordinary_ids(pieces: WordPieces) -> None:
    ids = pieces("a red coats dark !")
    seen = set()
    for seed in range(400):
        masked = mask_caption(
            ids, random.Random(seed), probability=0.5, mask_id=pieces.mask_id, ordinary=pieces.ordinary_ids
        )
        assert masked[0] == CLS and masked[7] == 0
        seen |= {int(new) for new, old in zip(masked, ids) if new != old}
    assert MASK in seen and seen - {MASK} <= set(range(7, 16)) and len(seen) > 5
    empty = pieces("")
    assert mask_caption(empty, random.Random(0), mask_id=MASK, ordinary=pieces.ordinary_ids).tolist() == empty.tolist()


def test_only_the_run_at_the_end_is_padding() -> None:
    clip = ClipTokenizer()
    ids = clip("!% red", 8)
    assert ids[1] == 0, "CLIP's pad id is the piece `!`"
    assert attention_mask(ids, clip.pad_id).tolist() == [True] * 5 + [False] * 3
    assert attention_mask(torch.stack([ids, clip("", 8)]), clip.pad_id).sum(dim=1).tolist() == [5, 2]


def test_a_worker_gets_an_equal_tokenizer(pieces: WordPieces) -> None:
    assert pickle.loads(pickle.dumps(pieces))("a red coat").tolist() == pieces("a red coat").tolist()


def test_wrong_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no vocab.txt in .*; give the folder .* CLIP's word pieces"):
        WordPieces(str(tmp_path))
    with pytest.raises(UserError, match="no vocab.txt in"):
        WordPieces("./not-there")
    (tmp_path / "vocab.txt").write_text("red\ncoat\n[CLS]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a vocabulary of BERT: \[PAD\], \[UNK\], \[MASK\] missing"):
        WordPieces(str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read .*vocab.txt"):
        WordPieces(str(tmp_path))

    def unreachable(*_: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(
        UserError,
        match="'bert-base-uncased' from the Hugging Face hub .ConnectionError.; give a folder .* CLIP's word pieces",
    ):
        WordPieces("bert-base-uncased")
