"""Images to search in: a folder's, a manifest's, those of a test split, and what a model is told with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.vocabulary import BOX, Modality
from datasets.formats.manifest_rows import ManifestRow, read_manifest
from datasets.loading.suffixes import IMAGE_SUFFIXES, is_image_name, passed_over, unread_notes
from datasets.releases.manifest import Listed, row_image
from datasets.structures import WARNING, Benchmark, EvalSplit, Person, QueryList, Source
from solver.search.named import is_manifest, require_gallery
from solver.search.queries import Query
from utils.errors import UserError
from utils.folder_names import FolderNames


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images to search in."""

    name: str
    """For readers."""
    location: str
    """Folder or data set, for the cache's name."""
    sources: tuple[Source, ...]
    """The images."""
    person_ids: tuple[Person, ...] | None = None
    """One per image, as users know them; None = unknown."""
    cameras: tuple[str, ...] = ()
    """One per image, an empty one = unknown; empty = all are."""
    protocol: str = "no exclusion"
    """How it is searched, in words, the similarity aside."""
    note: str = ""
    """What a reader of the result must know about it, empty = nothing."""
    listed: bool = False
    """The modality of each image is listed; otherwise whoever searches says what the images are."""
    instructions: tuple[Source | None, ...] = ()
    """What a model that follows instructions is told with each image; empty = nothing."""
    told: str = "none"
    """The same in one word, for readers: see solver.search.arguments.GALLERY_INSTRUCTIONS; `lists` = as a test list
    says."""
    items: tuple[int, ...] = ()
    """Of the gallery of a test split: the index of each image in it."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images."""
        present = {source.modality for source in self.sources}
        return tuple(modality for modality in Modality if modality in present)

    def instructed(self, asked: str, queries: Sequence[Query] = ()) -> Gallery:
        """Return the gallery with other instructions: `none`; `same`, the one instruction of all queries; `crop`, each
        image's own upper body. Raises UserError for `same` where the queries are told nothing or different things.
        """
        if asked == "none":
            return replace(self, instructions=(), told=asked)
        if asked == "crop":
            own = [Source(modality=Modality.RGB, value=source.value, crop=BOX) for source in self.sources]
            return replace(self, instructions=tuple(own), told=asked)
        given = {query.instruction for query in queries}
        told = given.pop() if len(given) == 1 else None
        if told is None:
            what = "are told different things" if given else "are told nothing"
            raise UserError(
                f"--gallery-instruction same: the queries {what}; give all of them one instruction, or "
                "--gallery-instruction none or crop"
            )
        return replace(self, instructions=(told,) * len(self.sources), told=asked)

    def person(self, index: int) -> Person | None:
        """Return the person of an image, None = unknown."""
        return None if self.person_ids is None else self.person_ids[index]

    def read_as(self, modality: Modality) -> Gallery:
        """Return the gallery as images of that modality: those of it where modalities are listed, else all of them.

        Raises UserError when none is listed as such.
        """
        if not self.listed:
            return replace(self, sources=tuple(replace(source, modality=modality) for source in self.sources))
        kept = [index for index, source in enumerate(self.sources) if source.modality is modality]
        if not kept:
            listed = " and ".join(entry.name for entry in self.modalities)
            raise UserError(
                f"{self.name} lists {listed} images, and {modality.name} ones are searched; give --gallery-modality"
            )
        return replace(
            self,
            sources=tuple(self.sources[index] for index in kept),
            person_ids=None if self.person_ids is None else tuple(self.person_ids[index] for index in kept),
            cameras=tuple(self.cameras[index] for index in kept) if self.cameras else (),
        )


def split_gallery(
    benchmark: Benchmark, split: EvalSplit, modality: Modality | None = None, listed: QueryList | None = None
) -> Gallery:
    """Return the gallery of an evaluation split, identities known.

    modality: only its images of this modality, None = all. listed: only the part that this list is searched in, None =
    the galleries of all lists together. A split without gallery images of the modality offers its queries of it:
    SYSU-MM01's infrared test images are all queries. Raises UserError when it has none of these either.
    """
    title, location = f"{benchmark.name} {split.name}", f"{benchmark.name} {split.name} {benchmark.fingerprint}"
    protocol = _protocol(split, listed)
    items: Sequence[int] = range(len(split.gallery))
    if listed is not None and listed.gallery is not None:
        items, title, location = listed.gallery, f"{benchmark.name} {listed.name}", f"{location} {listed.name}"
    chosen = [item for item in items if modality in (None, split.gallery[item].modality)]
    kept = [(split.gallery[item], split.person(split.gallery_ids[item])) for item in chosen]
    note = ""
    if not kept and modality is not None:
        kept = _queries_of(split, modality)
        title = f"{title} queries"
        note = (
            f"{benchmark.name} has no gallery of {modality.name} images: its {len(kept)} {modality.name} test queries "
            "were searched; --gallery FOLDER searches others"
        )
    elif kept and len(kept) < len(items):
        title = f"{title}, {kept[0][0].modality.name} images"
    if not kept:
        wanted = "" if modality is None else f"{modality.name} "
        raise UserError(
            f"{benchmark.name} has no {wanted}test images to search; give --gallery FOLDER or another "
            "--gallery-modality"
        )
    return Gallery(
        name=title,
        location=location,
        sources=tuple(source for source, _ in kept),
        person_ids=tuple(person for _, person in kept),
        cameras=tuple(_camera(split.gallery_camera_ids[item]) for item in chosen) if split.gallery_camera_ids else (),
        protocol=protocol,
        note=note,
        instructions=tuple(split.gallery_instructions[item] for item in chosen) if split.gallery_instructions else (),
        told="lists" if chosen and split.gallery_instructions else "none",
        items=tuple(chosen),
    )


