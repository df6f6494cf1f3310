"""Command line: python -m model.official convert-vireid|convert-irm IN OUT. Published checkpoints become ours."""

from __future__ import annotations

import argparse

from model.weights.irm_released import convert_irm
from model.weights.vireid import convert_vireid
from utils.errors import run_script


def main() -> int:
    """Convert a published checkpoint into one of ours."""
    parser = argparse.ArgumentParser(
        prog="python -m model.official", description="Published checkpoints into safe ones of this project."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    vireid = commands.add_parser(
        "convert-vireid", help="IV-REID's pickled modules and AGW's state dicts; no code in the file is run"
    )
    irm = commands.add_parser(
        "convert-irm", help="checkpoints that Instruct-ReID's code has written; each entry is known"
    )
    for command in (vireid, irm):
        command.add_argument("source", metavar="IN", help="published checkpoint")
        command.add_argument(
            "target", metavar="OUT", help="checkpoint to write; its configuration is written beside it as .yaml"
        )
    irm.add_argument("--heads", type=int, help="attention heads of all towers (default: one for each 64 channels)")
    parsed = parser.parse_args()
    if parsed.command == "convert-irm":
        print(convert_irm(parsed.source, parsed.target, parsed.heads))
    else:
        print(convert_vireid(parsed.source, parsed.target))
    return 0


if __name__ == "__main__":
    run_script(main)
