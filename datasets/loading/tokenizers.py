"""Text to token ids of a fixed length."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.loading.captions import preprocess_caption
from utils.errors import UserError, nearest
from utils.files import ordinary

VOCAB_FILE = "vocab.txt"


class Tokenizer(Protocol):
    """What a dataset and a mask augmentation need to know of a tokenizer. Ids lie in 0..vocab_size-1."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def pad_id(self) -> int:
        """What fills a row."""

    @property
    def mask_id(self) -> int:
        """What stands for a masked piece."""

    @property
    def start_id(self) -> int:
        """The first id of a row."""

    @property
    def end_id(self) -> int | None:
        """What ends a text, None where nothing does."""

    @property
    def ordinary_ids(self) -> range:
        """The ids that a mask augmentation may change and may draw."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of all pieces, without start, end and padding."""

    def __call__(self, text: str, length: int) -> Tensor:
        """Return (length,) int64: start, pieces, end, padding; what is too long loses its last pieces, never the
        end.
        """


@functools.cache
def _clip_library() -> ModuleType:
    # The module is loaded by its file: importing the package would import torchvision and timm as well (seconds).
    loaded = sys.modules.get("open_clip.tokenizer")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "CLIP's vocabulary comes with open_clip_torch, which is not installed: run `pip install -r "
            "requirements.txt`"
        )
    file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("anyreid_clip_tokenizer", file)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
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
    ordinary_ids = range(1, mask_id)
    _specials = {"<|mask|>": mask_id, "<|startoftext|>": start_id, "<|endoftext|>": end_id}

    def __init__(self) -> None:
        """Read the vocabulary. Raises UserError when open_clip_torch is not installed."""
        self._pairs = self._read()

    @classmethod
    @functools.cache
    def _read(cls) -> Any:
        # Once in a process: it takes a tenth of a small training.
        library = _clip_library()
        pairs = library.SimpleTokenizer()
        pieces = {piece: index for piece, index in pairs.encoder.items() if index < cls.mask_id}
        pairs.encoder = pieces | cls._specials
        pairs.bpe_ranks = {pair: rank for pair, rank in pairs.bpe_ranks.items() if "".join(pair) in pieces}
        pairs.cache = {special: special for special in cls._specials}
        special = "|".join(map(library.re.escape, cls._specials))
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        pairs.pat = library.re.compile(f"{special}|{words}", library.re.IGNORECASE)
        return pairs

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


class WordPieces:
    """BERT's word pieces, through transformers: lower-cased, [CLS] in front, no end token, padded with [PAD].

    Source: reference (IRM, after ALBEF). Departure: a text of more than `length` ids loses its last pieces, where the
    reference stops with an error. The text is taken as it is; `datasets.loading.captions.preprocess_caption` comes
    before.
    """

    end_id = None

    def __init__(self, vocab: str, length: int = 70) -> None:
        """Read the vocabulary: a folder that holds vocab.txt, or the id of a model on the Hugging Face hub.

        Raises UserError for a folder without vocab.txt, a vocabulary without BERT's special tokens, and a hub that does
        not answer.
        """
        folder = _vocab_folder(vocab)
        _check_vocabulary(folder / VOCAB_FILE)
        # Imported here: it takes seconds, and most runs use CLIP's pieces.
        from transformers import BertTokenizer

        self.vocab, self.length = vocab, length
        self._pieces = BertTokenizer.from_pretrained(str(folder), local_files_only=True, do_lower_case=True)
        ids = self._pieces.get_vocab()
        self.vocab_size, self.vocabulary = len(ids), tuple(sorted(ids, key=ids.__getitem__))
        self.pad_id, self.start_id, self.mask_id = ids["[PAD]"], ids["[CLS]"], ids["[MASK]"]
        self.ordinary_ids = _longest_run(index for piece, index in ids.items() if not _is_reserved(piece))

    def __reduce__(self) -> tuple[type[WordPieces], tuple[str, int]]:
        return WordPieces, (self.vocab, self.length)

    def encode(self, text: str) -> list[int]:
        """Return the ids of all pieces of `text`, without [CLS] and padding."""
        return self._pieces.encode(text, add_special_tokens=False)

    def __call__(self, text: str, length: int | None = None) -> Tensor:
        """Return (length,) int64: [CLS], pieces, padding; what is too long loses its last pieces. length: empty = the
        tokenizer's.
        """
        ids = torch.full((length or self.length,), self.pad_id, dtype=torch.int64)
        row = [self.start_id, *self.encode(text)][: len(ids)]
        ids[: len(row)] = torch.tensor(row)
        return ids


