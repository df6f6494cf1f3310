"""IRM of Instruct-ReID: an image tower that an instruction edits, instruction encoders, an attention module over both.

Shapes: B rows, C width, P patches, U distinct instructions or captions of L tokens, S streams of the attention module,
N identities, E caption_dim.
Sources: Instruct-ReID++ (eqs. 3 to 6, 9, 10) and the released code; configs/schema/irm.py says which option is whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema.irm import IrmConfig
from configs.vocabulary import Combination, Modality
from model.editing import ImageTower, Tower, TowerSpec
from model.instruction_attention import InstructionAttention
from model.instruction_encoders import TextEncoder, TextSpec
from model.interface import (
    AttentionMap,
    Instructions,
    MapsAttention,
    Matches,
    RetrievalModel,
    Tokens,
    refuse_instructions,
)
from model.layers import float32_linear, head_count
from model.said import Given, Said, Told, gather_given
from utils.errors import UserError

TEMPERATURE = 0.07
"""What the learned temperature of the contrast starts from. Source: ALBEF."""


def tower_spec(config: IrmConfig) -> TowerSpec:
    """Return the sizes of the image tower."""
    return TowerSpec(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=head_count(config.width, config.heads, "towers (model.heads)"),
        part_tokens=config.part_tokens,
        stem_width=config.stem_width if config.stem == "residual" else None,
        drop_path=config.drop_path,
        editing=config.editing,
        gate=config.gate,
        gates=config.gates,
    )


def clothes_spec(config: IrmConfig) -> TowerSpec:
    """Return the sizes of the encoder of clothes pictures: a plain tower. Source: ALBEF's image encoder."""
    return TowerSpec(
        image_size=config.instruction_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.clothes_layers,
        heads=config.heads,
        stem_width=config.stem_width if config.stem == "residual" else None,
    )


def text_spec(config: IrmConfig) -> TextSpec:
    """Return the sizes of the text encoder."""
    return TextSpec(
        vocab_size=config.vocab_size,
        positions=config.text_positions,
        width=config.width,
        heads=config.heads,
        layers=config.text_layers,
        fusion_layers=config.fusion_layers,
        hidden=round(config.width * config.text_mlp_ratio),
        dropout=config.dropout,
    )


