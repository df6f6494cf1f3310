"""Chooses pose and framing of a picture."""

from __future__ import annotations

import random

from datasets.synthetic import nuisance
from datasets.synthetic.camera import Camera
from datasets.synthetic.canvas import Scene
from datasets.synthetic.person import Person, View


def draw_view(rng: random.Random) -> View:
    """Return the side from which a camera happens to see somebody."""
    return View(rng.choices(tuple(nuisance.VIEW_WEIGHTS), tuple(nuisance.VIEW_WEIGHTS.values()))[0])


def photo_scene(person: Person, camera: Camera, view: View, rng: random.Random) -> Scene:
    """Return the scene of a photograph: any phase of a stride, a rough box, sometimes cut off at the feet."""
    scale = rng.uniform(*nuisance.PHOTO_SCALE) * person.body.height
    if rng.random() < nuisance.TRUNCATION_RATE:
        scale = rng.uniform(*nuisance.TRUNCATION_SCALE)
    top = 0.012 if scale > 1.0 else (1.0 - scale) * 0.5
    return Scene(
        view=view,
        left=rng.random() < 0.5,
        phase=rng.uniform(-1.0, 1.0),
        arm=rng.uniform(-1.0, 1.0),
        scale=scale,
        centre=0.5 + rng.uniform(-nuisance.PHOTO_SHIFT_X, nuisance.PHOTO_SHIFT_X),
        top=top + rng.uniform(-nuisance.PHOTO_SHIFT_Y, nuisance.PHOTO_SHIFT_Y),
        lean=rng.uniform(-nuisance.LEAN, nuisance.LEAN) + person.body.slouch,
        pitch=camera.pitch,
    )


def drawing_scene(person: Person, view: View, rng: random.Random) -> Scene:
    """Return the scene of a drawing: standing, upright, with an artist's errors of proportion."""
    scale = rng.uniform(*nuisance.DRAWING_SCALE) * person.body.height
    return Scene(
        view=view,
        left=rng.random() < 0.5,
        phase=rng.uniform(-0.35, 0.35),
        arm=rng.uniform(-0.5, 0.5),
        scale=scale,
        centre=0.5 + rng.uniform(-nuisance.DRAWING_SHIFT_X, nuisance.DRAWING_SHIFT_X),
        top=(1.0 - scale) * 0.5 + rng.uniform(-nuisance.DRAWING_SHIFT_Y, nuisance.DRAWING_SHIFT_Y),
        wobble=nuisance.CP_WOBBLE,
        girth=1.0 + rng.uniform(-nuisance.CP_PROPORTION_ERROR, nuisance.CP_PROPORTION_ERROR),
    )
