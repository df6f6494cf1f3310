"""Which images of the right person count as right at a threshold, for searches of an annotated test list.

Shapes: Q queries of the list, G images of the split's gallery.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets.loading.readers import open_source
from datasets.structures import EvalSplit, QueryList
from solver.evaluation.relevance import relevance_of
from utils.errors import UserError
from utils.retrieval.annotation_vectors import PairCosines
from utils.retrieval.metrics import kept_at


def relevant_images(
    split: EvalSplit, listed: QueryList, entries: Sequence[int], *, threshold: float, encoder: str
) -> NDArray[np.bool_]:
    """Return (Q, G): which gallery images have an annotation that resembles what each entry of a list asks for.

    The vectors are those of the whole split, so that an image is right here where mAP at the threshold counts it.
    Raises UserError for a list without annotations, and as `relevance_of` does.
    """
    if not any(annotation is not None for annotation in listed.annotations):
        raise UserError(
            f"--threshold {threshold:g}: the queries of {listed.name} have no annotations, so nothing says which "
            "images resemble what they ask for; leave it out or take another list"
        )
    relevance = relevance_of(split, encoder=encoder, read_clothes=open_source)
    asked = relevance.lists[next(number for number, queries in enumerate(split.query_lists) if queries is listed)]
    assert asked is not None, "the list has annotations"
    shape = len(entries), len(split.gallery)
    chosen = np.asarray(entries, dtype=np.int64)
    cosines = PairCosines({kind: vectors.take(chosen) for kind, vectors in asked.items()}, relevance.gallery, shape)
    rows, columns = (index.reshape(-1) for index in np.indices(shape))
    return kept_at(cosines.cosines(rows, columns), threshold).reshape(shape)
