"""Command line: python -m datasets.cache DIR. Shows a cache of decoded images or encoded galleries, and empties it."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from utils.cache_folders import BYTES_PER_GB, cache_entries, clear, is_cache, tidy
from utils.errors import UserError, run_script

EXAMPLES = """examples:
  python -m datasets.cache /data/cache                          # what data.cache_dir holds
  python -m datasets.cache runs/orbench/gallery_cache --clear   # everything in it
  python -m datasets.cache /data/cache --older-than 30          # what was not used for 30 days
  python -m datasets.cache /data/cache --largest 20             # what was used longest ago, until 20 GB are left
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.cache",
        description="Show and empty a cache: a folder of data.cache_dir, or gallery_cache/ of a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of the cache")
    parser.add_argument("--clear", action="store_true", help="remove every entry")
    parser.add_argument(
        "--older-than", type=float, default=0.0, metavar="DAYS", help="remove what was not used so long"
    )
    parser.add_argument(
        "--largest", type=float, default=0.0, metavar="GB", help="remove the oldest until so much is left"
    )
    return parser


def main() -> None:
    """Remove what is asked for and print what is there."""
    options = _parser().parse_args()
    folder = Path(options.folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give data.cache_dir, or gallery_cache/ of a run")
    if not all(value >= 0 for value in (options.older_than, options.largest)):
        raise UserError("--older-than and --largest must be 0 or larger")
    if not is_cache(folder):
        raise UserError(f"{folder} holds other files too, so it is no cache of ours; give the folder of a cache")
    gone = clear(folder) if options.clear else tidy(folder, gigabytes=options.largest, days=options.older_than)
    left = cache_entries(folder)
    for entry in left:
        print(f"{entry.name}  {entry.size / BYTES_PER_GB:9.3f} GB  used {datetime.fromtimestamp(entry.used):%Y-%m-%d}")
    print(
        f"{folder}: {len(left)} entries, {sum(entry.size for entry in left) / BYTES_PER_GB:.3f} GB; removed "
        f"{len(gone)}, {sum(entry.size for entry in gone) / BYTES_PER_GB:.3f} GB"
    )


if __name__ == "__main__":
    run_script(main)
