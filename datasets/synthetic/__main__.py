"""Command line: python -m datasets.synthetic --layout market1501,prcc --root data/synthetic."""

from __future__ import annotations

import argparse
import time

from datasets.synthetic.arguments import (
    DEFAULT_IDENTITIES,
    LAYOUTS,
    MEMBERS,
    OF_MEMBERS,
    OTHER_IDENTITIES,
    parse_image_size,
    parse_layouts,
    parse_members,
)
from utils.errors import run_script


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic", description="Render the embedded benchmark in an official layout."
    )
    parser.add_argument(
        "--layout",
        action="append",
        metavar="NAME[,NAME...]",
        help=f"layouts to write, may be given again: {', '.join(LAYOUTS)} (default: orbench)",
    )
    parser.add_argument(
        "--root", required=True, help="folder below which the layout's own folder (ORBench/, ...) is made"
    )
    parser.add_argument(
        "--members",
        default="",
        metavar="NAME[,NAME...]",
        help=f"of {OF_MEMBERS}, render these only: {', '.join(MEMBERS)}; ltcc's numbers hold 152 persons, without it "
        "the others hold more (default: all)",
    )
    several = ", ".join(f"{count} for {layout}" for layout, count in DEFAULT_IDENTITIES.items())
    parser.add_argument(
        "--identities",
        type=int,
        default=None,
        metavar="N",
        help=f"training identities (default: {several}, {OTHER_IDENTITIES} for the others)",
    )
    parser.add_argument(
        "--test-identities", type=int, default=100, metavar="M", help="test identities (default: %(default)s)"
    )
    _add_pictures(parser)
    return parser


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="population and pictures (default: %(default)s)"
    )
    parser.add_argument("--image-size", default="128x64", metavar="HxW", help="pixels (default: %(default)s)")
    parser.add_argument(
        "--images-per-modality",
        type=int,
        default=4,
        metavar="K",
        help="per person, and per outfit where clothes change (default: %(default)s)",
    )
    parser.add_argument(
        "--outfits",
        type=int,
        default=3,
        metavar="K",
        help="outfits per person where clothes change (default: %(default)s)",
    )
    parser.add_argument(
        "--shared-persons",
        type=int,
        default=0,
        metavar="N",
        help="let the first N training identities be test identities too, an overlap on purpose (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=None,
        metavar="P",
        help="default: one per core; the files are the same for any number",
    )


def main() -> None:
    """Render each layout, or say that the same rendering is there already."""
    options = _parser().parse_args()
    size = parse_image_size(options.image_size)
    layouts = parse_layouts(options.layout or ["orbench"])
    members = parse_members(options.members)
    # Imported after parsing: --help must not wait for NumPy and Pillow.
    from datasets.synthetic.render import render

    for layout in layouts:
        start = time.perf_counter()
        identities = (
            DEFAULT_IDENTITIES.get(layout, OTHER_IDENTITIES) if options.identities is None else options.identities
        )
        result = render(
            layout,
            options.root,
            identities=identities,
            test_identities=options.test_identities,
            seed=options.seed,
            image_size=size,
            images_per_modality=options.images_per_modality,
            outfits=options.outfits,
            shared_persons=options.shared_persons,
            members=members if layout == OF_MEMBERS or OF_MEMBERS not in layouts else (),
            processes=options.processes,
        )
        if result.reused:
            print(
                f"{result.folder}: the same {result.pictures} pictures are there already (digest {result.digest}), "
                "nothing to do"
            )
            continue
        seconds = time.perf_counter() - start
        print(
            f"{result.folder}: {result.pictures} pictures in {seconds:.1f} s ({result.pictures / seconds:.0f} a "
            f"second), digest {result.digest}"
        )


if __name__ == "__main__":
    run_script(main)
