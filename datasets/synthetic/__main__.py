"""Command line: python -m datasets.synthetic --layout orbench --root data/synthetic."""

from __future__ import annotations

import argparse
import time

from datasets.synthetic.arguments import LAYOUTS, parse_image_size
from utils.errors import run_script


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic", description="Render the embedded benchmark in an official layout.")
    parser.add_argument("--layout", default="orbench", help=f"layout to write: {', '.join(LAYOUTS)} (default: %(default)s)")
    parser.add_argument("--root", required=True, help="folder below which the layout's own folder (ORBench/, ...) is made")
    parser.add_argument("--identities", type=int, default=1200, metavar="N", help="training identities (default: %(default)s)")
    parser.add_argument("--test-identities", type=int, default=100, metavar="M", help="test identities (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="population and pictures (default: %(default)s)")
    parser.add_argument("--image-size", default="128x64", metavar="HxW", help="pixels (default: %(default)s)")
    parser.add_argument("--images-per-modality", type=int, default=4, metavar="K", help="per person (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=None, metavar="P", help="default: one per core; the files are the same for any number")
    return parser


def main() -> None:
    """Render, or say that the same rendering is there already."""
    options = _parser().parse_args()
    size = parse_image_size(options.image_size)
    # Imported after parsing: --help must not wait for NumPy and Pillow.
    from datasets.synthetic.render import render

    start = time.perf_counter()
    result = render(options.layout, options.root, identities=options.identities, test_identities=options.test_identities,
                    seed=options.seed, image_size=size, images_per_modality=options.images_per_modality, processes=options.processes)
    if result.reused:
        print(f"{result.folder}: the same {result.pictures} pictures are there already (digest {result.digest}), nothing to do")
        return
    seconds = time.perf_counter() - start
    print(f"{result.folder}: {result.pictures} pictures in {seconds:.1f} s ({result.pictures / seconds:.0f} a second), digest {result.digest}")


if __name__ == "__main__":
    run_script(main)