def _vocab_folder(vocab: str) -> Path:
    """Return the folder of vocab.txt. The library makes an empty vocabulary out of a wrong name, so the file is looked
    for here.
    """
    folder = Path(vocab)
    if folder.is_dir() or vocab.startswith(("/", ".", "~")):
        if not (folder / VOCAB_FILE).is_file():
            raise UserError(
                f"no {VOCAB_FILE} in {folder}; give the folder that holds bert-base-uncased's {VOCAB_FILE}, or use "
                "CLIP's word pieces, which come with open_clip_torch"
            )
        return folder
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(vocab, VOCAB_FILE)
        return Path(cached if isinstance(cached, str) else hf_hub_download(vocab, VOCAB_FILE)).parent
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot get {VOCAB_FILE} of {vocab!r} from the Hugging Face hub ({type(error).__name__}); give a folder "
            "that holds it, or use CLIP's word pieces, which need no download"
        ) from error


def _check_vocabulary(file: Path) -> None:
    try:
        pieces = frozenset(ordinary(file).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; take the {VOCAB_FILE} of bert-base-uncased") from error
    missing = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[MASK]") if name not in pieces]
    if missing:
        raise UserError(
            f"{file} is not a vocabulary of BERT: {', '.join(missing)} missing; take the {VOCAB_FILE} of "
            "bert-base-uncased"
        )


def _is_reserved(piece: str) -> bool:
    return len(piece) > 2 and piece.startswith("[") and piece.endswith("]")


def _longest_run(ids: Iterator[int]) -> range:
    """Return the longest range of consecutive ids."""
    best = run = range(0)
    for index in sorted(ids):
        run = range(run.start if index == run.stop else index, index + 1)
        best = run if len(run) > len(best) else best
    return best


@dataclass(frozen=True)
class TextReader:
    """Text -> (length,) int64, as a model's texts are prepared and tokenised. It crosses process borders."""

    tokenizer: Tokenizer
    length: int
    prepare: Callable[[str], str] | None = None
    """What is done to a text before its pieces are made; None = nothing."""

    def __call__(self, text: str) -> Tensor:
        """Return the ids of a text."""
        return self.tokenizer(self._prepared(text), self.length)

    def pieces_lost(self, text: str) -> int:
        """Return how many of a text's pieces are cut off, 0 for one that fits."""
        room = self.length - (1 if self.tokenizer.end_id is None else 2)
        prepared = self._prepared(text)
        # A piece has at least one byte: short texts need not be taken apart.
        short = len(prepared.encode("utf-8", "replace")) <= room
        return 0 if short else max(0, len(self.tokenizer.encode(prepared)) - room)

    def _prepared(self, text: str) -> str:
        return text if self.prepare is None else self.prepare(text)


def _clip_reader(argument: str, length: int) -> TextReader:
    if argument:
        raise UserError(f"model.tokenizer = 'clip:{argument}': clip takes no argument; write clip")
    return TextReader(ClipTokenizer(), length)


def _bert_reader(argument: str, length: int) -> TextReader:
    if not argument:
        raise UserError(f"model.tokenizer = 'bert': name the folder that holds {VOCAB_FILE}, or a hub id: bert:FOLDER")
    return TextReader(WordPieces(argument, length), length, preprocess_caption)


TOKENIZERS: dict[str, Callable[[str, int], TextReader]] = {"clip": _clip_reader, "bert": _bert_reader}
"""Kind -> builder from (what follows the colon, length in ids)."""


def build_text_reader(name: str, length: int, vocab_size: int) -> TextReader:
    """Return the reader of a model's texts. name: `clip`, or `bert:FOLDER-OR-HUB-ID` (model.tokenizer).

    vocab_size: rows of the model's embedding. Raises UserError for an unknown kind, a vocabulary that is not there, and
    one that is larger than the embedding.
    """
    kind, _, argument = name.partition(":")
    if kind not in TOKENIZERS:
        raise UserError(f"model.tokenizer = {name!r}: {nearest(kind, TOKENIZERS)}")
    reader = TOKENIZERS[kind](argument, length)
    if vocab_size < reader.tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {vocab_size}: the tokenizer {name} has {reader.tokenizer.vocab_size} ids; raise it"
        )
    return reader
