"""What is searched for: a query from files and a text, from a JSON file of queries, or from the test lists."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.vocabulary import Combination, Modality, combination_name
from datasets.modalities import MODALITIES
from datasets.structures import EvalSplit, Person, QueryList, Source
from utils.errors import UserError, nearest
from utils.files import read_json
from utils.folder_names import FolderNames
from utils.texts import one_form

PART_KEYS: dict[str, Modality] = {**{modality.value: modality for modality in Modality}, "image": Modality.RGB}
"""Keys of a query's parts; `image` is another word for `rgb`."""
PERSON_KEY = "person_id"
INSTRUCTION_KEYS = ("instruction", "instruction_image")
"""Keys of what the model is told with a query: a text, or a picture of clothes."""
VISIBLE_INFRARED = frozenset({Modality.RGB, Modality.NIR})


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query."""

    name: str
    """Where it came from."""
    sources: tuple[Source, ...]
    """Its parts, one of each modality."""
    person_id: Person | None = None
    """None = unknown."""
    instruction: Source | None = None
    """What a model that follows instructions is told with it: a text, or a picture of clothes."""
    also: tuple[Source, ...] = ()
    """Further pictures of the person, over which its feature is a mean; see solver.search.session.averaged."""

    @property
    def combination(self) -> Combination:
        """The modalities of the parts, in their order."""
        return tuple(source.modality for source in self.sources)

    @property
    def task(self) -> str:
        """The combination's name, for instance NIR+TEXT."""
        return combination_name(self.combination)

    @property
    def files(self) -> list[str]:
        """Image files that it consists of."""
        pictures = (source for source in (*self.sources, *self.also) if MODALITIES[source.modality].is_image)
        return list(dict.fromkeys(source.value for source in pictures if source.picture is None))


def query_from_parts(
    parts: Mapping[str, str], name: str, folder: str | Path = "", person_id: Person | None = None
) -> Query:
    """Return the query of `parts`: key of PART_KEYS -> image file or text.

    folder: what relative image paths are relative to. Raises UserError for no part, for rgb beside another part, and
    for an image file that does not exist.
    """
    check_mix([PART_KEYS[key] for key in parts], name)
    found: dict[Modality, Source] = {}
    for key, value in parts.items():
        modality = PART_KEYS[key]
        if MODALITIES[modality].is_image:
            value = image_file(os.path.join(folder, value), f"{name}: no such image", f"(key {key})")
        found[modality] = Source(modality=modality, value=value, record=f"{name}, key {key}")
    return Query(
        name=name, sources=tuple(found[modality] for modality in Modality if modality in found), person_id=person_id
    )


def instruction_from(text: str | None, image: str, where: str, folder: str | Path = "") -> Source | None:
    """Return what a model is told with a query, None = nothing.

    text: None = none. image: picture of clothes, relative to `folder`, empty = none. Raises UserError for both
    together, and for a picture that is not there.
    """
    if text is not None and image:
        raise UserError(f"{where}: the query is told a text and a picture; give one of both")
    if image:
        path = image_file(os.path.join(folder, image), f"{where}: no such image", "(instruction)")
        return Source(modality=Modality.RGB, value=path, record=where)
    return None if text is None else Source(modality=Modality.TEXT, value=text, record=where)


def image_file(path: str, missing: str, key: str) -> str:
    """Return the file of a path, whatever the form of the letters in its name. Raises UserError where there is none:
    `missing: path key`.
    """
    file = path if os.path.isfile(path) else FolderNames().find(path)
    if file is None or not os.path.isfile(file):
        raise UserError(f"{missing}: {path} {key}; correct the path")
    return file


def instructed(query: Query, instruction: Source | None) -> Query:
    """Return the query with an instruction. Raises UserError for one that consists of no image, or of several parts."""
    if instruction is None:
        return query
    if len(query.sources) > 1 or not MODALITIES[query.sources[0].modality].is_image:
        raise UserError(
            f"{query.name}: an instruction is told with one image, not with {query.task}; leave the instruction out, a "
            "text is compared with the images as it is"
        )
    return replace(query, instruction=instruction)


def check_mix(modalities: Sequence[Modality], name: str) -> None:
    """Raise UserError for parts that no query can have together: none, one twice, rgb beside another."""
    if not modalities:
        raise UserError(f"{name}: nothing to search for; give rgb alone or any of nir, cp, sk, text")
    if len(set(modalities)) < len(modalities):
        raise UserError(f"{name}: rgb and image are the same thing; give one of them")
    if Modality.RGB in modalities and len(modalities) > 1:
        others = ", ".join(modality.value for modality in modalities if modality is not Modality.RGB)
        raise UserError(
            f"{name}: rgb cannot be mixed with {others}: a photograph is searched for alone; give rgb alone, or leave "
            "it out"
        )


