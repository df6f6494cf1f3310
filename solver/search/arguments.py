"""The command line of infer.py. Imports no torch: --help and a wrong command line are answered at once."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from solver.gallery.place import is_index

PARTS = {"nir": "infrared image", "cp": "colour-pencil drawing", "sk": "sketch", "text": "description"}
GALLERY_INSTRUCTIONS = ("none", "same", "crop")
"""What a gallery can be told."""
LOCAL_HOST, PORT = "127.0.0.1", 7860
"""Where the page is served unless another place is named: for this machine alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What infer.py is asked for."""

    run: str = ""
    config: str = ""
    checkpoint: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Of one query: key -> file or text."""
    instruction: str | None = None
    """Text that the model is told with every query, None = none."""
    instruction_image: str = ""
    """Picture of clothes that it is told instead, empty = none."""
    queries: str = ""
    """JSON file of queries."""
    tasks: tuple[str, ...] = ()
    """Lists of the test set that search one gallery; `index` counts in each."""
    """List of the test set that queries are taken from."""
    index: Sequence[int] = ()
    """Its entries, empty = the first."""
    gallery_index: str = ""
    """Folder of the gallery index that is searched, empty = none."""
    threshold: float | None = None
    """tau: an image of the right person is right from this similarity of annotations on, None = always."""
    attention: str = ""
    """Picture of where the model looks, empty = none."""
    calibrate: str = ""
    """Set thresholds on this split instead of searching: val, or test; empty = search."""
    gallery: str = ""
    """Folder or manifest, empty = the test gallery of the run's data set."""
    gallery_modality: str = ""
    """rgb or nir, empty = see `solver.search.queries.choose_modality`."""
    gallery_instruction: str = ""
    """One of GALLERY_INSTRUCTIONS; empty = what the list of `tasks` tells its gallery, else nothing."""
    gallery_cache: str = ""
    """Folder of encoded galleries, empty = gallery_cache/ beside the checkpoint."""
    error_rate: float | None = None
    """False alarm rate that answers are given by, None = for each query the lowest that there is a threshold for."""
    nprobe: int = 0
    """Lists of an index's codes that are looked through for candidates, 0 = the search is exact."""
    top_k: int = 10
    output: str = ""
    """Name of the picture, empty = retrieval.png beside the checkpoint."""
    export: str = ""
    """File of the features, empty = none; without an output nothing else is written then, and without a query they are
    those of the gallery."""
    serve: bool = False
    """Serve the search page instead of searching."""
    host: str = LOCAL_HOST
    """Address that the page is served at."""
    port: int = PORT
    """0 = one that is free."""
    device: str = "auto"
    overrides: Sequence[str] = ()


def index_value(text: str) -> tuple[int, ...] | str:
    """Return the numbers of `0,7,12`, or the folder of a gallery index. Raises ValueError for half a list of numbers
    that is no folder.
    """
    if re.match(r"\d+(,|$)", text) and (re.fullmatch(r"[\d,]+", text) or not os.path.isdir(text)):
        return tuple(int(part) for part in text.split(","))
    return text


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which model searches for what."""
    model, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    model.add_argument("--run", metavar="DIR", help="run directory made by train.py")
    which = "a configuration of ours, or the flat configs.yaml of a released checkpoint"
    model.add_argument("--config", metavar="FILE", help=which)
    files = "with --run: default best, else last; with --config: a file"
    add("--checkpoint", metavar="best|last|FILE", help=files)
    for name, what in PARTS.items():
        kind = "TEXT" if name == "text" else "FILE"
        add(f"--{name}", default=None, metavar=kind, help=f"part of the query: {what}")
    alone = "the query is this RGB image; it cannot be mixed with other parts"
    add("--rgb", "--image", default=None, metavar="FILE", help=alone)
    told = "what the model is told with the image of the query, for models that follow instructions"
    add("--instruction", default=None, metavar="TEXT", help=told)
    add("--instruction-image", metavar="FILE", help="the same as a picture of clothes")
    looks = (
        "write where the model looks in the image of --rgb or --nir under the instructions of six tasks; --instruction "
        "and --text replace the default description, --instruction-image the image's own clothes"
    )
    add("--attention", metavar="MAPS.png", help=looks)
    add("--queries", metavar="FILE.json", help="list of objects with these keys and an optional person_id")
    add(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="NAME",
        help="take the query from this list of the test set, for instance NIR+TEXT; again for queries of further "
        "lists, which search the same gallery",
    )
    entry = (
        "folder of a gallery index, which is searched: see python -m solver.gallery; or, with --task, the entry of the "
        "list, from 0 (default: 0), or several: 0,7,12"
    )
    add("--index", type=index_value, action="append", default=[], metavar="DIR|N,N", help=entry)
    right = (
        "with --task, for lists with annotations: the right person is right (green) where the annotation resembles the "
        "query's by at least TAU, else yellow"
    )
    add("--threshold", type=float, default=None, metavar="TAU", help=right)


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add what sets thresholds instead of searching."""
    way = parser.add_mutually_exclusive_group()
    fitted = "search nothing: set thresholds at stated error rates on validation persons, beside the checkpoint"
    way.add_argument("--calibrate", action="store_const", const="val", help=fitted)
    there = "the same on the test set, and stamped: rates that are measured there are then no longer honest"
    way.add_argument("--calibrate-test", action="store_const", const="test", dest="calibrate", help=there)


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add what serves the search page."""
    add = parser.add_argument
    page = "serve the search page and its HTTP API until Ctrl-C; --gallery or --index is what it searches"
    add("--serve", action="store_true", default=False, help=page)
    host = f"with --serve: address to serve at (default: {LOCAL_HOST}, which this machine alone reaches)"
    add("--host", default=None, metavar="ADDRESS", help=host)
    add("--port", type=int, default=None, metavar="N", help=f"with --serve: default {PORT}; 0 = one that is free")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add what says where is searched, and what is written."""
    add = parser.add_argument
    add(
        "--gallery",
        metavar="DIR|FILE",
        help="folder of images, manifest (.csv, .jsonl) or gallery index; default the test gallery of the data set",
    )
    modality = (
        "search images of this modality; default: those that the list of --task searches; the other one for "
        "visible-infrared models and data; else rgb"
    )
    add("--gallery-modality", choices=("rgb", "nir"), help=modality)
    told = (
        "what the model is told with each gallery image: nothing, the query's instruction, or the image's own clothes; "
        "default: what the list of --task says, else nothing"
    )
    add("--gallery-instruction", choices=GALLERY_INSTRUCTIONS, help=told)
    cache = "folder of encoded galleries; default gallery_cache/ beside the checkpoint"
    add("--gallery-cache", metavar="DIR", help=cache)
    lists = (
        "with an index that has codes (python -m solver.gallery approximate): look through the N nearest of their "
        "lists for candidates, which are scored exactly; default: search everything, exactly"
    )
    add("--nprobe", type=int, default=0, metavar="N", help=lists)
    rate = (
        "answer by the thresholds at this rate of false alarms, for instance 0.1; default: the lowest that --calibrate "
        "has set"
    )
    add("--error-rate", type=float, default=None, metavar="RATE", help=rate)
    add("--top-k", type=int, default=10, metavar="K", help="results of each query (default: 10)")
    add("--output", metavar="NAME.png", help="the picture; NAME.json and NAME.html are written beside it")
    add("--export", metavar="FILE.npz", help="write the features of queries and gallery; without --output nothing else")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    overrides = "options that replace those of the configuration"
    add("overrides", nargs="*", default=[], metavar="key.sub=value", help=overrides)


