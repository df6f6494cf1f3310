"""Which encoders of annotations `eval.relevance` names."""

from __future__ import annotations

from solver.evaluation.albef_annotations import AlbefClothes, AlbefTexts
from solver.evaluation.annotation_encoders import ClothesEncoder, ClothesHistogram, TextCls, TextEncoder, TfIdf
from utils.errors import UserError

KINDS = ("t_s", "t_s_centred", "albef")


def parse_encoder(name: str) -> tuple[str, str]:
    """Return the kind of an encoder and its place: `tfidf` has none, `t_s:PLACE` and `t_s_centred:PLACE` name a BERT,
    `albef:FILE` names ALBEF's checkpoint.

    Raises UserError for anything else.
    """
    kind, _, place = name.partition(":")
    if name != "tfidf" and not (kind in KINDS and place):
        raise UserError(
            f"{name!r} is no encoder of annotations; give tfidf, t_s:FOLDER-OR-HUB-ID, t_s_centred:FOLDER-OR-HUB-ID or "
            "albef:FILE"
        )
    return kind, place


def text_encoder(name: str) -> TextEncoder:
    """Return the encoder of texts that `parse_encoder` knows by this name. Raises UserError when its weights cannot be
    read.
    """
    kind, place = parse_encoder(name)
    if kind == "albef":
        return AlbefTexts(place)
    return TextCls(place, centred=kind == "t_s_centred") if place else TfIdf()


def clothes_encoder(name: str) -> ClothesEncoder:
    """Return the encoder of clothes pictures: ALBEF's, else colour and texture histograms. Raises UserError when its
    weights cannot be read.
    """
    kind, place = parse_encoder(name)
    return AlbefClothes(place) if kind == "albef" else ClothesHistogram()
