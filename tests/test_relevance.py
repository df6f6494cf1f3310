"""Covers: solver/evaluation/relevance, solver/evaluation/annotation_encoders. What is relevant to an annotated query:
encoders against their formulas, kinds apart, independence of the instructions.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.vocabulary import AnnotationKind, Modality
from datasets.loading.tokenizers import ClipTokenizer
from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.annotation_choice import text_encoder
from solver.evaluation.annotation_encoders import ClothesHistogram, TextCls, TfIdf, histogram, lab
from solver.evaluation.relevance import Relevance, relevance_of
from utils.errors import UserError
from utils.retrieval.annotation_vectors import SparseRows
from utils.retrieval.exclusion import Labels
from utils.retrieval.metrics import evaluate_features
from utils.retrieval.options import MetricOptions

CAPTIONS = ("A man in a red shirt.", "a woman in a blue coat", "a man with a red bag", "a man in a red shirt.")


def text(value: str, record: str = "") -> Source:
    return Source(modality=Modality.TEXT, value=value, record=record)


def image(value: str, record: str = "", crop: str = "") -> Source:
    return Source(modality=Modality.RGB, value=value, record=record, crop=crop)


def dense(rows: SparseRows) -> np.ndarray:
    found = np.zeros((len(rows), rows.size))
    for row in range(len(rows)):
        for entry in range(rows.starts[row], rows.starts[row + 1]):
            found[row, rows.columns[entry]] += rows.values[entry]
    return found


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


# Texts


def test_tfidf_equals_its_formula_word_by_word() -> None:
    encoder = TfIdf()
    vectors, checksum = encoder.encode([encoder.pieces(caption) for caption in CAPTIONS[:3]])
    tokenizer = ClipTokenizer()
    documents = [tokenizer.encode(caption.replace(".", "")) for caption in CAPTIONS[:3]]
    vocabulary = sorted({piece for document in documents for piece in document})
    expected = [
        [
            document.count(piece) * (math.log(4 / (1 + sum(piece in other for other in documents))) + 1)
            for piece in vocabulary
        ]
        for document in documents
    ]
    assert dense(vectors) == pytest.approx(np.array(expected), abs=1e-12)
    # "red" in two of three, "shirt" in one: ln(4/3) + 1 and ln 2 + 1.
    red, shirt = (vocabulary.index(tokenizer.encode(word)[0]) for word in ("red", "shirt"))
    assert dense(vectors)[0, [red, shirt]] == pytest.approx([math.log(4 / 3) + 1, math.log(2) + 1])
    assert checksum == encoder.encode([encoder.pieces(caption) for caption in CAPTIONS[:3]])[1]
    assert checksum != encoder.encode([encoder.pieces(caption) for caption in CAPTIONS[:2]])[1]
    same = cosines(dense(encoder.encode([encoder.pieces(caption) for caption in CAPTIONS])[0]))
    assert same[0, 3] == pytest.approx(1) and same[0, 2] > same[0, 1] > 0
    alone, _ = encoder.encode([encoder.pieces("one sentence")])
    assert (dense(alone) > 0).all()


WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "man",
    "woman",
    "in",
    "red",
    "blue",
    "shirt",
    "coat",
    "with",
    "bag",
    ".",
    "##s",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two narrow layers with a vocabulary of 17 pieces."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def test_cls_of_a_bert_and_its_centred_form(bert: Path) -> None:
    from transformers import BertModel

    plain, centred = text_encoder(f"t_s:{bert}"), text_encoder(f"t_s_centred:{bert}")
    pieces = [plain.pieces(caption) for caption in CAPTIONS]
    assert pieces[0] == [WORDS.index(word) for word in "a man in a red shirt".split()]
    found, checksum = plain.encode(pieces)
    assert isinstance(found, np.ndarray)
    model = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    for row, ids in zip(found, pieces):
        with torch.no_grad():
            # One text at a time, without padding: [CLS] and the pieces, no [SEP].
            expected = model(input_ids=torch.tensor([[WORDS.index("[CLS]"), *ids]])).last_hidden_state[0, 0]
        assert row == pytest.approx(expected.numpy(), abs=1e-5)
    moved, other = centred.encode(pieces)
    assert isinstance(moved, np.ndarray)
    # Captions 0 and 3 are one text: the mean is over three.
    assert moved == pytest.approx(found - found[:3].mean(0), abs=1e-9) and np.array_equal(moved[0], moved[3])
    assert cosines(found).min() > cosines(moved).min()
    assert checksum != other and len(checksum) == 64 and plain.name == f"t_s:{bert}"
    one, other_one = (encoder.encode(pieces[:1])[0] for encoder in (centred, plain))
    assert isinstance(one, np.ndarray) and isinstance(other_one, np.ndarray)
    assert np.array_equal(one, other_one), "one text keeps its direction"
    assert len(plain.pieces("a " * 80)) == 50, "cut at 50 words, as for the model"
    long = plain.encode([[5] * 69, [5] * 100])[0]
    assert isinstance(long, np.ndarray)
    assert np.array_equal(long[0], long[1]), "cut at 70 pieces"


def test_encoders_that_cannot_be_read(bert: Path, tmp_path: Path) -> None:
    for name in ("bert", "tfidf:x", "t_s", "t_s:"):
        with pytest.raises(UserError, match="no encoder of annotations"):
            text_encoder(name)
    with pytest.raises(UserError, match="cannot be read as a BERT"):
        TextCls(str(tmp_path), centred=False)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(UserError, match="clip model, not BERT"):
        TextCls(str(tmp_path), centred=False)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join((*WORDS, "more", "words")), encoding="utf-8")
    with pytest.raises(UserError, match="vocabulary of 19 pieces and weights for 17"):
        TextCls(str(tmp_path), centred=False)


# Clothes


def plain_picture(colour: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def striped(vertical: bool) -> Image.Image:
    pixels = np.full((64, 64, 3), 60, dtype=np.uint8)
    lines = (slice(None), np.arange(64) % 8 < 4) if vertical else (np.arange(64) % 8 < 4,)
    pixels[lines] = 200
    return Image.fromarray(pixels)


def test_lab_of_known_colours() -> None:
    # CIE values of white, black, the sRGB primaries red and blue, and mid grey (published tables, D65).
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [119, 119, 119]], dtype=np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    assert lab(colours) == pytest.approx(np.array(expected), abs=0.02)


def test_pictures_of_clothes_are_compared_by_colour_and_texture() -> None:
    red, dark_red, blue = (histogram(plain_picture(colour)) for colour in ((200, 30, 40), (170, 25, 35), (30, 60, 190)))
    assert len(red) == 3 * 12 * 12 + 9 and np.linalg.norm(red) == pytest.approx(1)
    assert red @ histogram(plain_picture((200, 30, 40), (7, 9))) == pytest.approx(1), "the size does not matter"
    # Plain areas share the texture, which is a tenth of the cosine; colours that have nothing in common share no more.
    assert red @ blue == pytest.approx(0.1) and 0.5 < red @ dark_red < 1
    across, down = histogram(striped(True)), histogram(striped(False))
    plain = histogram(
        Image.fromarray(np.concatenate([np.full((32, 64, 3), 60), np.full((32, 64, 3), 200)]).astype(np.uint8))
    )
    # Half of a striped area is flat; the other half, of a tenth, goes across or down.
    assert across @ down == pytest.approx(0.95, abs=0.01) and across @ plain < 0.98
    # What lies at the left and right edge counts little, as in a template on white.
    framed = plain_picture((255, 255, 255), (64, 64))
    framed.paste((200, 30, 40), (16, 0, 48, 64))
    assert red @ histogram(framed) > 0.9
    vectors, checksum = ClothesHistogram().encode(iter([plain_picture((1, 2, 3))] * 2), 2)
    assert vectors.shape == (2, 441) and len(checksum) == 64 and np.array_equal(vectors[0], vectors[1])
    assert ClothesHistogram().encode(iter([]), 0)[0].shape == (0, 441)


# A split


PICTURES = {"red.png": (200, 30, 40), "blue.png": (30, 60, 190), "red2.png": (190, 35, 45)}
CLOTHES, DESCRIPTION, SENTENCE = AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION, AnnotationKind.SENTENCE


def read_clothes(source: Source) -> Image.Image:
    if source.value not in PICTURES:
        raise UserError(f"{source.value} ({source.record}): no such image")
    return plain_picture(PICTURES[source.value])


def make_split() -> EvalSplit:
    gallery = [
        {CLOTHES: image("red2.png"), SENTENCE: text("ignore the clothes")},
        {DESCRIPTION: text(CAPTIONS[1])},
        {DESCRIPTION: text("  "), CLOTHES: image("blue.png")},
        {},
        {DESCRIPTION: text(CAPTIONS[0]), SENTENCE: text("ignore the clothes")},
    ]
    entries = tuple((image(f"q{number}.jpg", f"query.txt line {number}"),) for number in range(3))
    mixed = QueryList(
        combination=(Modality.RGB,),
        entries=entries,
        person_ids=(1, 2, 3),
        title="mixed",
        annotations=(image("red.png"), text(CAPTIONS[2]), text("ignore the clothes")),
        annotation_kinds=(CLOTHES, DESCRIPTION, SENTENCE),
        instructions=tuple(map(text, "abc")),
    )
    bare = QueryList(combination=(Modality.RGB,), entries=entries[:1], person_ids=(1,), title="bare")
    return EvalSplit(
        name="test",
        protocol="",
        gallery=tuple(image(f"g{item}.jpg") for item in range(5)),
        gallery_ids=(1, 2, 2, 3, 3),
        query_lists=(mixed, bare),
        gallery_annotations=tuple(gallery),
        gallery_instructions=tuple(map(text, "vwxyz")),
    )


def encode(split: EvalSplit, encoder: str = "tfidf") -> Relevance:
    return relevance_of(split, encoder=encoder, read_clothes=read_clothes)


def test_every_kind_of_a_split_has_its_vectors() -> None:
    found = encode(make_split())
    assert found.name == "clothes: lab-gradient-histogram; description: tfidf-clip-pieces; sentence: tfidf-clip-pieces"
    assert found.lists[1] is None and len(found.checksum) == 64
    rows = {kind: (found.gallery[kind].rows >= 0).tolist() for kind in found.gallery}
    # Item 2's description is empty, which is none; item 3 has nothing at all.
    assert rows == {
        "clothes": [True, False, True, False, False],
        "description": [False, True, False, False, True],
        "sentence": [True, False, False, False, True],
    }
    asked = found.lists[0]
    assert asked is not None and asked["sentence"].rows.tolist() == [-1, -1, 0]
    assert found.gallery["clothes"].vectors is asked["clothes"].vectors
    part = found.gallery_part(np.array([4, 0]))
    assert (part["description"].rows >= 0).tolist() == [True, False] and found.gallery_part(None) is found.gallery


def test_metrics_by_kind_and_sentences_that_say_nothing() -> None:
    split = make_split()
    found = encode(split)
    features = torch.eye(5)
    labels = Labels(ids=list(split.query_lists[0].person_ids), instructions=found.lists[0])
    result = evaluate_features(
        features[[0, 1, 4]],
        features,
        labels,
        Labels(ids=list(split.gallery_ids), instructions=found.gallery),
        options=MetricOptions(thresholds=(0.2, 1.0)),
    )
    # Pairs: query 0 with item 0 (reds, alike but not equal), 1 with 1 and 2 (2 has no description), 2 with 3 (none) and
    # 4 (1).
    assert result.unannotated == 2 and result.unannotated_items == 2
    assert result.kept_share["mAP@0.2"] == pytest.approx(3 / 5) and result.kept_share["mAP@1"] == pytest.approx(1 / 5)
    sentences = dataclasses.replace(
        split.query_lists[0], annotations=(text("same"),) * 3, annotation_kinds=(SENTENCE,) * 3
    )
    everywhere = dataclasses.replace(
        split, query_lists=(sentences,), gallery_annotations=({SENTENCE: text("same")},) * 5
    )
    same = encode(everywhere)
    result = evaluate_features(
        features[[0, 1, 4]],
        features,
        Labels(ids=[1, 2, 3], instructions=same.lists[0]),
        Labels(ids=list(split.gallery_ids), instructions=same.gallery),
        options=MetricOptions(thresholds=(1.0,)),
    )
    assert result.kept_share["mAP@1"] == 1.0 and result["mAP@1"] == result.mAP


def same_relevance(left: Relevance, right: Relevance) -> bool:
    for one, other in zip([left.gallery, *left.lists], [right.gallery, *right.lists]):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        for kind in one:
            mine, theirs = (
                dense(side.vectors) if isinstance(side.vectors, SparseRows) else side.vectors
                for side in (one[kind], other[kind])
            )
            if not (np.array_equal(one[kind].rows, other[kind].rows) and np.array_equal(mine, theirs)):
                return False
    return left.checksum == right.checksum


@pytest.mark.parametrize("change", [{"instructions": ()}, {"instructions": tuple(map(text, "cab"))}])
def test_the_models_instructions_change_nothing(change: dict[str, Any]) -> None:
    split = make_split()
    told = dataclasses.replace(
        split,
        query_lists=(dataclasses.replace(split.query_lists[0], **change), split.query_lists[1]),
        gallery_instructions=tuple(map(text, "zyxwv")),
    )
    assert same_relevance(encode(split), encode(told))
    asked = dataclasses.replace(
        split.query_lists[0], annotations=(image("blue.png"), *split.query_lists[0].annotations[1:])
    )
    assert not same_relevance(
        encode(split), encode(dataclasses.replace(split, query_lists=(asked, split.query_lists[1])))
    )


def test_with_a_bert_and_what_is_missing(bert: Path) -> None:
    split = make_split()
    found = encode(split, f"t_s_centred:{bert}")
    asked = found.lists[0]
    assert "description: t_s_centred" in found.name
    assert asked is not None and asked["description"].vectors.shape == (3, 16)  # type: ignore[union-attr]
    queries = split.query_lists[0]
    for place, value, words in (
        (1, None, "query.txt line 1.*has none"),
        (1, text(""), "query.txt line 1.*has an empty one"),
        (0, image("no.png", "templates.txt line 7"), "templates.txt line 7.*no such image"),
    ):
        annotations = tuple(value if index == place else found for index, found in enumerate(queries.annotations))
        with pytest.raises(UserError, match=words):
            encode(dataclasses.replace(split, query_lists=(dataclasses.replace(queries, annotations=annotations),)))
    with pytest.raises(UserError, match="no encoder of annotations"):
        encode(split, "word2vec")
    assert encode(dataclasses.replace(split, gallery_annotations=())).gallery["clothes"].rows.tolist() == [-1] * 5
