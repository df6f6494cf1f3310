"""What a gallery index is made of: names of its files, its state, and the table of its rows.

    index.json                      the state; whatever it does not name is no part of the index
    shards/NAME.features.npy        (n, D) float32 or float16, as they are memory-mapped
    shards/NAME.codes.npy           (n, D) int8, and NAME.scales.npy (2, D) float32: their coarse form, by which a
                                    search rules rows out (utils.retrieval.coarse); absent where they have none
    shards/NAME.keys.npy            (n,) KEYS: what a search looks for in all rows
    shards/NAME.rows.jsonl          (n lines) IndexRow: everything that is known of a row
    shards/NAME.bad.jsonl           IndexRow of each image that could not be read, with the reason; absent without any
    shards/removed-N.npy            (r,) int64, ascending: ids of removed rows
    jobs/KEY/                       the parts of one sharded job, in the same form; see solver.gallery.jobs

Every file but index.json is written once, under a name of its own, before index.json is replaced: a process that is
killed at any moment leaves the index as it was before, or as it is after.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.vocabulary import Modality
from datasets.structures import Person
from solver.gallery.place import INDEX_FILE, require_index
from solver.gallery.signatures import SIGNED, Signature
from utils.errors import UserError
from utils.files import CHECKSUM, checksum_of, parse_json
from utils.foreign import foreign_file

FORMAT = 1
"""To be raised when the form of the files, the reading of images or the normalisation changes."""
KIND = "AnyReID gallery index"
SHARDS_FOLDER, JOBS_FOLDER = "shards", "jobs"
FEATURES, TABLE_KEYS, TABLE, BAD = ".features.npy", ".keys.npy", ".rows.jsonl", ".bad.jsonl"
CODES, SCALES = ".codes.npy", ".scales.npy"
DTYPES = {"fp32": "float32", "fp16": "float16"}
"""As they are named on the command line."""
MODALITIES_BY_CODE = (Modality.RGB, Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT)
"""A row's modality is its place here."""
KNOWN_SPREAD = 1e-3
"""Rows whose lengths differ by more are divided by them in a search, and have no coarse form."""
UNKNOWN_KEY = 0
KEYS = np.dtype(
    [("id", "<i8"), ("offset", "<i8"), ("path", "<u8"), ("person", "<u8"), ("content", "<u8"), ("modality", "u1")]
)
"""id: counted from the shard's first. offset: of the row's line in the table. path, person, content: `key_of` the path,
the person and the file's digest, UNKNOWN_KEY = unknown.
"""


