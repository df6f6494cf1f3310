"""A few plain-coloured pictures in ORBench's official layout, for tests that need files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from configs.schema.data import DataConfig
from datasets.build import build_benchmark
from datasets.structures import Benchmark

KEYS = {1: ["NIR", "CP", "SK", "TEXT"], 2: ["NIR+TEXT", "TEXT+NIR", "CP+SK"], 3: ["NIR+CP+SK"], 4: ["TEXT+NIR+CP+SK"]}
FOLDERS = {"RGB": "vis", "NIR": "nir", "CP": "cp", "SK": "sk"}
WORDS = ("red coat", "green dress", "blue jeans", "white hat", "black bag", "yellow shirt", "brown shoes", "grey scarf")


def write_orbench(
    root: Path, identities: int = 4, test_identities: int = 2, images: int = 2, height: int = 32, width: int = 16
) -> Path:
    """Write identities x images records and the query lists of KEYS; return root. Every identity has colours of its
    own.
    """
    base = root / "ORBench"
    annotations, gallery = [], []
    queries: dict[str, list[list[object]]] = {key: [] for keys in KEYS.values() for key in keys}
    for person in range(identities + test_identities):
        folder, caption = f"{person + 11:04d}", f"a person with a {WORDS[person % len(WORDS)]}"
        for index in range(images):
            paths = {name: f"{short}/{folder}/{index}.jpg" for name, short in FOLDERS.items()}
            for number, path in enumerate(paths.values()):
                rng = np.random.default_rng((person, number))
                pixels = np.kron(rng.integers(0, 256, (4, 2, 3)), np.ones((height // 4, width // 2, 1))).astype(
                    np.uint8
                )
                (base / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(base / path)
            if person < identities:
                annotations.append({"id": person + 1, "file_path": paths["RGB"], "caption": caption, "split": "train"})
            else:
                gallery.append([person + 100, paths["RGB"]])
                items = paths | {"TEXT": caption}
                for key in queries:
                    queries[key].append([person + 100, *(items[name] for name in key.split("+"))])
    (base / "train_annos.json").write_text(json.dumps(annotations), encoding="utf-8")
    (base / "test_gallery_and_queries.json").write_text(
        json.dumps({"RGB_GALLERY": gallery, **queries}), encoding="utf-8"
    )
    return root


def load_orbench(
    root: Path, *, need_train: bool, val_fraction: float = 0.0, check_files: bool = True, exclude: str = ""
) -> Benchmark:
    """Read ORBench as a run does. val_fraction: above 0 = with the split `val`."""
    data = DataConfig(
        root=str(root),
        val_fraction=val_fraction,
        on_error="raise" if check_files else "skip",
        exclude=exclude,
    )
    return build_benchmark(data, select="val" if val_fraction else "last", need_train=need_train)
