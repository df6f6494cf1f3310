"""LLCM: idx/{train,test}_{vis,nir}.txt, idx/test_id.txt, {vis,nir}/<id4>/*.jpg, test_{vis,nir}/cam<n>/<id4>/*.jpg.

Nine cameras take visible and infrared images, camera 3 visible ones only; each person is seen by four to nine of them,
in both modalities by different ones too, so that no query is left without a match where the same camera is skipped.
Labels of the training lists count from 0 and have nothing to do with the numbers of the folders. The lines of
idx/test_*.txt have the form of those for training, with the number of the person as the label; nothing reads them.
"""

from __future__ import annotations

from configs.vocabulary import Modality
from datasets.synthetic.arguments import RenderArguments
from datasets.synthetic.population import BLOCKS, draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan
from utils.errors import UserError
from utils.seeding import stream

FOLDER = "LLCM"
BLOCK = BLOCKS["llcm"]
MODALITIES = {"vis": Modality.RGB, "nir": Modality.NIR}
CAMERAS = tuple(range(1, 10))
VISIBLE_ONLY = 3
FEWEST_CAMERAS = 4
MAXIMUM_LABELS = 713
MAXIMUM_NUMBER = 9999


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures and the five lists. Raises UserError for more persons than labels or folder names can
    hold.
    """
    roll, train, test = Roll(arguments.seed, "llcm"), train_persons(arguments, BLOCK), test_persons(arguments, BLOCK)
    if len(train) > MAXIMUM_LABELS:
        raise UserError(
            f"--identities is {len(train)}: LLCM's training lists have the labels 0..{MAXIMUM_LABELS - 1}, give at "
            f"most {MAXIMUM_LABELS}"
        )
    numbers = draw_ids(arguments.seed, "llcm", (*train, *test), 1, MAXIMUM_NUMBER)
    texts = {"idx/test_id.txt": ",".join(map(str, sorted(numbers[person] for person in test))) + "\n"}
    for word in MODALITIES:
        texts[f"idx/train_{word}.txt"] = "".join(
            f"{path} {label}\n"
            for label, person in enumerate(train)
            for path in _take(roll, person, numbers[person], word, False, arguments)
        )
        texts[f"idx/test_{word}.txt"] = "".join(
            f"{path} {numbers[person]}\n"
            for person in test
            for path in _take(roll, person, numbers[person], word, True, arguments)
        )
    return Plan(tuple(roll.shots), {}, texts)


def _take(roll: Roll, person: int, number: int, word: str, is_test: bool, arguments: RenderArguments) -> list[str]:
    """Take a person's pictures of one modality; return their paths."""
    # Both modalities walk along the same cameras, infrared from the second on.
    rng = stream(arguments.seed, "llcm", "cameras", person)
    cameras = rng.sample(CAMERAS, rng.randint(FEWEST_CAMERAS, len(CAMERAS)))
    if word == "nir":
        cameras = [camera for camera in (*cameras[1:], cameras[0]) if camera != VISIBLE_ONLY]
    time = f"{rng.randint(18, 21)}{rng.randint(0, 59):02d}{rng.randint(0, 59):02d}"
    first = rng.randint(1, 4000)
    paths = []
    for index in range(arguments.images_per_modality):
        camera = cameras[index % len(cameras)]
        folder = f"test_{word}/cam{camera}/{number:04d}" if is_test else f"{word}/{number:04d}"
        name = f"{number:04d}_c{camera:02d}_s{time}_f{first + 7 * index}_{word}.jpg"
        paths.append(roll.take(f"{folder}/{name}", person, 0, camera, MODALITIES[word]).path)
    return paths
