"""The command line of solver.gallery. Imports no torch: --help and a wrong command line are answered at once."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from utils.errors import UserError

EXAMPLES = """examples:
  python -m solver.gallery add --index photos.index --run runs/orbench photos/         # folders, files or a manifest
  python -m solver.gallery add --index photos.index --run runs/orbench --manifest photos.csv --dtype fp16
  torchrun --nproc-per-node 4 -m -- solver.gallery add --index photos.index --run runs/orbench --manifest a.csv \
      --shards 64                                    # without the --, torchrun takes --run for an option of its own
  python -m solver.gallery remove --index photos.index photos/p0/0.jpg                 # files or folders; --missing
  python -m solver.gallery compact --index photos.index                                # give removed rows' place back
  python -m solver.gallery info --index photos.index --check                           # files that are changed or gone
"""
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")
"""What begins like an option of the configuration and is no file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryOptions:
    """What solver.gallery is asked for."""

    command: str
    """add, remove, compact, approximate or info."""
    index: str
    """Folder of the index."""
    photos: Sequence[str] = ()
    """Files, folders, manifests."""
    overrides: Sequence[str] = ()
    """Options that replace those of the run's configuration."""
    run: str = ""
    config: str = ""
    checkpoint: str = ""
    device: str = "auto"
    manifest: str = ""
    modality: str = "rgb"
    """Of images of files and folders."""
    dtype: str = ""
    """fp32 or fp16, empty = that of the index, for a new one fp32."""
    instruction: str | None = None
    """Text that the model is told with every image, None = none."""
    instruction_image: str = ""
    gallery_instruction: str = "none"
    """`crop`: with each image its own upper body."""
    shards: int = 0
    """Parts of a sharded job, 0 = none: one process adds."""
    part: tuple[int, int] | None = None
    """(worker from 0, workers); None = what the launcher says."""
    engine: str = "processes"
    """Who starts the workers of a sharded job: `processes`, whoever starts this command several times, or `ray`."""
    missing: bool = False
    """Remove images whose files are gone."""
    lists: int = 0
    """Coarse centres of codes, 0 = by the number of images."""
    code_bytes: int = 64
    """Of one image's code."""
    check: bool = False
    """Compare checksums, and every image's file."""


def worker(text: str) -> tuple[int, int]:
    """Return (I, N) of `I/N`: worker I of N, from 0. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N, worker I of N from 0; give for instance 0/4")
    return int(match[1]), int(match[2])


def worker_place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (worker from 0, workers) as torchrun or a Slurm job array says them, else (0, 1). Raises UserError for
    what is none.
    """

    def number(name: str, least: int) -> int:
        """Return a variable as a number."""
        text = environment[name]
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise UserError(
                f"{name}={text!r} of the environment: must be a whole number from {least} on; unset it, or give "
                "--part I/N"
            )
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return number("RANK", 0), number("WORLD_SIZE", 1)
    if "SLURM_ARRAY_TASK_ID" in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
        first, step = (
            number(f"SLURM_ARRAY_TASK_{name}", low) if environment.get(f"SLURM_ARRAY_TASK_{name}") else low
            for name, low in (("MIN", 0), ("STEP", 1))
        )
        return (number("SLURM_ARRAY_TASK_ID", 0) - first) // step, number("SLURM_ARRAY_TASK_COUNT", 1)
    return 0, 1