def key_of(text: str) -> int:
    """Return a number of 64 bits for a text; equal numbers are nearly always equal texts, never UNKNOWN_KEY."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def among(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return (n,) which of the keys (n,) are wanted (m,)."""
    # By a table, which it would take for few wanted ones, numpy 2.0 fails on keys above 63 bits.
    return np.isin(keys, wanted, kind="sort")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """An image of a gallery."""

    path: str
    """Absolute."""
    modality: Modality = Modality.RGB
    person: Person | None = None
    """None = unknown."""
    camera: str = ""
    clothes: str = ""
    file: Signature = field(default_factory=list)
    """What it was encoded from."""
    number: int = -1
    """Its id, counted from the shard's first; stored for unreadable images only, the others have it in their keys."""
    reason: str = ""
    """Why it cannot be read, empty = it can."""

    def line(self) -> str:
        """Return the row as a line of a table. A name that is not UTF-8 is written as escapes."""
        plain = {name: value for name, value in asdict(self).items() if value not in ("", None, -1)}
        return json.dumps(plain | {"modality": self.modality.value}) + "\n"

    @classmethod
    def read(cls, line: str | bytes) -> IndexRow:
        """Return the row of a line. Raises ValueError, TypeError or KeyError for what is none."""
        values = json.loads(line)
        row = cls(**{**values, "modality": Modality(values["modality"])})
        texts = (row.path, row.camera, row.clothes, row.reason)
        if not all(isinstance(text, str) for text in texts) or [*map(type, row.file)] != SIGNED:
            raise ValueError("it is no row of a gallery")
        if isinstance(row.person, bool) or not isinstance(row.person, int | str | None) or type(row.number) is not int:
            raise ValueError("it is no row of a gallery")
        return row


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard, as the state names it."""

    name: str
    """Of its files without their ends, relative to the index."""
    rows: int
    bad: int
    """Images that could not be read."""
    first_id: int
    spread: float
    """Rows have a length within 1 +- so much; larger than any for rows of other lengths."""
    files: Mapping[str, tuple[int, str]]
    """End of each file's name -> its bytes, and their SHA-256."""
    job: str = ""
    """The sharded job that made it, empty = none."""
    part: int = 0
    """Its part of that job."""
    coarse: tuple[float, float] | None = None
    """How far the coarse form is from a row at most, and its largest length; None = there is none."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ShardEntry:
        """Return the entry of its JSON form. Raises ValueError, TypeError or KeyError for what is none."""
        files = {end: (int(size), str(digest)) for end, (size, digest) in values["files"].items()}
        coarse = values.get("coarse")
        if coarse is not None:
            error, longest = coarse
            coarse = (float(error), float(longest))
        return cls(**{**values, "files": files, "coarse": coarse})


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexState:
    """Everything that index.json holds."""

    model: Mapping[str, Any]
    """What features depend on besides the files; the index answers for no other model."""
    statistics: Mapping[str, Any]
    """By which images are normalised, for readers: the model says it too."""
    dimension: int
    """D."""
    dtype: str
    """float32 or float16."""
    instruction: Mapping[str, Any]
    """What the model was told with every image; see solver.gallery.telling."""
    location: str = ""
    """The one folder, manifest or test split that it keeps, empty = whatever was added."""
    shards: tuple[ShardEntry, ...] = ()
    removed: tuple[str, int, str] | None = None
    """Name of the file of removed ids, their number, SHA-256; None = none are."""
    next_id: int = 0
    """Of the next image: ids count up for the life of the index."""
    jobs: tuple[str, ...] = ()
    """Keys of the sharded jobs that were added."""
    generation: int = 0
    """Counts the changes."""

    @property
    def rows(self) -> int:
        """Rows in the shards, removed ones among them."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bad(self) -> int:
        """Images that could not be read, removed ones among them."""
        return sum(shard.bad for shard in self.shards)

    def next(self, **changes: Any) -> IndexState:
        """Return the state after a change."""
        return replace(self, **changes, generation=self.generation + 1)

    def document(self) -> dict[str, Any]:
        """Return the content of index.json."""
        content = {
            "kind": KIND,
            "format": FORMAT,
            **asdict(self),
            "counts": {"rows": self.rows, "removed": self.removed[1] if self.removed else 0, "unreadable": self.bad},
        }
        return {**content, CHECKSUM: checksum_of(content)}


def read_state(folder: Path) -> IndexState:
    """Return the state of an index. Raises UserError for a folder that is none and for a damaged index.json."""
    file = folder / INDEX_FILE
    require_index(folder)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore it from a copy or make the index anew") from error
    with foreign_file(f"{file} is damaged", "restore it from a copy, or make the index anew"):
        content = parse_json(text)
        if content["kind"] != KIND:
            raise ValueError("it is no gallery index")
        if content["format"] != FORMAT:
            raise UserError(
                f"{file} is of format {content['format']}, and this version reads format {FORMAT}; make the index anew"
            )
        if content.pop(CHECKSUM) != checksum_of(content):
            raise ValueError("its content is not what was written")
        for name in ("kind", "format", "counts"):
            content.pop(name)
        shards = tuple(ShardEntry.read(shard) for shard in content["shards"])
        removed = None if content["removed"] is None else tuple(content["removed"])
        return IndexState(**{**content, "shards": shards, "removed": removed, "jobs": tuple(content["jobs"])})
