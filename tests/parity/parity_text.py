"""Golden checks of texts: caption preprocessing and BERT's word pieces."""

from __future__ import annotations

import json
from pathlib import Path

from parity_common import Kind, Row, exact

from datasets.loading.captions import preprocess_caption
from datasets.loading.tokenizers import WordPieces
from utils.texts import attention_mask

VOCABULARY = "bert-base-uncased"
"""Folder beside the golden file with the public vocab.txt; it is never part of the repository."""


def check_captions(path: Path) -> list[Row]:
    """Every caption, exactly."""
    items = json.loads(path.read_text(encoding="utf-8"))
    wrong = [item["in"] for item in items if preprocess_caption(item["in"], item["max_words"]) != item["out"]]
    return [exact(not wrong, f"{len(items)} captions, {len(wrong)} wrong")]


def check_tokens(path: Path) -> list[Row]:
    """Ids, padding and mask of every text at the golden's length. No row without the vocabulary beside the file."""
    folder = path.parent / VOCABULARY
    if not (folder / "vocab.txt").is_file():
        return []
    golden = json.loads(path.read_text(encoding="utf-8"))
    length, items = golden["max_length"], golden["items"]
    pieces = WordPieces(str(folder), length)
    wrong_ids = wrong_masks = 0
    for item in items:
        ids, expected = pieces(item["text"]), item["input_ids_without_padding"]
        wrong_ids += ids.tolist() != (expected + [0] * length)[:length]
        wrong_masks += int(attention_mask(ids, pieces.pad_id).sum()) != min(item["attention_mask_ones"], length)
    return [
        exact(not wrong_ids, f"{len(items)} texts, {wrong_ids} with wrong ids"),
        exact(not wrong_masks, f"{wrong_masks} wrong masks"),
    ]


KINDS: tuple[Kind, ...] = (
    Kind("caption preprocessing (IRM)", r"c_captions.*\.json", check_captions),
    Kind("word pieces (IRM)", r"k_tokens.*\.json", check_tokens),
)