def read_queries(path: str | Path) -> tuple[Query, ...]:
    """Read a JSON list of objects with the keys of PART_KEYS, an optional person_id and one of INSTRUCTION_KEYS;
    entries count from 0.

    Relative image paths are relative to the file. Raises UserError naming entry and key.
    """
    content = read_json(path, "a list of queries")
    if not isinstance(content, list) or not content:
        raise UserError(
            f'{path}: must be a list with at least one query, for instance [{{"nir": "a.jpg", "text": "a red coat"}}]'
        )
    return tuple(
        _read_entry(entry, f"{Path(path).name} entry {index}", Path(path).parent) for index, entry in enumerate(content)
    )


def _read_entry(entry: Any, where: str, folder: Path) -> Query:
    valid = [*PART_KEYS, PERSON_KEY, *INSTRUCTION_KEYS]
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be an object with keys out of {', '.join(valid)}")
    for key, value in entry.items():
        if key not in valid:
            raise UserError(f"{where}: unknown key {key!r}, {nearest(key, valid)}")
        if key == PERSON_KEY:
            if isinstance(value, bool) or not isinstance(value, int | str | None):
                raise UserError(f"{where}: key {key} = {value!r}: must be a person's number or name")
        elif not isinstance(value, str):
            what = "a text" if key in ("text", "instruction") else "an image path"
            raise UserError(f"{where}: key {key} = {value!r}: must be {what}")
    parts = {key: value for key, value in entry.items() if key in PART_KEYS}
    person = entry.get(PERSON_KEY)
    query = query_from_parts(parts, where, folder, one_form(person) if isinstance(person, str) else person)
    text, picture = entry.get("instruction"), entry.get("instruction_image", "")
    return instructed(query, instruction_from(text, picture, where, folder))


def check_encodable(queries: Sequence[Query], modalities: Sequence[Modality]) -> None:
    """Raise UserError for a query with a part that a model of these modalities does not encode."""
    for query in queries:
        unknown = [part.name for part in query.combination if part not in modalities]
        if unknown:
            known = " and ".join(modality.name for modality in modalities)
            raise UserError(
                f"{query.name}: this model encodes {known} only, not {', '.join(unknown)}; give one "
                f"{known.replace(' and ', ' or ')} image, or use a model of another family"
            )


def choose_modality(
    asked: str, queries: Sequence[Query], encoded: Collection[Modality], present: Collection[Modality] = ()
) -> Modality:
    """Return the modality of the gallery's images: what is asked for; where there are visible and infrared images only,
    the other one than the query's; else, and without a query, RGB.

    encoded: modalities that the model encodes. present: those of the data set's test images, empty = unknown. Raises
    UserError when the queries search different ones.
    """
    if asked:
        return Modality(asked)
    if not queries:
        return Modality.RGB
    return searched_modality(queries) if VISIBLE_INFRARED in (set(encoded), set(present)) else Modality.RGB


def searched_modality(queries: Sequence[Query]) -> Modality:
    """Return what visible and infrared queries are searched in: NIR for an RGB image, RGB for everything else.

    Raises UserError when that differs between the queries.
    """
    found = {Modality.NIR if query.combination == (Modality.RGB,) else Modality.RGB for query in queries}
    if len(found) > 1:
        raise UserError(
            "some queries are RGB images, which search infrared ones, and others search RGB images; give "
            "--gallery-modality rgb or nir, or search for them one after the other"
        )
    return found.pop()


def find_list(split: EvalSplit, task: str) -> QueryList:
    """Return the query list of that name. Raises UserError with what there is."""
    lists = {queries.name.upper(): queries for queries in split.query_lists}
    if task.strip().upper() not in lists:
        names = [queries.name for queries in split.query_lists]
        raise UserError(f"--task {task}: no such query list in split {split.name}: {nearest(task.strip(), names)}")
    return lists[task.strip().upper()]


def find_lists(split: EvalSplit, tasks: Sequence[str]) -> tuple[QueryList, ...]:
    """Return several query lists, each once. Raises UserError as `find_list`, and for lists that search different
    galleries.
    """
    lists = tuple({listed.name: listed for listed in (find_list(split, task) for task in tasks)}.values())
    other = next((listed for listed in lists if listed.gallery != lists[0].gallery), None)
    if other is not None:
        raise UserError(
            f"--task {other.name}: searches another gallery than {lists[0].name}; give it in a command of its own"
        )
    return lists


def listed_query(split: EvalSplit, found: QueryList, index: int, told: bool = False) -> Query:
    """Return entry `index`, from 0, of a query list of a split. told: with the instruction that the list gives it.

    Raises UserError with what there is.
    """
    if not 0 <= index < len(found.entries):
        raise UserError(f"--index {index}: the list {found.name} has the entries 0 to {len(found.entries) - 1}")
    return Query(
        name=f"{found.name} entry {index}",
        sources=found.entries[index],
        person_id=split.person(found.person_ids[index]),
        instruction=found.instructions[index] if told and found.instructions else None,
    )
