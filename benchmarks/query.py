"""Time from a query to its ranked list, against an encoded gallery that is loaded, and the time to load it.

python benchmarks/query.py                     # model of quickstart.yaml, 512 dimensions, 20,000 images
python benchmarks/query.py --setting vitb16    # sizes of the real model
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.vocabulary import Modality  # noqa: E402
from datasets.build import build_source_reader  # noqa: E402
from datasets.structures import Source  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from solver.evaluation.evaluator import EvaluationSpec  # noqa: E402
from solver.gallery.signatures import sign  # noqa: E402
from solver.search.gallery import Gallery  # noqa: E402
from solver.search.gallery_cache import GalleryEncoder  # noqa: E402
from solver.search.queries import Query, query_from_parts  # noqa: E402
from solver.search.ranked import encode_queries, search  # noqa: E402
from solver.search.searched import EncodedGallery  # noqa: E402
from utils.device import describe_device, resolve_device  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.threads import plan_threads  # noqa: E402

IDENTITY = {"benchmark": 1}
CAPTION = (
    "a young man with short hair in a red coat over a white shirt, blue jeans and brown shoes, carrying a black "
    "backpack"
)
CONFIGS = {"tiny": ("quickstart.yaml", ("model.embed_dim=512",)), "vitb16": ("orbench.yaml", ())}


def make_gallery(folder: Path, images: int, dim: int, encoder: GalleryEncoder) -> tuple[Gallery, np.ndarray]:
    """Write so many small files and keep random features (images, dim) for them; return the gallery and these."""
    sources = []
    for number in range(images):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(number.to_bytes(8, "little"))
        sources.append(Source(modality=Modality.RGB, value=str(path)))
    features = np.random.default_rng(0).standard_normal((images, dim), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gallery = Gallery(name="made up", location=str(folder), sources=tuple(sources))
    encoder.keep(gallery, features, [sign(source.value) for source in sources], {})
    return gallery, features


def make_query(folder: Path, parts: str, height: int, width: int) -> Query:
    """Return a query of such parts, its images written as JPEG."""
    values = {}
    for kind in parts.split("+"):
        values[kind] = CAPTION
        if kind != "text":
            values[kind] = str(folder / f"{kind}.jpg")
            Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
                values[kind]
            )
    return query_from_parts(values, parts)


def median_ms(device: torch.device, call: Callable[[], Any], repeats: int) -> float:
    """Return the median milliseconds of a call after two calls that do not count."""
    seconds = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def plain_ranking(query: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The plain way: the gallery normalised for every query, all similarities sorted."""
    normed = features / np.linalg.norm(features, axis=1, keepdims=True)
    return np.argsort(-(normed @ (query / np.linalg.norm(query))), kind="stable")[:10]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=sorted(CONFIGS), default="tiny")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--parts", nargs="+", default=["nir", "text", "nir+text", "nir+cp+sk+text"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Print the time of loading, ranking and whole queries."""
    options = parse_arguments()
    device = resolve_device(options.device)
    file, overrides = CONFIGS[options.setting]
    config = load_experiment(
        Path(__file__).resolve().parent.parent / "configs" / "reid5o" / file, [*overrides, "model.init=random"]
    )
    torch.set_num_threads(plan_threads(device.type, 0).threads)
    torch.manual_seed(0)
    model = build_model(config.family, config.model, 1)
    initialise(config.family, model, config.model)
    model.to(device).eval()
    reader = build_source_reader(config.data, config.model)
    spec = EvaluationSpec(config=config.eval)
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        encoder = GalleryEncoder(model, reader, spec, device, identity=IDENTITY, cache=cache)
        gallery, features = make_gallery(Path(name), options.images, model.embed_dim, encoder)
        load = median_ms(device, lambda: encoder.encode(gallery), 3)
        encoded: EncodedGallery = encoder.encode(gallery)
        assert encoded.reused, "the gallery was kept"
        print(
            f"{options.setting}, {describe_device(device)}, {torch.get_num_threads()} threads; gallery "
            f"{options.images:,} x {model.embed_dim}"
        )
        print(f"{'load the encoded gallery, its files checked':<48} {load:9.1f} ms")
        for parts in options.parts:
            query = make_query(Path(name), parts, *config.model.image_size)
            ready = encode_queries(model, [query], reader, spec, device)
            ours = median_ms(device, lambda: search(ready, encoded, 10), options.repeats)
            plain = median_ms(device, lambda: plain_ranking(ready.features[0].cpu().numpy(), features), options.repeats)
            whole = median_ms(
                device,
                lambda: search(encode_queries(model, [query], reader, spec, device), encoded, 10),
                options.repeats,
            )
            print(f"query {parts:<42} {whole:9.1f} ms, of which ranking {ours:.1f} ms (plain ranking {plain:.1f} ms)")


if __name__ == "__main__":
    run_script(main)
