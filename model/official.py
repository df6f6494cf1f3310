"""Command line: python -m model.official convert-vireid IN OUT. Released checkpoints of other codebases become ours."""

from __future__ import annotations

import argparse

from model.weights.vireid import convert_vireid
from utils.errors import run_script


def main() -> int:
    """Convert a published visible-infrared checkpoint into one of ours."""
    parser = argparse.ArgumentParser(
        prog="python -m model.official", description="Published checkpoints into safe ones of this project."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    vireid = commands.add_parser(
        "convert-vireid", help="IV-REID's pickled modules and AGW's state dicts; no code in the file is run"
    )
    vireid.add_argument("source", metavar="IN", help="published checkpoint")
    vireid.add_argument(
        "target", metavar="OUT", help="checkpoint to write; its configuration is written beside it as .yaml"
    )
    parsed = parser.parse_args()
    print(convert_vireid(parsed.source, parsed.target))
    return 0


if __name__ == "__main__":
    run_script(main)
