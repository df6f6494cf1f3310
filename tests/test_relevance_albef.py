"""Covers: solver/evaluation/albef_annotations, solver/evaluation/annotation_choice. Annotations compared by ALBEF's
encoders, against transformers and timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from instructed_family import vocabulary
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel

from configs.load import build_experiment
from configs.vocabulary import AnnotationKind, Modality
from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.albef_annotations import AlbefClothes, AlbefTexts
from solver.evaluation.annotation_choice import clothes_encoder, text_encoder
from solver.evaluation.annotation_encoders import ClothesHistogram
from solver.evaluation.relevance import relevance_of
from utils.errors import UserError

WIDTH = 128
TEXTS = ("a person in red", "a person in blue with a white bag", "red red red")
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def small_bert() -> BertModel:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=80,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def small_vit(size: int) -> Any:
    torch.manual_seed(4)
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=size, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=0
    )
    positions: Any = model.pos_embed
    torch.nn.init.normal_(positions, std=0.3)
    return model.eval()


def albef(place: Path, bert: BertModel, vit: Any) -> str:
    """Write a checkpoint in ALBEF's form: the text layers, one that sees images, the momentum image encoder."""
    text = {f"text_encoder.bert.{name}": value for name, value in bert.state_dict().items()}
    last = {name: value for name, value in text.items() if ".layer.1." in name}
    fusion = {name.replace(".layer.1.", ".layer.2."): torch.randn_like(value) for name, value in last.items()}
    crossed = {
        name.replace(".attention.", ".crossattention."): value
        for name, value in fusion.items()
        if ".attention." in name
    }
    images = {f"visual_encoder_m.{name}": value for name, value in vit.state_dict().items()}
    other = {"visual_encoder.cls_token": torch.zeros(1, 1, WIDTH), "queue_ptr": torch.zeros(1)}
    torch.save({"model": text | fusion | crossed | images | other}, place / "ALBEF.pth")
    (place / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")
    return str(place / "ALBEF.pth")


def bert_by_hand(bert: BertModel, text: str) -> np.ndarray:
    known = vocabulary()
    ids = torch.tensor([[2, *(known.index(word) for word in text.split())]])
    with torch.no_grad():
        return bert(input_ids=ids).last_hidden_state[0, 0].double().numpy()


def vit_by_hand(vit: Any, picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture.resize((128, 128), Image.Resampling.BILINEAR)) / 255
    inputs: Tensor = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        return vit.forward_features(inputs)[0, 0].double().numpy()


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(1)
    return [Image.fromarray(draw.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(count)]


def test_texts_are_the_class_tokens_of_the_layers_that_see_no_image(tmp_path: Path) -> None:
    bert = small_bert()
    encoder = AlbefTexts(albef(tmp_path, bert, small_vit(128)))
    vectors, checksum = encoder.encode([encoder.pieces(text) for text in TEXTS])
    assert vectors == pytest.approx(np.array([bert_by_hand(bert, text) for text in TEXTS]), abs=1e-5)
    again = AlbefTexts(str(tmp_path / "ALBEF.pth"))
    assert again.encode([again.pieces("a person in red")])[1] == checksum and len(checksum) == 64
    assert encoder.name == f"albef:{tmp_path}/ALBEF.pth"


@pytest.mark.parametrize("size", [128, 256])
def test_clothes_are_the_class_tokens_of_the_momentum_image_encoder(tmp_path: Path, size: int) -> None:
    vit = small_vit(size)
    encoder = AlbefClothes(albef(tmp_path, small_bert(), vit))
    shown = pictures(3)
    if size != 128:
        state = vit.state_dict()
        grid = state["pos_embed"][:, 1:].reshape(1, 16, 16, WIDTH).permute(0, 3, 1, 2)
        smaller = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
        patches = smaller.permute(0, 2, 3, 1).reshape(1, 64, WIDTH)
        vit = small_vit(128)
        vit.load_state_dict({**state, "pos_embed": torch.cat([state["pos_embed"][:, :1], patches], dim=1)})
    vectors, checksum = encoder.encode(iter(shown), 3)
    assert vectors == pytest.approx(np.array([vit_by_hand(vit, picture) for picture in shown]), abs=1e-4)
    assert len(checksum) == 64


def test_both_kinds_of_annotation_are_compared_by_it(tmp_path: Path) -> None:
    bert, vit = small_bert(), small_vit(128)
    place = albef(tmp_path, bert, vit)
    shown = pictures(3)
    for number, picture in enumerate(shown):
        picture.save(tmp_path / f"{number}.png")
    clothes = [Source(modality=Modality.RGB, value=str(tmp_path / f"{number}.png")) for number in range(3)]
    texts = [Source(modality=Modality.TEXT, value=text) for text in TEXTS]
    image = Source(modality=Modality.RGB, value="x.jpg")
    kinds = (AnnotationKind.CLOTHES, AnnotationKind.DESCRIPTION)
    split = EvalSplit(
        name="test",
        protocol="p",
        gallery=(image, image),
        gallery_ids=(1, 2),
        gallery_annotations=tuple(
            {AnnotationKind.CLOTHES: clothes[number], AnnotationKind.DESCRIPTION: texts[number]} for number in (1, 2)
        ),
        query_lists=(
            QueryList(
                combination=(Modality.RGB,),
                entries=((image,), (image,)),
                person_ids=(1, 2),
                annotations=(clothes[0], texts[0]),
                annotation_kinds=kinds,
            ),
        ),
    )
    found = relevance_of(split, encoder=f"albef:{place}", read_clothes=lambda source: Image.open(source.value))
    assert found.name == f"clothes: albef:{place}; description: albef:{place}"
    wanted = {
        "clothes": [vit_by_hand(vit, shown[number]) for number in (1, 2)],
        "description": [bert_by_hand(bert, TEXTS[number]) for number in (1, 2)],
    }
    for kind, vectors in wanted.items():
        known = found.gallery[kind]
        assert isinstance(known.vectors, np.ndarray)
        assert known.vectors[known.rows] == pytest.approx(np.array(vectors), abs=1e-4)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    place = Path(albef(tmp_path, small_bert(), small_vit(128)))
    state = torch.load(place, weights_only=True)["model"]
    torch.save(
        {"model": {name: value for name, value in state.items() if "momentum" not in name and "_m." not in name}}, place
    )
    with pytest.raises(UserError, match=r"ALBEF.pth is no ALBEF \(no momentum image encoder"):
        clothes_encoder(f"albef:{place}")
    torch.save({"model": {name: value for name, value in state.items() if "crossattention" not in name}}, place)
    with pytest.raises(UserError, match=r"ALBEF.pth is no ALBEF \(no text encoder with layers that look at images\)"):
        text_encoder(f"albef:{place}")
    lacking = {name: value for name, value in state.items() if "layer.0.output.dense.weight" not in name}
    torch.save({"model": lacking}, place)
    with pytest.raises(UserError, match="is missing, unknown or of another shape; give ALBEF.pth"):
        text_encoder(f"albef:{place}")
    torch.save({"model": state}, place)
    words = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(words + "\nmore\nthan\nit\nhas")
    with pytest.raises(UserError, match="they do not belong together"):
        text_encoder(f"albef:{place}")
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"there is no vocab.txt beside it; copy that of bert-base-uncased there"):
        text_encoder(f"albef:{place}")
    with pytest.raises(UserError, match="albef:FILE"):
        clothes_encoder("albef:")
    assert isinstance(clothes_encoder("tfidf"), ClothesHistogram)


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = build_experiment([("a", {"family": "reid5o", "eval": {"relevance": "albef:~/ALBEF.pth"}})])
    assert config.eval.relevance == f"albef:{tmp_path}/ALBEF.pth"
