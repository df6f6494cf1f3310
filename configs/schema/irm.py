"""Sections `model` and `objective` of the families that follow instructions (Instruct-ReID: IRM).

Where the paper is silent or the release differs, the option says which value is whose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from configs.schema.checks import require
from configs.schema.family import FollowsInstructions, ModelSection, ObjectiveSection, ReadsText
from configs.vocabulary import Modality, Task

if TYPE_CHECKING:
    from configs.schema.experiment import ExperimentConfig


@dataclass(frozen=True)
class IrmConfig(FollowsInstructions, ReadsText, ModelSection):
    """Sizes and forms of IRM. The defaults are the paper's: a ViT-B/16 of PASS at 256x128 and ALBEF's encoders."""

    modalities: ClassVar[tuple[Modality, ...]] = (Modality.RGB, Modality.NIR, Modality.TEXT)
    """What it encodes; one tower for both kinds of image, TEXT as instruction and as caption."""
    init: str = "random"
    """Image tower: random, pass:FILE, timm:NAME (a ViT of this width, whatever it was trained on)."""
    text_init: str = "random"
    """Text encoder: random, albef:FILE, bert:FOLDER-OR-HUB-ID."""
    clothes_init: str = "random"
    """Encoder of clothes pictures: random, albef:FILE, timm:NAME."""
    init_std: float = 0.02
    """Standard deviation of linear maps that are drawn. In proportion to the root of 768 / width a narrow model passes
    on as much of its input."""
    image_size: tuple[int, int] = (256, 128)
    """Height and width in pixels."""
    tokenizer: str = "clip"
    """clip, or bert:FOLDER-OR-HUB-ID (a folder that holds vocab.txt)."""
    text_length: int = 70
    """Ids of a text; longer ones are cut."""
    text_positions: int = 512
    """Rows of the text encoder's position embedding, at least `text_length`."""
    width: int = 768
    """Of all towers."""
    heads: int = 12
    """Attention heads of all towers."""
    layers: int = 12
    """Of the image tower."""
    clothes_layers: int = 12
    """Of the encoder of clothes pictures."""
    text_layers: int = 6
    """Of the text encoder: those that see text alone."""
    fusion_layers: int = 6
    """Text layers behind these that also attend to an image's tokens; 0 = none."""
    text_mlp_ratio: float = 4.0
    """Width of the MLPs of all text layers, in widths."""
    attention_layers: int = 2
    """Of the attention module."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    part_tokens: int = 3
    """Further tokens of the image tower beside the class token (PASS has three); their outputs are not used."""
    stem: Literal["patch", "residual"] = "patch"
    """How patches become tokens: a linear map, or for small models four residual stages of `stem_width` channels with
    the same stride."""
    stem_width: int = 16
    """Channels of the first stage of the residual stem."""
    dropout: float = 0.1
    """Of the text encoder, attention included."""
    drop_path: float = 0.1
    """Of the image tower's last block, rising linearly from 0 at the first."""
    editing: Literal["own", "shared", "none"] = "own"
    """How the image tower attends to the instruction: keys and values by maps of their own (paper, eq. 5), by those of
    the image (the authors' first release), or not at all (released IRM; the ablation of Table VIII)."""
    gate: Literal["raw", "tanh"] = "raw"
    """The zero-initialised gate of eq. 4 as it is, or its tanh (the authors' first release)."""
    gates: Literal["head", "layer"] = "head"
    """A gate for each attention head of each layer, or one for each layer."""
    attention: Literal["joint", "dual", "none"] = "joint"
    """Attention module: image and instruction tokens in one stack, the image's class token out (ours, the paper does
    not say); two streams with exchanged class tokens, both out (release); or none."""
    attention_weights: Literal["own", "image"] = "own"
    """Blocks of the attention module: its own, or the image tower's first and last (what the release runs)."""
    mask_padding: bool = True
    """Whether the attention module is kept from the padding of texts; false = release."""
    encoder: Literal["trained", "frozen"] = "trained"
    """The instruction encoders; the paper calls them fixed, the release trains them."""
    heads_shared: bool = False
    """Whether one neck and one classifier serve the image tower's feature and the attention module's (IRM++)."""
    feature: Literal["pooled", "neck"] = "pooled"
    """What is compared in retrieval: the feature before the neck or after it (release)."""
    similarity: Literal["cosine", "euclidean"] = "cosine"
    """euclidean: by squared distance of the features as they are (release)."""
    caption_dim: int = 256
    """Width of the space in which captions are compared with images."""
    matching: Literal["attention", "fusion"] = "attention"
    """What the matching head reads: the attention module's output for image and caption (paper, eq. 10), or the class
    token of the text layers that attend to the image (release)."""
    instruction_statistics: Literal["imagenet", "clip"] = "imagenet"
    """By which statistics clothes pictures are normalised; the release trains with CLIP's and tests with ImageNet's."""

    @property
    def follows(self) -> bool:
        """With a part that looks at the instruction."""
        return self.editing != "none" or self.attention != "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "heads", "layers", "clothes_layers", "text_layers", "attention_layers", "stem_width"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(self.width % self.heads == 0, "model.width", self.width, "a multiple of model.heads")
        for name in ("image_size", "instruction_size"):
            sides = getattr(self, name)
            require(
                min(sides) >= self.patch_size and all(side % self.patch_size == 0 for side in sides),
                f"model.{name}",
                sides,
                "multiples of model.patch_size",
            )
        require(
            self.stem == "patch" or self.patch_size == 16,
            "model.patch_size",
            self.patch_size,
            "16, the stride of the residual stem",
        )
        for name in ("fusion_layers", "part_tokens"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or larger")
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "at least 0 and below 1")
        require(
            self.text_positions >= self.text_length,
            "model.text_positions",
            self.text_positions,
            "at least model.text_length",
        )
        require(self.text_mlp_ratio > 0, "model.text_mlp_ratio", self.text_mlp_ratio, "above 0")
        require(
            self.attention_weights == "own" or self.attention_layers == 2,
            "model.attention_layers",
            self.attention_layers,
            "2 with model.attention_weights=image, whose blocks are the first and the last",
        )
        require(self.init_std > 0, "model.init_std", self.init_std, "above 0")
        require(self.caption_dim >= 1, "model.caption_dim", self.caption_dim, "at least 1")
        require(
            self.matching != "fusion" or self.fusion_layers > 0,
            "model.fusion_layers",
            self.fusion_layers,
            "at least 1 with model.matching=fusion, whose head reads them",
        )


