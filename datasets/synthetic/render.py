"""Renders a layout to disk, in any number of processes, with the same bytes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import PIL

from datasets.synthetic.arguments import LATER_ARGUMENTS, MEMBERS, OF_MEMBERS, RenderArguments
from datasets.synthetic.nuisance import RENDERER_VERSION
from datasets.synthetic.shots import FORMATS, Plan, Shot, encode_shot
from utils.errors import UserError
from utils.files import (
    atomic_path,
    fingerprint,
    read_json,
    sha256_of,
    user_errors_of_writing,
    write_json,
    write_text,
)
from utils.locks import locked_folder
from utils.progress import progress_bar
from utils.threads import available_cores

MANIFEST = "manifest.json"
MARKER = ".rendering.json"
CHUNK = 64
Task = tuple[list[Shot], int, tuple[int, int], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """What `render` did."""

    folder: Path
    """The layout's root."""
    pictures: int
    """Number of picture files."""
    digest: str
    """Of everything that was written."""
    reused: bool
    """It was there already, the same and complete."""


def render(
    layout: str,
    root: str | os.PathLike[str],
    *,
    identities: int = 1200,
    test_identities: int = 100,
    seed: int = 0,
    image_size: tuple[int, int] = (128, 64),
    images_per_modality: int = 4,
    shared_persons: int = 0,
    outfits: int = 3,
    members: tuple[str, ...] = (),
    processes: int | None = None,
) -> Rendered:
    """Render `layout` below `root`, or reuse what the same arguments left there.

    identities: training persons; test_identities: test persons, disjoint from them but for the first `shared_persons`
    of both; image_size: (height, width); outfits: per person, in layouts where people change clothes; members: of the
    layout omnireid, empty = all.
    The bytes depend on these, the renderer's version and the versions of NumPy and Pillow, not on `processes` (default:
    all cores). Raises UserError for wrong arguments, and for a folder that holds anything else: nothing of it is
    changed.
    """
    arguments = RenderArguments(
        layout, identities, test_identities, seed, image_size, images_per_modality, shared_persons, outfits, members
    )
    if processes is not None and processes < 1:
        raise UserError(f"--processes is {processes}: give at least 1")
    module = arguments.layout_module()
    folder = Path(root) / module.FOLDER
    header = _header(arguments)
    present = _present(folder, header)
    if present is not None:
        return Rendered(folder, present["pictures"], str(present.get("digest", "")), True)
    plan = module.plan(arguments)
    with user_errors_of_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder, "wait for it, or choose another --root"):
        return _rendered(plan, arguments, folder, header, processes or available_cores())


def _rendered(plan: Plan, arguments: RenderArguments, folder: Path, header: dict[str, Any], processes: int) -> Rendered:
    """Write every file into a folder that this process holds."""
    present = _present(folder, header)
    if present is not None:
        # Another process was faster.
        return Rendered(folder, present["pictures"], str(present.get("digest", "")), True)
    write_json(folder / MARKER, header)
    digest = _write_shots(plan.shots, arguments, folder, processes)
    digest = _write_files(plan, folder, digest)
    counts = {"persons": len({shot.person for shot in plan.shots}), "pictures": len(plan.shots), "digest": digest}
    checksums = {name: sha256_of(folder / name) for name in (*plan.annotations, *plan.texts, *plan.binaries)}
    write_json(folder / MANIFEST, {**header, **counts, "annotations": checksums})
    (folder / MARKER).unlink()
    return Rendered(folder, len(plan.shots), digest, False)


def _write_files(plan: Plan, folder: Path, digest: str) -> str:
    """Write everything that is not a picture; return a digest of it and of the pictures' digest."""
    for name, value in plan.annotations.items():
        write_json(folder / name, value)
    for name, text in plan.texts.items():
        write_text(folder / name, text)
    for name, data in plan.binaries.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
    parts: list[Any] = [digest, plan.annotations]
    if plan.texts or plan.binaries:
        parts += [plan.texts, {name: hashlib.sha256(data).hexdigest() for name, data in plan.binaries.items()}]
    return fingerprint(parts)


def _header(arguments: RenderArguments) -> dict[str, Any]:
    """Return everything that decides the bytes."""
    header = {**dataclasses.asdict(arguments), "image_size": list(arguments.image_size)}
    # Named in full, so that a tree of before there was a choice, whose lists of real1 were others, is not taken for it.
    header["members"] = ",".join(arguments.members or MEMBERS) if arguments.layout == OF_MEMBERS else ""
    return {**header, "renderer": RENDERER_VERSION, "numpy": numpy.__version__, "pillow": PIL.__version__}


def _present(folder: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a complete rendering with the same header, None when there is room for one. Raises
    UserError else.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{parent} is a file: choose another --root")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    remedy = "choose another --root, or delete that folder to have it rendered anew"
    complete = (folder / MANIFEST).exists()
    if not complete and not (folder / MARKER).exists():
        raise UserError(f"{folder} is not empty and was not rendered by this command: {remedy}")
    found = read_json(folder / (MANIFEST if complete else MARKER), "manifest of a rendered benchmark")
    differing = [
        name
        for name in header
        if not isinstance(found, dict) or found.get(name, LATER_ARGUMENTS.get(name)) != header[name]
    ]
    if differing:
        name = differing[0]
        value = found.get(name, LATER_ARGUMENTS.get(name)) if isinstance(found, dict) else found
        raise UserError(
            f"{folder} was rendered with {name} = {value!r}, now it is {header[name]!r}{_others(differing[1:])}: "
            f"{remedy}"
        )
    if not complete:
        return None
    pictures = sum(1 for path in folder.rglob("*") if path.suffix in FORMATS)
    if pictures != found.get("pictures"):
        raise UserError(
            f"{folder} holds {pictures} pictures where its manifest counts {found.get('pictures')}: {remedy}"
        )
    for name, checksum in found.get("annotations", {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            raise UserError(f"{folder / name} is missing or was changed since it was rendered: {remedy}")
    return found


def _others(names: list[str]) -> str:
    return f" ({', '.join(names)} too)" if names else ""


def _write_shots(shots: Iterable[Shot], arguments: RenderArguments, folder: Path, processes: int) -> str:
    """Draw and write every picture; return a digest of paths and bytes, in the order of the plan."""
    shots = list(shots)
    for parent in sorted({(folder / shot.path).parent for shot in shots}):
        parent.mkdir(parents=True, exist_ok=True)
    tasks = [
        (shots[start : start + CHUNK], arguments.seed, arguments.image_size, str(folder))
        for start in range(0, len(shots), CHUNK)
    ]
    digest = hashlib.sha256()
    with progress_bar(None, len(shots), f"rendering {arguments.layout}", "images") as bar:
        for written in _run(tasks, min(processes, len(tasks))):
            for name, checksum in written:
                digest.update(f"{name} {checksum}\n".encode())
            bar.update(len(written))
    return digest.hexdigest()


def _run(tasks: list[Task], processes: int) -> Iterator[list[tuple[str, str]]]:
    if processes == 1:
        yield from map(_write_chunk, tasks)
        return
    # Spawned, so that the outcome does not depend on what this process has imported or started.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(_write_chunk, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_chunk(task: Task) -> list[tuple[str, str]]:
    """Write some pictures; return (relative path, SHA-256) of each."""
    shots, seed, size, folder = task
    written = []
    for shot in shots:
        data = encode_shot(shot, seed, size)
        target = Path(folder) / shot.path
        try:
            target.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error.strerror}; make room and leave to write there, or choose another --root"
            ) from error
        written.append((shot.path, hashlib.sha256(data).hexdigest()))
    return written