class IRM(RetrievalModel, Matches, MapsAttention):
    """Images, alone or with an instruction, and captions.

    A pooled row is [identity part (S C) | caption part (E)]: an image alone fills both, an instructed image the first,
    a caption the second; the rest is zero. Parameters hold no useful values until they are initialised or loaded.
    """

    statistics = "imagenet"

    def __init__(self, config: IrmConfig, num_identities: int) -> None:
        """Build the model of section `model`. Raises UserError for sizes that do not fit together."""
        super().__init__()
        self.config, self.num_identities, self.checkpoint_activations = config, num_identities, False
        width, spec = config.width, tower_spec(config)
        self.image = ImageTower(spec)
        self.text_encoder = TextEncoder(text_spec(config))
        self.clothes = ImageTower(clothes_spec(config))
        own_blocks = config.attention_layers if config.attention_weights == "own" and config.attention != "none" else 0
        self.attention = InstructionAttention(spec, config.attention, own_blocks, config.mask_padding)
        self.streams = self.attention.streams
        self.neck, self.classifier = nn.BatchNorm1d(width), nn.Linear(width, num_identities, bias=False)
        self.heads_shared = config.heads_shared or config.attention == "none"
        if not self.heads_shared:
            self.out_neck = nn.BatchNorm1d(width)
            self.out_classifiers = nn.ModuleList(
                nn.Linear(width, num_identities, bias=False) for _ in range(self.streams)
            )
        self.image_projection = nn.Linear(width, config.caption_dim)
        self.text_projection = nn.Linear(width, config.caption_dim)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.match_head = nn.Linear(width if config.matching == "fusion" else self.streams * width, 2)
        if config.fusion_layers:
            self.replaced_head = nn.Linear(width, 2)
        self.identity_dim = self.streams * width
        self.embed_dim = self.identity_dim + config.caption_dim
        self.similarity = config.similarity
        self.instruction_statistics = config.instruction_statistics
        self.follows_instructions = config.follows
        self._freeze()

    def _freeze(self) -> None:
        frozen = [neck.bias for neck in self._necks()]
        if self.config.encoder == "frozen":
            frozen += [value for part in self._instruction_encoders() for value in part.parameters()]
        for value in frozen:
            value.requires_grad_(False)
        self.frozen_names = tuple(name for name, value in self.named_parameters() if not value.requires_grad)

    def _necks(self) -> list[nn.BatchNorm1d]:
        return [self.neck] if self.heads_shared else [self.neck, self.out_neck]

    def _instruction_encoders(self) -> tuple[nn.Module, ...]:
        """What encodes instructions, without the layers and heads behind it that look at images."""
        return self.text_encoder.embeddings, self.text_encoder.layers, self.clothes

    def train(self, mode: bool = True) -> IRM:
        """Set the mode; frozen encoders stay as at test, without dropout and with the statistics that they have."""
        super().train(mode)
        if self.config.encoder == "frozen":
            for part in self._instruction_encoders():
                part.eval()
        return self

    def encode_instructions(self, modality: Modality, inputs: Tensor) -> Said:
        """Encode texts (U, L) int64 or clothes pictures (U, 3, h, w): the annotation's modality decides which encoder.

        Raises UserError for another modality.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.encoder == "trained"):
            if modality is Modality.TEXT:
                return self.text_encoder(inputs, self.checkpoint_activations)
            if modality not in IrmConfig.modalities:
                raise UserError(
                    f"IRM takes a text or a picture of clothes as instruction, not {modality.name}; give one of these"
                )
            tokens = self.clothes(inputs, None, self.checkpoint_activations).tokens
            return Said(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def encode_images(self, images: Tensor, told: Sequence[Told] = ()) -> Tower:
        """Encode normalised images (B, 3, H, W), RGB and NIR alike, each edited by what it is told."""
        return self.image(images, gather_given(told), self.checkpoint_activations)

    def attend(self, tower: Tower, told: Sequence[Told]) -> Tensor:
        """Return F_out, (B, S, C): S = 1, or 2 in the dual form. A row that is told nothing is F, in every stream."""
        return self._attend(tower, gather_given(told))

    def _attend(self, tower: Tower, given: Given | None) -> Tensor:
        return self.attention(tower, given, self._attention_blocks(), self.checkpoint_activations)

    def _attention_blocks(self) -> tuple[nn.Module, ...]:
        # The release means to copy the image tower's first and last block and runs these themselves.
        shared = self.config.attention_weights == "image"
        return (self.image.blocks[0], self.image.blocks[-1]) if shared else ()

    def tower_head(self, cls: Tensor) -> tuple[Tensor, Tensor]:
        """Return F behind the neck (B, C) and its class scores (B, N) float32."""
        necked = self.neck(cls)
        return necked, self.identity_logits(necked)

    def stream_heads(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        """Return F_out (B, S, C) behind the neck and its class scores (B, S, N) float32, a classifier for each stream.

        The streams pass the neck one after the other, as in the release: in training each is normalised by itself.
        """
        necked = self._neck_streams(streams)
        if self.heads_shared:
            return necked, self.identity_logits(necked)
        heads: Iterable[Any] = self.out_classifiers
        logits = [float32_linear(stream, head.weight) for stream, head in zip(necked.unbind(1), heads)]
        return necked, torch.stack(logits, dim=1)

    def _neck_streams(self, streams: Tensor) -> Tensor:
        neck = self.neck if self.heads_shared else self.out_neck
        return torch.stack([neck(stream) for stream in streams.unbind(1)], dim=1)

    def identity_logits(self, features: Tensor) -> Tensor:
        """Scores of the tower's classifier, (..., C) behind the neck -> (..., N) float32."""
        return float32_linear(features, self.classifier.weight)

    def caption_feature(self, said: Said) -> Tensor:
        """Return what captions are compared by, (U, E) float32, un-normalised."""
        return float32_linear(said.cls, self.text_projection.weight, self.text_projection.bias)

    def image_caption_feature(self, cls: Tensor) -> Tensor:
        """Return what images are compared with captions by, (B, E) float32, un-normalised."""
        return float32_linear(cls, self.image_projection.weight, self.image_projection.bias)

    def fused_tokens(self, said: Said, image: Tensor) -> Tensor:
        """Pass texts (U, L, C) through the fusion layers, text i beside image tokens (U, 1 + P, C) i; (U, L, C)."""
        return self.text_encoder.fuse(said, image, self.checkpoint_activations)

    def masked_language_logits(self, tokens: Tensor) -> Tensor:
        """Scores of every id for fused tokens, (..., C) -> (..., V) float32."""
        return self.text_encoder.language_logits(tokens)

    def replaced_logits(self, tokens: Tensor) -> Tensor:
        """Scores of `original` and `replaced` for fused tokens, (..., C) -> (..., 2) float32."""
        return float32_linear(tokens, self.replaced_head.weight, self.replaced_head.bias)

    def match_logits(self, said: Said, texts: Tensor, tower: Tower, images: Tensor) -> Tensor:
        """Scores of `no match` and `match`, (P, 2) float32, of the pairs (texts[i], images[i]): row numbers (P,) int64.

        By model.matching: of the class token of the text's fusion layers (release), or of the attention module's output
        for image and caption (paper, eq. 10).
        """
        pair = Said(tokens=said.tokens[texts], mask=said.mask[texts])
        image = Tower(cls=tower.cls[images], tokens=tower.tokens[images])
        if self.config.matching == "fusion":
            read = self.fused_tokens(pair, image.tokens)[:, 0]
        else:
            read = self.attend(image, [(pair, torch.arange(len(texts), device=texts.device))]).flatten(1)
        return float32_linear(read, self.match_head.weight, self.match_head.bias)

    def compared(self, combination: Combination) -> slice:
        """Captions are compared in the caption part, everything else in the identity part."""
        return slice(self.identity_dim, None) if combination == (Modality.TEXT,) else slice(0, self.identity_dim)

    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        """Encode all images in one pass, whatever they are told, and captions; each distinct instruction once.

        The tokens are what `match` reads: class token and patches of an image, the pieces of a caption.
        """
        unknown = [modality.name for modality in inputs if modality not in IrmConfig.modalities]
        if unknown:
            raise UserError(
                f"the irm family encodes RGB and NIR images and texts, not {', '.join(unknown)}; use another family "
                "for such queries"
            )
        encoded: dict[Modality, Tokens] = {}
        images = [modality for modality in inputs if modality is not Modality.TEXT]
        if images:
            sizes = [len(inputs[modality]) for modality in images]
            joined = inputs[images[0]] if len(images) == 1 else torch.cat([inputs[modality] for modality in images])
            tower, pooled = self._image_features(joined, self._told(images, sizes, instructions or {}, joined.device))
            parts = zip(images, tower.tokens.split(sizes), pooled.split(sizes), strict=True)
            encoded = {modality: Tokens(tokens=tokens, pooled=part) for modality, tokens, part in parts}
        if Modality.TEXT in inputs:
            encoded[Modality.TEXT] = self._caption_features(inputs[Modality.TEXT])
        return {modality: encoded[modality] for modality in inputs}

    def _told(
        self,
        images: Sequence[Modality],
        sizes: Sequence[int],
        instructions: Mapping[Modality, Instructions],
        device: torch.device,
    ) -> list[Told]:
        """Instructions of all image rows, stacked; what several modalities share (one tensor) is encoded once."""
        if not self.follows_instructions:
            refuse_instructions("IRM with model.editing=none and model.attention=none", any(instructions.values()))
        said: dict[tuple[Modality, int], Said] = {}
        rows: dict[tuple[Modality, int], Tensor] = {}
        first = 0
        for modality, size in zip(images, sizes, strict=True):
            for instruction in instructions.get(modality, ()):
                key = (instruction.modality, id(instruction.inputs))
                if key not in said:
                    said[key] = self.encode_instructions(instruction.modality, instruction.inputs)
                    rows[key] = torch.full((sum(sizes),), -1, dtype=torch.int64, device=device)
                rows[key][first : first + size] = instruction.rows
            first += size
        return [(said[key], rows[key]) for key in said]

    def _image_features(self, images: Tensor, told: Sequence[Told]) -> tuple[Tower, Tensor]:
        given = gather_given(told)
        tower = self.image(images, given, self.checkpoint_activations)
        identity = self._attend(tower, given)
        caption = self._caption_part(self.image_caption_feature(tower.cls))
        if self.config.feature == "neck":
            alone, streams = self.neck(tower.cls)[:, None].expand_as(identity), self._neck_streams
            identity = alone if given is None else torch.where(given.told[:, None, None], streams(identity), alone)
        if given is not None:
            caption = torch.where(given.told[:, None], 0, caption)
        return tower, torch.cat([identity.flatten(1).float(), caption], dim=1)

    def _caption_features(self, ids: Tensor) -> Tokens:
        said = self.encode_instructions(Modality.TEXT, ids)
        caption = self._caption_part(self.caption_feature(said))
        pooled = torch.cat([caption.new_zeros(len(caption), self.identity_dim), caption], dim=1)
        return Tokens(tokens=said.tokens, pooled=pooled, mask=said.mask)

    def _caption_part(self, feature: Tensor) -> Tensor:
        # Normalised, the Euclidean distance ranks as the inner product of the projections, by which both forms compare.
        return F.normalize(feature, dim=1) if self.similarity == "euclidean" else feature

    def rescores(self, combination: Combination) -> bool:
        """Captions, where there is something that looks at caption and image together."""
        together = self.config.matching == "fusion" or self.config.attention != "none"
        return combination == (Modality.TEXT,) and together

    def match(self, text: Tokens, image: Tokens) -> Tensor:
        """Return (P,) float32, the score of `match` for each pair. Source: release (the raw logit, not a share)."""
        mask = text.mask if text.mask is not None else torch.ones(text.tokens.shape[:2], dtype=torch.bool)
        said = Said(tokens=text.tokens, mask=mask.to(text.tokens.device))
        pairs = torch.arange(len(text.tokens), device=text.tokens.device)
        tower = Tower(cls=image.tokens[:, 0], tokens=image.tokens)
        return self.match_logits(said, pairs, tower, pairs)[:, 1]

    def attention_maps(
        self, modality: Modality, inputs: Tensor, instructions: Instructions = (), captions: Tensor | None = None
    ) -> AttentionMap:
        """Return where the model looks in images (B, 3, H, W); see `MapsAttention`. Source: paper, Fig. 11.

        Under an instruction: the class token among the patches in the last editing layer, without editing that of the
        attention module. Beside captions: the caption's class token in the last layer that attends to the image.
        """
        if captions is None:
            told = self._told([modality], [len(inputs)], {modality: instructions}, inputs.device)
            given = gather_given(told)
            if given is None or self.config.editing != "none":
                name = "image layer" if self.config.editing == "none" else "editing layer"
                weights = self.image.class_attention(inputs, given)
                return self._map(weights, f"{name} {self.config.layers}, class token")
            tower = self.encode_images(inputs, told)
        else:
            said, tower = self.encode_instructions(Modality.TEXT, captions), self.encode_images(inputs)
            if self.text_encoder.spec.fusion_layers and self.config.matching == "fusion":
                weights = self.text_encoder.cross_attention(said, tower.tokens)[:, 1:]
                return self._map(weights, "last cross-attention of the text encoder, class token of the caption")
            given = gather_given([(said, torch.arange(len(inputs), device=inputs.device))])
        if given is None or self.config.attention == "none":
            raise UserError(
                "this model has no part that looks at an image under this instruction or caption "
                "(model.attention=none); show the image without it"
            )
        weights = self.attention.image_attention(tower, given, self._attention_blocks())
        token = "the instruction's class token" if self.config.attention == "dual" else "class token"
        return self._map(weights, f"last layer of the attention module, {token}")

    def _map(self, weights: Tensor, module: str) -> AttentionMap:
        return AttentionMap(weights=weights.unflatten(1, self.image.spec.grid), module=module)

    def _stacks(self) -> Iterator[nn.ModuleList]:
        yield from (self.image.blocks, self.clothes.blocks, self.attention.blocks)
        yield from (self.text_encoder.layers, self.text_encoder.fusion)

    def compile_blocks(self, **options: Any) -> None:
        """Compile every transformer block in place; the names of the state stay."""
        for stack in self._stacks():
            for block in stack:
                block.compile(**options)
