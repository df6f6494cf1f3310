"""Search a gallery by any mix of infrared image, colour-pencil drawing, sketch and text, or by an RGB image alone.

Which parts a query may have depends on the model: the visible-infrared family takes one RGB or one infrared image.
"""

from __future__ import annotations

from solver.search.arguments import SearchOptions, parse_options
from utils.errors import run_script
from utils.threads import configure_threads

EXAMPLES = """examples:
  python infer.py --run runs/quickstart --task NIR+TEXT --index 3
  python infer.py --run runs/orbench --nir a.jpg --sk b.png --text "a man in a red coat" --top-k 10 --output result.png
  python infer.py --run runs/orbench --queries queries.json --gallery photos.csv --export features.npz
  python infer.py --run runs/irm --image a.jpg --instruction "ignore the clothes" --gallery photos/
  python infer.py --run runs/irm --image a.jpg --instruction-image coat.jpg
  python infer.py --run runs/irm --image a.jpg --attention maps.png
  python infer.py --run runs/orbench --gallery photos/ --export gallery.npz
  python infer.py --run runs/orbench --calibrate
  python infer.py --run runs/llcm --rgb a.jpg --gallery-modality nir
  python infer.py --run runs/orbench --gallery photos/ --serve
"""


def parse_arguments() -> SearchOptions:
    """Parse the command line. Exits with code 2 for a wrong one."""
    return parse_options(__doc__ or "", EXAMPLES)


def main() -> None:
    """Run the script."""
    options = parse_arguments()
    configure_threads()
    from solver.run_names import begin
    from solver.search.named import check_named

    check_named(options)
    model = options.run, options.config, options.checkpoint
    written = options.attention or options.output or options.export
    begin("infer.py", *model, written, options.device, options.overrides)
    if options.serve:
        from serve.command import run_serve

        print(run_serve(options))
        return
    # torch is imported from here on: what was given is known to be right, the threads' waiting policy is set.
    from solver.commands.attention import run_attention
    from solver.commands.calibrate import run_calibration
    from solver.commands.search import run_search

    asked = run_calibration if options.calibrate else run_attention if options.attention else run_search
    print(asked(options))


if __name__ == "__main__":
    run_script(main)
