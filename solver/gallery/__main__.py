"""Command line: python -m solver.gallery add|remove|compact|approximate|info --index DIR. Keeps encoded images."""

from __future__ import annotations

from solver.gallery.arguments import parse_arguments
from utils.errors import run_script
from utils.threads import configure_threads


def main() -> int:
    """Run the command; print what was done."""
    options = parse_arguments()
    configure_threads()
    if options.command == "add":
        from solver.run_names import begin

        begin(
            "solver.gallery",
            options.run,
            options.config,
            options.checkpoint,
            options.index,
            options.device,
            options.overrides,
        )
    # torch is imported from here on: what was given is known to be right, the threads' waiting policy is set.
    from solver.gallery.commands import COMMANDS

    text, code = COMMANDS[options.command](options)
    print(text)
    return code


if __name__ == "__main__":
    run_script(main)
