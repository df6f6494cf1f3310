"""Command line: python -m datasets.split --source OWN.csv --output SPLIT.csv. Identity-disjoint train, val and test of
own data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.errors import UserError, run_script

EXAMPLES = """what is made:
  persons are shuffled by the seed; round(test x persons) go to test, round(val x persons) to val, the rest to train
  test: up to --queries-per-person images of each person and of each modality become queries, each with a gallery image
  of another camera where cameras are given; the other visible images are the gallery; persons for whom that is
  impossible (one image, one camera) are distractors in the gallery and are listed
  val: leave-one-out (every image looks for the others)
  captions of test and val images are written as text queries, too, unless --no-caption-queries

examples:
  python -m datasets.split --source photos --output photos.csv
  python -m datasets.split --source own.csv --output split.jsonl --val 0.1 --test 0.3 --queries-per-person 2 --seed 1
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.split",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Divide a manifest, or a folder per person, into train, val and test of different persons.",
    )
    parser.add_argument(
        "--source", required=True, metavar="PATH", help="manifest (.csv, .jsonl) or folder with a folder per person"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="manifest to write, .csv or .jsonl")
    parser.add_argument(
        "--val", type=float, default=0.1, metavar="F", help="share of persons for validation (default: %(default)s)"
    )
    parser.add_argument(
        "--test", type=float, default=0.5, metavar="F", help="share of persons for the test (default: %(default)s)"
    )
    parser.add_argument(
        "--queries-per-person", type=int, default=1, metavar="N", help="per modality (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument("--no-caption-queries", action="store_true", help="do not make text queries of captions")
    parser.add_argument("--resplit", action="store_true", help="the source has a split: replace it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def main() -> None:
    """Read, divide, write, and print what came out."""
    options = _parser().parse_args()
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise UserError(f"{output} exists already; give --overwrite or another --output")
    # Imported after parsing: --help must not wait.
    from datasets.formats.listing import ImageTree
    from datasets.formats.manifest_rows import write_manifest
    from datasets.formats.manifest_split import SplitOptions, describe, divide, moved, source_rows
    from datasets.releases.folders import folder_notes

    source = Path(options.source)
    rows = source_rows(source, resplit=options.resplit)
    result = divide(
        rows,
        SplitOptions(
            val=options.val,
            test=options.test,
            queries_per_person=options.queries_per_person,
            seed=options.seed,
            caption_queries=not options.no_caption_queries,
        ),
    )
    folder = source if source.is_dir() else source.parent
    write_manifest(output, [moved(row, folder, output.parent) for row in result.rows])
    print(describe(result))
    for note in folder_notes(ImageTree(source)) if source.is_dir() else ():
        print(note)
    print(
        f"written: {output} ({len(result.rows)} rows); next: python -m datasets.check --dataset manifest --root "
        f"{output}"
    )


if __name__ == "__main__":
    run_script(main)
