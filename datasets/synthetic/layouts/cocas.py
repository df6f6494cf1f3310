"""COCAS+ Real2: images/, templates/, query.txt, gallery.txt, and descriptions in runner_real2_v1_gpt.json.

A line of query.txt is `image template pid clothes camera`, one of gallery.txt `image pid clothes camera`; the clothes
of a query are those of its template, in which the person is looked for: never those of its own image. Clothes are
counted per person. Each person owns several outfits with a template and gallery images each, and is searched for once
in each, from an image in another outfit that lies in no gallery; another camera than the query's has the outfit too.
runner_real2_v1_gpt.json, which the original does not ship, describes the gallery images by their paths.

Real2 is a test set: there are no training persons. Those of COCAS+ Real1 are in the layout `omnireid`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from configs.vocabulary import Modality
from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.captions import caption_of
from datasets.synthetic.person import View
from datasets.synthetic.population import BLOCKS, draw_ids, need_outfits, test_persons
from datasets.synthetic.roll import Roll, share_cameras
from datasets.synthetic.shots import Plan, Shot
from utils.seeding import stream

FOLDER = "COCAS+_Real2"
BLOCK = BLOCKS["cocas"]
CAMERAS = tuple(range(1, 12))
MAXIMUM_NUMBER = 9999
DESCRIPTIONS = "runner_real2_v1_gpt.json"


@dataclass(frozen=True, slots=True)
class Target:
    """A search for a person in an outfit. query: an image in another outfit; template: a picture of the outfit;
    gallery: the images.
    """

    pid: int
    clothes: int
    query: Shot
    template: Shot
    gallery: tuple[Shot, ...]

    def described(self, seed: int) -> Shot:
        """Return the gallery image, of another camera than the query's, whose description can stand for the query."""
        others = [shot for shot in self.gallery if shot.camera != self.query.camera]
        return stream(seed, "cocas", "described", self.pid, self.clothes).choice(others)


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures, the two lists and the descriptions. Raises UserError for fewer than two outfits."""
    roll = Roll(arguments.seed, "cocas")
    numbers = draw_ids(arguments.seed, "cocas", test_persons(arguments, BLOCK), 1, MAXIMUM_NUMBER)
    found = list(targets(roll, numbers, arguments, images="images", templates="templates"))
    gallery = [(shot, target) for target in found for shot in target.gallery]
    return Plan(
        shots=(*roll.shots, *(target.template for target in found)),
        annotations={DESCRIPTIONS: {shot.path: caption_of(shot, arguments.seed) for shot, _ in gallery}},
        texts={
            "query.txt": "".join(
                f"{target.query.path} {target.template.path} {target.pid} {target.clothes} {target.query.camera}\n"
                for target in found
            ),
            "gallery.txt": "".join(
                f"{shot.path} {target.pid} {target.clothes} {shot.camera}\n" for shot, target in gallery
            ),
        },
    )


def targets(
    roll: Roll, numbers: Mapping[int, int], arguments: RenderArguments, *, images: str, templates: str
) -> Iterator[Target]:
    """Take the pictures of persons and yield their searches, one per outfit. numbers: person -> pid; images, templates:
    folders.

    Raises UserError for fewer than two outfits.
    """
    need_outfits(arguments, 2)
    outfits, seed = arguments.outfits, arguments.seed
    for person, number in sorted(numbers.items(), key=lambda pair: pair[1]):
        rng = stream(seed, "cocas", "cameras", person)
        for outfit in range(outfits):
            cameras = share_cameras(CAMERAS, arguments.images_per_modality, rng)
            gallery = tuple(
                roll.take(
                    f"{images}/{number}/{number:04d}_{outfit}_c{camera:02d}_{frame:04d}.jpg", person, outfit, camera
                )
                for frame, camera in enumerate(cameras, start=1)
            )
            other = (outfit + rng.randrange(1, outfits)) % outfits
            camera = rng.choice([camera for camera in CAMERAS if camera != cameras[0]])
            query = roll.take(
                f"{images}/{number}/{number:04d}_{other}_c{camera:02d}_q{outfit:03d}.jpg", person, other, camera
            )
            template = Shot(
                f"{templates}/{number:04d}_{outfit}.jpg", person, outfit, Modality.RGB, 0, View.FRONT, kind="template"
            )
            yield Target(number, outfit, query, template, gallery)