def _parsers() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m solver.gallery",
        description="A gallery that lasts: encoded images in a folder, which searches use by infer.py --index DIR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="add|remove|compact|approximate|info")
    texts = {
        "add": "encode images that are not in the index, or whose files have changed",
        "remove": "take images out of it; the images themselves stay",
        "compact": "write the index anew without what was removed",
        "approximate": "make codes for infer.py --nprobe, which names candidates by faiss and scores them exactly",
        "info": "say what is in it",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for one in made.values():
        one.add_argument("--index", required=True, metavar="DIR", help="folder of the index; add makes it")
    _add_options(made["add"].add_argument, made["add"].add_mutually_exclusive_group)
    what = "files, folders or manifests (.csv, .jsonl), and options key.sub=value of the run's configuration"
    made["add"].add_argument("photos", nargs="*", default=[], metavar="photos", help=what)
    made["remove"].add_argument("photos", nargs="*", default=[], metavar="photos", help="files, or folders of them")
    made["remove"].add_argument("--missing", action="store_true", help="every image whose file is gone")
    rows = "coarse centres (default: four times the root of the number of images)"
    made["approximate"].add_argument("--lists", type=int, default=0, metavar="N", help=rows)
    size = "bytes of an image's code, a divisor of the dimension (default: 64)"
    made["approximate"].add_argument("--code-bytes", type=int, default=64, metavar="N", help=size)
    whole = "compare checksums, and every image's file; exit code 1 when one is changed or gone"
    made["info"].add_argument("--check", action="store_true", help=whole)
    return parser


def _add_options(add: Callable[..., object], group: Callable[..., argparse._MutuallyExclusiveGroup]) -> None:
    model = group(required=True)
    model.add_argument("--run", default="", metavar="DIR", help="run directory made by train.py")
    model.add_argument("--config", default="", metavar="FILE", help="a configuration, with --checkpoint FILE")
    add("--checkpoint", default="", metavar="best|last|FILE", help="with --run: default best, else last")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--manifest", default="", metavar="FILE", help="images with their persons and cameras (.csv, .jsonl)")
    add("--modality", choices=("rgb", "nir"), default="rgb", help="what files and folders show (default: rgb)")
    kept = "how a new index keeps features: fp16 takes half the place (default: fp32)"
    add("--dtype", choices=("fp32", "fp16"), default="", help=kept)
    told = "what the model is told with every image, for models that follow instructions"
    add("--instruction", default=None, metavar="TEXT", help=told)
    add("--instruction-image", default="", metavar="FILE", help="the same as a picture of clothes")
    crop = "crop: with each image its own clothes (default: none)"
    add("--gallery-instruction", choices=("none", "crop"), default="none", help=crop)
    parts = (
        "cut the images into N parts, which several processes encode and which are added together: started by torchrun "
        "or as a Slurm job array, and started again after a stop"
    )
    add("--shards", type=int, default=0, metavar="N", help=parts)
    add("--part", type=worker, default=None, metavar="I/N", help="with --shards: this is worker I of N, from 0")

    engine = (
        "ray: with --shards, let Ray Data spread the parts over this machine, or those of RAY_ADDRESS (default: "
        "processes, which you start)"
    )
    add("--engine", choices=("processes", "ray"), default="processes", help=engine)


def parse_arguments(arguments: Sequence[str] | None = None) -> GalleryOptions:
    """Parse the command line. Exits with code 2 for a wrong one."""
    parser = _parsers()
    given = vars(parser.parse_args(arguments))
    words = given.pop("photos", [])
    overrides = [word for word in words if OVERRIDE.match(word) and not os.path.exists(word)]
    photos = [word for word in words if word not in overrides]
    options = GalleryOptions(**given, photos=photos, overrides=overrides)
    if options.command == "add":
        if not (photos or options.manifest):
            parser.error("nothing to add: give files, folders or --manifest FILE")
        if options.config and not options.checkpoint:
            parser.error("--config needs --checkpoint FILE")
        if options.instruction is not None and options.instruction_image:
            parser.error("--instruction and --instruction-image: give one of both")
        if options.gallery_instruction == "crop" and (options.instruction is not None or options.instruction_image):
            parser.error("--gallery-instruction crop tells each image its own clothes; leave the instruction out")
        if options.shards < 0 or (options.part and not options.shards):
            parser.error("--shards must be 1 or more, and --part needs it")
        if options.engine == "ray" and (not options.shards or options.part):
            parser.error("--engine ray needs --shards, and shares the parts out itself: leave --part out")
    if options.lists < 0 or options.code_bytes < 1:
        parser.error("--lists must be 0 or more, --code-bytes 1 or more")
    if options.command == "remove" and overrides:
        parser.error(f"{overrides[0]}: no such file; remove takes no options of a configuration")
    if options.command == "remove" and not (photos or options.missing):
        parser.error("nothing to remove: give files or folders, or --missing")
    return options