LOSSES = ("id", "id_out", "triplet", "triplet_out", "contrast", "match", "masked_language", "replaced")
"""id, triplet: of the image tower's feature F. The same with _out: of the attention module's. The others are those of
captions (T2I)."""


@dataclass(frozen=True)
class CaptionOptions(ObjectiveSection):
    """Of the losses of captions. The defaults are the paper's contrast, and the released code's for the others."""

    queue: int = 0
    """Rows of the queues of `contrast`; 0 = the batch alone (paper). 65536 in the release."""
    momentum: float = 0.995
    """Of the copy of the text encoder that fills the queues and teaches, moved once per optimiser step."""
    distillation: float = 0.4
    """Share of the copy's own answers in the targets of `contrast` and `masked_language`; without a queue 0 in
    `contrast`."""
    mask_share: float = 0.15
    """Share of a caption's tokens that `masked_language` hides."""
    replace_share: float = 0.3
    """Share of a caption's tokens that are hidden before `replaced` lets the copy fill them in."""
    distillation_axis: Literal["vocabulary", "sequence"] = "vocabulary"
    """Along which `masked_language` compares with the copy; the release takes the sequence, which upstream later
    corrected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.queue >= 0, "objective.queue", self.queue, "0 (the batch alone) or a number of rows")
        require(0 <= self.momentum < 1, "objective.momentum", self.momentum, "at least 0 and below 1")
        require(0 <= self.distillation <= 1, "objective.distillation", self.distillation, "between 0 and 1")
        for name in ("mask_share", "replace_share"):
            require(0 < getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "above 0, at most 1")


@dataclass(frozen=True)
class IrmObjectiveConfig(CaptionOptions):
    """What IRM minimises. The defaults are the paper's (eqs. 9 and 10, alpha 3)."""

    losses: dict[str, float] = field(
        default_factory=lambda: {
            "id": 1.0,
            "id_out": 1.0,
            "triplet": 3.0,
            "triplet_out": 3.0,
            "contrast": 1.0,
            "match": 1.0,
        }
    )
    """Weight of each loss; alpha of the paper is that of both triplets. Two streams of the attention module count half
    each."""
    triplet: Literal["released", "literal", "plain"] = "released"
    """Adaptive triplet as the released code has it, eqs. 7 and 8 over all pairs of references, or batch-hard without
    instructions."""
    margin: float = 0.3
    """Of the triplet, times the difference of the instructions' cosines where it is adaptive."""
    triplet_feature: Literal["pooled", "neck"] = "pooled"
    """What triplet_out compares: the attention module's output before the neck, or after it (release)."""
    identity_scope: Literal["union", "task"] = "union"
    """Identities that a row is told from: all, or those of its task (the release has a classifier for each task)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin >= 0, "objective.margin", self.margin, "0 or larger")

    def check(self, experiment: ExperimentConfig) -> None:
        """Raise ValueError for triplets of batches with one row for each identity, and for losses of parts that the
        model does not have.
        """
        assert isinstance(experiment.model, IrmConfig)
        check_triplets(experiment, [name for name in ("triplet", "triplet_out") if self.losses.get(name)])
        check_captions(experiment.model, self.losses)


def check_triplets(experiment: ExperimentConfig, names: Sequence[str]) -> None:
    """Raise ValueError for the triplet losses `names` in batches with one row for each identity."""
    train = experiment.train
    require(
        not names or train.sampler in ("identity", "tasks", "modality"),
        "train.sampler",
        train.sampler,
        f"identity or tasks with the losses {' and '.join(names)}, which need several rows of each identity",
    )
    alone = {
        task: count for task, count in train.task_instances.items() if count < 2 and task != Task.T2I.value
    } or train.instances < 2
    require(
        not names or not alone,
        "train.task_instances" if isinstance(alone, dict) else "train.instances",
        train.task_instances if isinstance(alone, dict) else train.instances,
        f"at least 2 with the losses {' and '.join(names)}: one row for each identity has no positive",
    )


def check_captions(model: IrmConfig, losses: Mapping[str, float]) -> None:
    """Raise ValueError for losses of captions that read parts which the model does not have."""
    by_fusion = [name for name in ("masked_language", "replaced") if losses.get(name)]
    require(
        not by_fusion or model.fusion_layers > 0,
        "model.fusion_layers",
        model.fusion_layers,
        f"at least 1 with the losses {' and '.join(by_fusion)}, which read text layers that attend to the image",
    )
    require(
        not losses.get("match") or model.matching == "fusion" or model.attention != "none",
        "model.attention",
        model.attention,
        "joint or dual with the loss match and model.matching=attention, whose head reads the attention module",
    )
