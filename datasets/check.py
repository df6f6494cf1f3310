"""Command line: python -m datasets.check --dataset market1501 --root DIR. Looks for what would spoil a result, before
training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, run_script
from utils.threads import available_cores

EXAMPLES = """exit code: 0 clean (warnings are possible), 1 a defect, 2 the data cannot be read at all
defects: missing or unreadable images; persons or images in train and in test; images of train that are in test byte
  for byte, or in a data set given with --against, or in two joined ones; a picture of your own under two persons;
  queries whose person is not in the gallery; a protocol in which no query has a valid match
warnings: counts that differ from the published ones (rendered and partial sets are legitimate); queries whose matches
  are all dropped by a rule or are the query itself; persons of train without one of the modalities; missing or empty
  captions; a gallery of one person; records listed twice; byte copies of queries in the gallery, or within a part; a
  picture or caption of two persons; images that a viewer turns or that are transparent; validation persons who are in
  test; data sets that share images by origin; a folder that looks like another data set

examples:
  python -m datasets.check --dataset market1501 --root /data
  python -m datasets.check --dataset manifest --root own.csv --json report.json
  python -m datasets.check --dataset icfg-pedes --root /data --against msmt17:/data
  python -m datasets.check --dataset ltcc --root /data --no-images --write-datalists lists/ltcc
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Check a data set: counts, files, persons, matches, captions, modalities, overlap.",
    )
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="as data.dataset; manifest or folders for your own data"
    )
    parser.add_argument(
        "--root",
        required=True,
        type=Path,
        metavar="DIR",
        help="as data.root: folder that holds the data set, or the manifest",
    )
    parser.add_argument("--variant", default="", help="as data.variant")
    parser.add_argument("--trial", type=int, default=1, choices=range(1, 11), metavar="1..10", help="as data.trial")
    parser.add_argument("--no-merge-val", action="store_true", help="as data.merge_val=false")
    parser.add_argument("--members", nargs="+", default=(), metavar="NAME", help="as data.members")
    parser.add_argument("--test-only", action="store_true", help="the training part may be absent")
    parser.add_argument("--protocols", nargs="+", default=(), metavar="NAME", help="default: all that the parts allow")
    parser.add_argument(
        "--exclude", default="", metavar="FILE", help="as data.exclude: check what is left without these images"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="NAME:DIR",
        help="other data sets that are to be used together with this one",
    )
    parser.add_argument("--no-images", action="store_true", help="do not open the images: names and lists only")
    parser.add_argument(
        "--processes", type=int, default=available_cores(), metavar="P", help="that open images (default: one per core)"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        default="",
        const="-",
        metavar="FILE",
        help="write the report as JSON; without a file, or with -, print it instead of the tables",
    )
    parser.add_argument(
        "--write-datalists",
        default="",
        metavar="DIR",
        help="write the lists of OmniReID's authors; DIR becomes the `datalist` in the data set's folder below their "
        "data/",
    )
    return parser


def parse_against(values: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """Return (name, root) of each `NAME:DIR`. Raises UserError for another form."""
    found = []
    for value in values:
        name, colon, root = value.partition(":")
        if not (name and colon and root):
            raise UserError(f"--against {value!r}: write NAME:DIR, for instance msmt17:/data")
        found.append((name, Path(root)))
    return tuple(found)


def main() -> int:
    """Check, print, and return the exit code."""
    parsed = _parser().parse_args()
    against = parse_against(parsed.against)
    # Imported after parsing: --help must not wait for torch.
    from configs.schema.data import DataConfig
    from datasets.checks.report import render
    from datasets.checks.run import CheckOptions, run_check
    from datasets.structures import ReadOptions
    from utils.files import write_json

    # Absent files are counted and listed by the check instead of ending it at the first one.
    try:
        data = DataConfig(
            variant=parsed.variant,
            merge_val=not parsed.no_merge_val,
            trial=parsed.trial,
            members=tuple(parsed.members),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    reading = ReadOptions(data=data, check_files=False, need_train=not parsed.test_only)
    report, release = run_check(
        CheckOptions(
            dataset=parsed.dataset,
            root=parsed.root,
            reading=reading,
            protocols=tuple(parsed.protocols),
            open_images=not parsed.no_images,
            processes=parsed.processes,
            against=against,
            exclude=parsed.exclude,
        )
    )
    if parsed.json == "-":
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print(render(report))
    if parsed.json not in ("", "-"):
        write_json(parsed.json, report.to_json())
    if parsed.write_datalists:
        from datasets.formats.datalists import write_datalists

        for path in write_datalists(release, Path(parsed.write_datalists)):
            print(f"written: {path}", file=sys.stderr if parsed.json == "-" else sys.stdout)
    return report.exit_code


if __name__ == "__main__":
    run_script(main)
