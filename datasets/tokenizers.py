"""Text to token ids of a fixed length."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from utils.errors import UserError


class Tokenizer(Protocol):
    """What a dataset and a mask augmentation need to know of a tokenizer. Ids lie in 0..vocab_size-1."""

    vocab_size: int
    pad_id: int
    mask_id: int
    start_id: int
    end_id: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of all pieces, without start, end and padding."""

    def __call__(self, text: str, length: int) -> Tensor:
        """Return (length,) int64: start, pieces, end, padding; what is too long loses its last pieces, never the end."""


@functools.cache
def _clip_library() -> ModuleType:
    # The module is loaded by its file: importing the package would import torchvision and timm as well (seconds).
    loaded = sys.modules.get("open_clip.tokenizer")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise UserError("CLIP's vocabulary comes with open_clip_torch, which is not installed: "
                        "run `pip install -r requirements.txt`")
    file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("anyreid_clip_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ClipTokenizer:
    """CLIP's byte-pair encoding with a mask token, as in the reference.

    The mask takes the id of the vocabulary's last entry ('jekyll</w>'). Departure: the merge that makes this entry is
    dropped too, so that the word falls apart into pieces (the reference raises KeyError). Special tokens that are
    spelled out in a text, for instance <|endoftext|>, become their ids, as in the reference.
    """

    vocab_size = 49408
    pad_id = 0
    mask_id = 49405
    start_id = 49406
    end_id = 49407
    _specials = {"<|mask|>": mask_id, "<|startoftext|>": start_id, "<|endoftext|>": end_id}

    def __init__(self) -> None:
        """Read the vocabulary. Raises UserError when open_clip_torch is not installed."""
        library = _clip_library()
        pairs = library.SimpleTokenizer()
        pieces = {piece: index for piece, index in pairs.encoder.items() if index < self.mask_id}
        pairs.encoder = pieces | self._specials
        pairs.bpe_ranks = {pair: rank for pair, rank in pairs.bpe_ranks.items() if "".join(pair) in pieces}
        pairs.cache = {special: special for special in self._specials}
        special = "|".join(map(library.re.escape, self._specials))
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        pairs.pat = library.re.compile(f"{special}|{words}", library.re.IGNORECASE)
        self._pairs = pairs

    def __reduce__(self) -> tuple[type[ClipTokenizer], tuple[()]]:
        # A worker process reads the vocabulary itself; the library's module is not importable by name there.
        return ClipTokenizer, ()

    def _ids(self, text: str) -> Iterator[int]:
        pairs = self._pairs
        for match in pairs.pat.finditer(pairs.clean_fn(text)):
            symbols = "".join(pairs.byte_encoder[byte] for byte in match.group().encode("utf-8", "replace"))
            yield from (pairs.encoder[piece] for piece in pairs.bpe(symbols).split(" "))

    def encode(self, text: str) -> list[int]:
        """Return the ids of all pieces of `text`, without start, end and padding."""
        return list(self._ids(text))

    def __call__(self, text: str, length: int = 77) -> Tensor:
        """Return (length,) int64: start, pieces, end, zeros; a text that is too long is cut, its last id is the end.

        An empty text is [start, end, 0, ...].
        """
        # Pieces beyond the cut are never computed.
        pieces = itertools.islice(self._ids(text), length - 2)
        ids = torch.zeros(length, dtype=torch.int64)
        row = [self.start_id, *pieces, self.end_id]
        ids[: len(row)] = torch.tensor(row)
        return ids
