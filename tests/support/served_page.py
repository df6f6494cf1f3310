"""A served page over a small model, and its answers computed by hand."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from datasets.loading.tokenizers import ClipTokenizer
from serve.application import application
from serve.guard import Guard
from serve.service import GalleryChoice, Service
from serve.work import Worker
from solver.commands.opening import ModelChoice
from solver.search.session import SearchSession

Opened = tuple[TestClient, Service, Worker]
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
"""CLIP's."""


def open_session(run: Path, cache: Path) -> SearchSession:
    choice = ModelChoice(run=str(run), device="cpu", overrides=("data.workers=0",))
    return SearchSession.open(choice, cache)


def png(seed: int, size: tuple[int, int] = (20, 40)) -> bytes:
    """A picture of a few coloured squares."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(stream, format="PNG")
    return stream.getvalue()


@contextmanager
def served(session: SearchSession, place: str = "", **choice: Any) -> Iterator[Opened]:
    """A client of the page over a gallery that is encoded."""
    worker = Worker()
    service = Service(session=session, choice=GalleryChoice(place=place, **choice), stopping=worker.stopping)
    try:
        worker.submit(service.prepare).result(120)
        with TestClient(Guard(application(service, worker), []), base_url="http://127.0.0.1:7860") as client:
            yield client, service, worker
    finally:
        worker.stop()


def files(**parts: bytes | Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Parts of a form that are files; several of one name."""
    found = []
    for part, content in parts.items():
        for number, one in enumerate([content] if isinstance(content, bytes) else content):
            found.append((part, (f"{part}{number}.png", one, "image/png")))
    return found


@functools.cache
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


class Oracle:
    """Features of one source at a time, read with PIL, normalised in NumPy, fused by the model's plain form."""

    def __init__(self, session: SearchSession) -> None:
        self.model = session.trained.model
        self.size = session.trained.config.model.image_size

    @torch.no_grad()
    def feature(self, parts: Mapping[str, Any]) -> np.ndarray:
        """(D,) float64 of length 1."""
        members = []
        for kind in ("rgb", "nir", "cp", "sk", "text"):
            if kind not in parts:
                continue
            value = parts[kind]
            if kind == "text":
                inputs = tokenizer()(str(value), 12)[None]
            else:
                picture = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value).convert("RGB")
                pixels = np.asarray(picture.resize(self.size[::-1], Image.Resampling.BILINEAR)) / 255
                inputs = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float()
            members.append(self.model.encode(kind, inputs))
        feature = members[0].pooled if len(members) == 1 else self.model.fuse(members)  # type: ignore[operator]
        values = feature[0].double().numpy()
        return values / np.linalg.norm(values)

    def ranking(self, query: np.ndarray, images: Sequence[Path]) -> tuple[list[int], np.ndarray]:
        """(places of images from best to worst, their cosines)."""
        cosines = np.array([float(query @ self.feature({"rgb": image})) for image in images])
        order = np.argsort(-cosines, kind="stable")
        return order.tolist(), cosines[order]
