"""AnyReID for programs: load a trained model, embed queries of any mix, search a gallery, measure a run.

    model = anyreid.load("runs/quickstart")
    features = model.embed(nir=["a.jpg"], text=["a red coat"])
    hits = anyreid.Gallery("photos.index").search(features, top_k=10)

Import it with the checkout on the path (run from its folder, or PYTHONPATH=/path/to/the/checkout): there is no package
to install. The checkout's folders utils, configs, datasets, model and solver are packages of these very names, so that
`datasets` shadows Hugging Face's there, and yours that are called so; a program that needs both asks for one of them in
another process. See docs/python-api.md.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def _check_packages() -> None:
    """Raise ImportError where the name of one of our packages is somebody else's."""
    here = Path(__file__).resolve().parent
    for name in ("utils", "configs", "datasets", "model", "solver"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin).resolve() if found is not None and found.origin else None
        if place is None or here not in place.parents:
            raise ImportError(
                f"anyreid needs its own package {name!r} ({here / name}), and Python finds "
                f"{place or 'none'}: put {here} first on the path, and import no other {name!r} in this process"
            )


_check_packages()

from utils.threads import configure_threads

# Before torch is imported.
configure_threads()

from solver.api import Evaluation, Features, Gallery, Hit, Hits, Model, average, evaluate, load
from utils.errors import UserError

__all__ = [
    "Evaluation",
    "Features",
    "Gallery",
    "Hit",
    "Hits",
    "Model",
    "UserError",
    "average",
    "evaluate",
    "load",
]
