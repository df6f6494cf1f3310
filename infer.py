"""Search a gallery by any mix of infrared image, colour-pencil drawing, sketch and text, or by an RGB image alone.

Which parts a query may have depends on the model: the visible-infrared family takes one RGB or one infrared image.
"""

from __future__ import annotations

import argparse

from utils.errors import run_script
from utils.threads import configure_threads

EXAMPLES = """examples:
  python infer.py --run runs/quickstart --task NIR+TEXT --index 3
  python infer.py --run runs/orbench --nir a.jpg --sk b.png --text "a man in a red coat" --top-k 10 --output result.png
  python infer.py --run runs/orbench --queries queries.json --gallery photos.csv --export features.npz
  python infer.py --run runs/orbench --gallery photos/ --export gallery.npz
  python infer.py --run runs/llcm --rgb a.jpg --gallery-modality nir
"""
PARTS = {"nir": "infrared image", "cp": "colour-pencil drawing", "sk": "sketch", "text": "description"}


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which model searches for what."""
    model, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    model.add_argument("--run", metavar="DIR", help="run directory made by train.py")
    model.add_argument("--config", metavar="FILE", help="ours, or the flat configs.yaml of a released checkpoint")
    files = "with --run: default best, else last; with --config: a file"
    add("--checkpoint", metavar="best|last|FILE", help=files)
    for name, what in PARTS.items():
        kind = "TEXT" if name == "text" else "FILE"
        add(f"--{name}", default=None, metavar=kind, help=f"part of the query: {what}")
    alone = "the query is this RGB image; it cannot be mixed with other parts"
    add("--rgb", "--image", default=None, metavar="FILE", help=alone)
    add("--queries", metavar="FILE.json", help="list of objects with these keys and an optional person_id")
    add("--task", metavar="NAME", help="take the query from this list of the test set, for instance NIR+TEXT")
    entry = "with --task: entry of the list, from 0 (default: 0)"
    add("--index", type=int, default=None, metavar="N", help=entry)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add what says where is searched, and what is written."""
    add = parser.add_argument
    add(
        "--gallery",
        metavar="DIR|FILE",
        help="folder of images, or manifest (.csv, .jsonl); default the test gallery of the data set",
    )
    modality = (
        "search images of this modality; default: those that the list of --task searches; the other one for "
        "visible-infrared models and data; else rgb"
    )
    add("--gallery-modality", choices=("rgb", "nir"), help=modality)
    cache = "folder of encoded galleries; default gallery_cache/ beside the checkpoint"
    add("--gallery-cache", metavar="DIR", help=cache)
    add("--top-k", type=int, default=10, metavar="K", help="results of each query (default: 10)")
    add("--output", metavar="NAME.png", help="the picture; NAME.json and NAME.html are written beside it")
    add("--export", metavar="FILE.npz", help="write the features of queries and gallery; without --output nothing else")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("overrides", nargs="*", default=[], metavar="key.sub=value", help="replace options of the configuration")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line into the fields of SearchOptions. Exits with code 2 for a wrong one."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=style, argument_default="")
    add_query_options(parser)
    add_search_options(parser)
    parsed = parser.parse_intermixed_args()
    given = {name: vars(parsed).pop(name) for name in (*PARTS, "rgb")}
    parsed.parts = {name: value for name, value in given.items() if value is not None}
    kinds = sum(map(bool, (parsed.parts, parsed.queries, parsed.task)))
    if kinds > 1 or not (kinds or parsed.export):
        parser.error(
            "give one kind of query: parts (--nir --cp --sk --text, or --rgb alone), --queries FILE.json, or --task "
            "NAME --index N; or none with --export FILE.npz, for the features of the gallery"
        )
    if parsed.config and not parsed.checkpoint:
        parser.error("--config needs --checkpoint FILE")
    return parsed


def main() -> None:
    """Run the script."""
    parsed = parse_arguments()
    configure_threads()
    from solver.run_names import begin
    from solver.search.named import check_named

    check_named(parsed.parts, parsed.queries, parsed.gallery)
    model = parsed.run, parsed.config, parsed.checkpoint
    begin("infer.py", *model, parsed.output or parsed.export, parsed.device, parsed.overrides)
    # torch is imported from here on: what was given is known to be right, the threads' waiting policy is set.
    from solver.commands.search import SearchOptions, run_search

    print(run_search(SearchOptions(**vars(parsed))))


if __name__ == "__main__":
    run_script(main)