def _camera(number: int) -> str:
    return "" if number < 0 else str(number)


def _protocol(split: EvalSplit, listed: QueryList | None) -> str:
    if all(queries.gallery is None and queries.exclusion_rule == "none" for queries in split.query_lists):
        return split.protocol
    if listed is None:
        return f"no exclusion, the galleries of all protocols together ({split.protocol})"
    rule = listed.exclusion_rule
    excluded = "" if rule == "none" else f"; an evaluation leaves images out by the rule {rule!r}, a search does not"
    return f"the gallery of {listed.name}{excluded}"


def _queries_of(split: EvalSplit, modality: Modality) -> list[tuple[Source, Person]]:
    """Every distinct single-image query of a modality with its person."""
    persons = {
        entry[0]: split.person(person)
        for queries in split.query_lists
        if queries.combination == (modality,)
        for entry, person in zip(queries.entries, queries.person_ids)
    }
    return list(persons.items())


SEARCHED_SPLITS = ("gallery", "test")


def own_gallery(place: str | Path) -> Gallery:
    """Return the gallery of a folder of images, or of a manifest (.csv, .jsonl), which says who they show.

    Raises UserError for neither, and for whatever is wrong in it.
    """
    return manifest_gallery(Path(place)) if is_manifest(place) else folder_gallery(place)


def manifest_gallery(path: Path) -> Gallery:
    """Return the images of a manifest, sorted by path, with their persons: those that a test searches (split gallery or
    test) where the manifest has any, else all. Raises UserError naming file and line.
    """
    rows = [row for row in read_manifest(path) if row.path]
    searched = [row for row in rows if row.split in SEARCHED_SPLITS] or rows
    listed, names = Listed(), FolderNames()
    images: dict[str, tuple[Source, ManifestRow]] = {}
    for row in searched:
        source = row_image(row, path.parent, names)
        listed.add(source.value, row)
        images.setdefault(source.value, (source, row))
    if not images:
        raise UserError(f"{path}: lists no image; give rows a path")
    kept = [images[value] for value in sorted(images)]
    return Gallery(
        name=f"manifest {path}",
        location=os.path.abspath(path),
        sources=tuple(source for source, _ in kept),
        person_ids=tuple(row.person for _, row in kept),
        cameras=tuple(row.camera for _, row in kept),
        listed=True,
    )


def folder_gallery(folder: str | Path) -> Gallery:
    """Return every image below `folder`, as RGB, sorted by path, in linked folders too; hidden files are left out, and
    a note says which images cannot be read. A folder that is reached twice is read once.

    Raises UserError when there is no such folder or no image in it.
    """
    require_gallery(folder)
    root = os.fspath(folder)
    images: list[str] = []
    left_out: list[str] = []
    visited: set[str] = set()
    for folder_path, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        # A link may lead back to a folder that holds it, or to one beside it.
        place = os.path.realpath(folder_path)
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        # Sorted, so that the same of two ways is gone every time.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images += [os.path.join(folder_path, name) for name in names if is_image_name(name)]
        left_out += [os.path.join(folder_path, name) for name in passed_over(sorted(names))]
    notes = [note.removeprefix(WARNING) for note in unread_notes(left_out)]
    if not images:
        raise UserError(
            f"gallery folder {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of images"
            + "".join(f"; {note}" for note in notes[:1])
        )
    images.sort(key=lambda path: path.split(os.sep))
    return Gallery(
        name=f"folder {root}",
        location=os.path.abspath(root),
        sources=tuple(Source(modality=Modality.RGB, value=path, record="gallery folder") for path in images),
        note="; ".join(notes),
    )


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"cannot list the gallery folder {error.filename}: {error.strerror}") from error
