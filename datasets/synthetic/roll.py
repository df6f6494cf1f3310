"""Takes the pictures of a layout one after the other, so that no two are the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from configs.vocabulary import Modality
from datasets.synthetic.nuisance import HEAD_ZOOM
from datasets.synthetic.person import View
from datasets.synthetic.scenes import draw_view
from datasets.synthetic.shots import Shot
from utils.seeding import stream


class Roll:
    """The pictures of a layout in the making. shots: in the order in which they were taken."""

    def __init__(self, seed: int, site: str) -> None:
        """site: the place whose cameras take the pictures."""
        self.shots: list[Shot] = []
        self._seed, self._site = seed, site
        self._taken: Counter[tuple[int, int, Modality]] = Counter()
        self._paths: set[str] = set()

    def take(
        self,
        path: str,
        person: int,
        outfit: int,
        camera: int,
        modality: Modality = Modality.RGB,
        view: View | None = None,
    ) -> Shot:
        """Add a photograph and return it. A second one of the same person, outfit and modality differs in pose and
        view.
        """
        key = (person, outfit, modality)
        index = self._taken[key]
        if view is None:
            view = draw_view(stream(self._seed, self._site, "view", person, outfit, modality.value, index))
        shot = Shot(path, person, outfit, modality, index, view, self._site, camera, head=HEAD_ZOOM)
        assert path not in self._paths, f"{path} is planned twice"
        self._taken[key] += 1
        self._paths.add(path)
        self.shots.append(shot)
        return shot


def share_cameras(cameras: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """Return the cameras of `count` pictures of one person: as many different ones as there are, each as often as the
    others.
    """
    order = rng.sample(cameras, len(cameras))
    return [order[index % len(order)] for index in range(count)]


def query_and_gallery_cameras(cameras: Sequence[int], count: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Return the cameras of a person's queries and of `count` gallery pictures: every query is seen by another camera
    too.
    """
    gallery = share_cameras(cameras, count, rng)
    second = next(camera for camera in rng.sample(cameras, len(cameras)) if camera != gallery[0])
    if count == 1:
        return [second], gallery
    return gallery[:2], gallery