def _page_meanings(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse what has no meaning beside --serve, and an address without it."""
    if not parsed.serve:
        if parsed.host is not None or parsed.port is not None:
            parser.error("--host and --port say where --serve serves the page; give it, or leave them out")
    elif parsed.port is not None and not 0 <= parsed.port <= 65535:
        parser.error(f"--port {parsed.port}: must be from 0 to 65535")
    else:
        given = {"a query": parsed.parts, "--index N": parsed.index, "--calibrate": parsed.calibrate}
        given |= {f"--{name}": getattr(parsed, name) for name in ("queries", "output", "export", "attention")}
        given["--task"] = parsed.tasks
        names = ("instruction", "threshold", "error_rate")
        given |= {f"--{name.replace('_', '-')}": getattr(parsed, name) is not None for name in names}
        given |= {"--instruction-image": parsed.instruction_image}
        others = [name for name, value in given.items() if value]
        if others:
            parser.error(f"--serve takes its queries from the page; leave out {', '.join(others)}")
    parsed.host = LOCAL_HOST if parsed.host is None else parsed.host
    parsed.port = PORT if parsed.port is None else parsed.port


def _index_meanings(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Tell entries of a list from the folder of a gallery index, which both --index and --gallery may name."""
    entries = [value for value in parsed.index if isinstance(value, tuple)]
    folders = [value for value in parsed.index if isinstance(value, str)]
    if parsed.gallery and is_index(parsed.gallery):
        folders.append(parsed.gallery)
        parsed.gallery = ""
    if len(entries) > 1 or len(folders) > 1 or (folders and parsed.gallery):
        parser.error("--index: give one list of entries, and one gallery: an index, or --gallery DIR")
    parsed.index = entries[0] if entries else ()
    parsed.gallery_index = folders[0] if folders else ""


def _ranks(parsed: argparse.Namespace) -> bool:
    return bool(parsed.output or not parsed.export)


def parse_options(description: str, examples: str) -> SearchOptions:
    """Parse the command line. Exits with code 2 for a wrong one."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=style, argument_default=""
    )
    add_query_options(parser)
    add_calibration_options(parser)
    add_search_options(parser)
    add_page_options(parser)
    parsed = parser.parse_intermixed_args()
    given = {name: vars(parsed).pop(name) for name in (*PARTS, "rgb")}
    _index_meanings(parser, parsed)
    parsed.parts = {name: value for name, value in given.items() if value is not None}
    if parsed.nprobe < 0 or (parsed.nprobe and not parsed.gallery_index):
        parser.error("--nprobe N needs the folder of an index, --index DIR, and must be 1 or more")
    if parsed.error_rate is not None and (parsed.calibrate or parsed.attention or not _ranks(parsed)):
        parser.error("--error-rate answers a search; leave it out where nothing is searched for")
    parsed.tasks = tuple(parsed.tasks)
    kinds = sum(map(bool, (parsed.parts, parsed.queries, parsed.tasks)))
    _page_meanings(parser, parsed)
    if parsed.calibrate and (
        kinds or parsed.export or parsed.output or parsed.gallery or parsed.gallery_index or parsed.attention
    ):
        parser.error("--calibrate searches nothing; leave out the query, --gallery, --output, --export and --attention")
    if kinds > 1 or not (kinds or parsed.export or parsed.calibrate or parsed.serve):
        parser.error(
            "give one kind of query: parts (--nir --cp --sk --text, or --rgb alone), --queries FILE.json, or --task "
            "NAME --index N; or none with --export FILE.npz, for the features of the gallery"
        )
    if parsed.config and not parsed.checkpoint:
        parser.error("--config needs --checkpoint FILE")
    return SearchOptions(**vars(parsed))
