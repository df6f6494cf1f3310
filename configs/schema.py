"""Every option of an experiment, its type, its range and its default; the one home of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from configs.vocabulary import Family, Modality, Task


def _require(condition: bool, key: str, value: Any, rule: str) -> None:
    if not condition:
        raise ValueError(f"{key} = {value!r}: must be {rule}")


@dataclass(frozen=True)
class DataConfig:
    """Where the data are and how they are read."""

    dataset: str = "orbench"
    """Name of the dataset's reader."""
    root: str = "data"
    """Folder that holds the dataset's own folder (for ORBench: the folder that contains ORBench/)."""
    val_fraction: float = 0.1
    """Share of training identities cut off for validation when train.select is val."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: end the run, or be left out, counted and listed."""
    workers: int = -1
    """Loader processes for each loader; -1 chooses by the cores left beside the compute threads."""
    cache_dir: str = ""
    """Folder of the memory-mapped uint8 cache of decoded images; empty = no cache."""
    protocols: tuple[str, ...] = ()
    """Names of the protocols that are evaluated; empty = the data set's default ones. ORBench has one only."""
    variant: Literal["", "v1", "v2", "detected", "labeled"] = ""
    """MSMT17's version or CUHK03's boxes; empty = whichever is there."""
    merge_val: bool = True
    """MSMT17: train on list_train and list_val, as most recent work; false = list_train only. SYSU-MM01: exp/train_id
    and exp/val_id likewise.
    """
    trial: int = 1
    """RegDB: which of the ten splits."""
    members: tuple[str, ...] = ()
    """Data sets (or tasks of omnireid) of a joint test; empty = all that are found below data.root."""
    exclude: str = ""
    """File with one image path per line, relative to data.root: these images are left out of every part."""

    def __post_init__(self) -> None:
        _require(1 <= self.trial <= 10, "data.trial", self.trial, "1..10")
        _require(bool(self.root), "data.root", self.root, "the folder that holds the dataset's own folder")
        _require(0 <= self.val_fraction < 1, "data.val_fraction", self.val_fraction, "at least 0 and below 1")
        _require(self.workers >= -1, "data.workers", self.workers, "-1 (choose) or a number of processes")


@dataclass(frozen=True)
class InstructionConfig:
    """Instructions of the six tasks of OmniReID; a family that follows none encodes the images alone."""

    sentences: Literal["bank", "released"] = "bank"
    """Trad, CC and VI: twenty sentences of ours, one drawn per (seed, epoch, index), or the fixed strings of the
    released code.
    """
    test_sentence: int = 0
    """Which sentence of the bank is given at test time."""
    cc: Literal["bank", "image"] = "bank"
    """Clothes-changing: a sentence, or an image of the clothes as in the released code."""
    crop: Literal["none", "box"] = "box"
    """Where a data set ships no clothes image: refuse, or take the upper-body box (rows 15 to 55 %, full width)."""

    def __post_init__(self) -> None:
        _require(0 <= self.test_sentence < 20, "instruction.test_sentence", self.test_sentence, "0..19")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images and captions; each modality draws its own."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad_crop: int = 0
    """Black border in pixels, from which a window of the input size is cropped at random."""
    erase: float = 0.0
    """Probability of erasing one box (2 to 40 % of the area), filled after normalisation with the mean of the model's
    statistics.
    """
    channel: float = 0.0
    """Probability that a visible image becomes one of its channels or grey in all three (CAJ, ICCV 2021); infrared
    images never.
    """
    caption_mask: float = 0.0
    """Share of caption tokens that are masked (80 %), replaced (10 %) or kept (10 %)."""
    keep_eot: bool = True
    """Never mask the end token of an empty caption. False is the released form."""

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "channel", "caption_mask"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "between 0 and 1")
        _require(self.pad_crop >= 0, "augment.pad_crop", self.pad_crop, "0 or larger")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank experts of the shared vision transformer, one per image modality."""

    enabled: bool = True
    mode: Literal["mlp", "all"] = "mlp"
    """mlp: the two linears of the MLP. all: these and the attention's projections."""
    layers: int = 2
    """The last k blocks have experts."""
    rank: int = 4
    num_experts: int = 4
    scale: float | None = None
    """Factor of the low-rank product; empty = 1/rank."""
    train_base: bool = False
    """Train the base weights under the experts as well."""


@dataclass(frozen=True)
class Reid5oConfig:
    """Sizes of ReID5o. The defaults are CLIP ViT-B/16 at 384x128."""

    modalities: ClassVar[tuple[Modality, ...]] = tuple(Modality)
    """What it encodes."""
    init: str = "random"
    """Initial weights: random, FILE.pt (OpenAI archive), hf:DIRECTORY-OR-HUB-ID, open_clip:MODEL/TAG."""
    image_size: tuple[int, int] = (384, 128)
    """Height and width in pixels."""
    patch_size: int = 16
    stride: int = 16
    embed_dim: int = 512
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int | None = None
    """Empty = vision_width / 64. 8 reproduces checkpoints trained before 2026-01-08."""
    text_width: int = 512
    text_layers: int = 12
    text_heads: int | None = None
    text_length: int = 77
    vocab_size: int = 49408
    mmt_depth: int = 4
    """Transformer blocks of the fusion."""
    mmt_heads: int | None = None
    """Attention heads of the fusion; empty = embed_dim / 64, the reference's."""
    position_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of CLIP's position embedding; bilinear is the reference's."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        _require(
            min(self.image_size) >= self.patch_size, "model.image_size", self.image_size, "at least the patch size"
        )
        for name in (
            "patch_size",
            "stride",
            "embed_dim",
            "vision_width",
            "vision_layers",
            "text_width",
            "text_layers",
            "vocab_size",
            "mmt_depth",
        ):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        _require(self.text_length >= 3, "model.text_length", self.text_length, "at least 3 (start, one piece, end)")
        _require(self.lora.rank >= 1, "model.lora.rank", self.lora.rank, "at least 1")
        _require(
            self.lora.num_experts >= 4,
            "model.lora.num_experts",
            self.lora.num_experts,
            "at least 4, one per image modality",
        )
        _require(
            0 <= self.lora.layers <= self.vision_layers, "model.lora.layers", self.lora.layers, "0..model.vision_layers"
        )


@dataclass(frozen=True)
class VireidConfig:
    """The visible-infrared residual network. The defaults are IV-REID's, peculiarities included."""

    text_length: ClassVar[int] = 0
    """It reads no text."""
    modalities: ClassVar[tuple[Modality, ...]] = (Modality.RGB, Modality.NIR)
    """What it encodes."""
    init: str = "imagenet"
    """Initial weights: random, imagenet (torchvision's, downloaded once), or FILE.pth, a state dict of a torchvision
    ResNet.
    """
    image_size: tuple[int, int] = (384, 128)
    """Height and width in pixels."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    blocks: tuple[int, ...] | None = None
    """Blocks of the four stages; empty = those of the depth."""
    width: int = 64
    """Channels of the first stage."""
    conv_bias: bool = True
    """Biased convolutions, as the reference; they start at random even with ImageNet weights."""
    stem_relu: bool = False
    """ReLU after the stem's norm; the reference has none."""
    stem: Literal["shared", "two_stream"] = "shared"
    """One stem for both modalities, or one each (AGW)."""
    non_local: bool = False
    """AGW's non-local blocks in the second and third stage."""
    last_stride: int = 1
    neck: Literal["bn", "gn"] = "bn"
    neck_bias: bool = True
    classifier_bias: bool = True
    pooling: Literal["avg", "gem"] = "avg"
    feature: Literal["neck", "pooled"] = "neck"
    """What is compared in retrieval: the feature after the neck or before it."""
    head_width: int = 512
    """Hidden width of the modality heads; 0 = none."""

    def __post_init__(self) -> None:
        _require(min(self.image_size) >= 16, "model.image_size", self.image_size, "at least 16 pixels a side")
        _require(
            self.blocks is None or (len(self.blocks) == 4 and min(self.blocks) >= 1),
            "model.blocks",
            self.blocks,
            "four numbers, each at least 1",
        )
        _require(self.width >= 1, "model.width", self.width, "at least 1")
        _require(self.last_stride in (1, 2), "model.last_stride", self.last_stride, "1 or 2")
        _require(self.head_width >= 0, "model.head_width", self.head_width, "0 (no modality heads) or larger")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What ReID5o minimises."""

    losses: dict[str, float] = field(default_factory=lambda: {"mm_sdm": 1.0, "id": 1.0})
    """Weight of each loss. A losses table in a child file replaces the parent's."""
    temperature: float = 0.02
    """Temperature of sdm and itc in all forms (supitc keeps the reference's 0.07)."""
    combinations_per_step: int = 11
    """How many of the 11 fused combinations take part in a step, at least one of each size (3..11)."""

    def __post_init__(self) -> None:
        _require(bool(self.losses), "objective.losses", self.losses, "a table with at least one loss")
        _require(self.temperature > 0, "objective.temperature", self.temperature, "larger than 0")
        _require(
            3 <= self.combinations_per_step <= 11,
            "objective.combinations_per_step",
            self.combinations_per_step,
            "3..11",
        )


@dataclass(frozen=True)
class VireidObjectiveConfig:
    """What the visible-infrared baseline minimises."""

    losses: dict[str, float] = field(
        default_factory=lambda: {"id": 1.0, "modality_id": 1.0, "imitation": 1.0, "triplet": 1.0}
    )
    """Weight of each loss: id, modality_id, imitation (KL between the heads), triplet, weighted_triplet."""
    margin: float | None = 0.3
    """Margin of the triplet; empty = its soft form."""
    imitation_reduction: Literal["batchmean", "mean"] = "batchmean"
    """The reference's SYSU-MM01 script sums over classes (batchmean), its RegDB script takes the mean of all
    entries.
    """

    def __post_init__(self) -> None:
        _require(bool(self.losses), "objective.losses", self.losses, "a table with at least one loss")
        _require(self.margin is None or self.margin >= 0, "objective.margin", self.margin, "0 or larger, or empty")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time."""

    name: Literal["cosine", "linear", "exp", "poly", "poly_released", "step"] = "cosine"
    interval: Literal["epoch", "step"] = "epoch"
    """Change the rate once per epoch, as the reference, or at every optimiser step."""
    warmup_epochs: float = 5.0
    warmup_factor: float = 0.1
    warmup_method: Literal["linear", "constant"] = "linear"
    target_lr: float = 0.0
    power: float = 0.9
    milestones: tuple[int, ...] = (20, 50)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require(self.warmup_epochs >= 0, "schedule.warmup_epochs", self.warmup_epochs, "0 or larger")
        for name in ("warmup_factor", "target_lr", "power", "gamma"):
            _require(getattr(self, name) >= 0, f"schedule.{name}", getattr(self, name), "0 or larger")
        _require(
            all(epoch >= 0 for epoch in self.milestones) and list(self.milestones) == sorted(self.milestones),
            "schedule.milestones",
            self.milestones,
            "epochs in ascending order",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and the multipliers of the parameter policy."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-5
    eps: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 4e-5
    bias_weight_decay: float = 0.0
    new_module_lr_factor: float = 5.0
    """Multiplier for LoRA, fusion and classifier weights."""
    bias_lr_factor: float = 2.0
    """Multiplier for every bias; it replaces the factor for new modules, as released."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optimizer.lr", self.lr, "larger than 0")
        _require(self.eps > 0, "optimizer.eps", self.eps, "larger than 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "at least 0 and below 1")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "at least 0 and below 1")
        for name in ("weight_decay", "bias_weight_decay", "new_module_lr_factor", "bias_lr_factor"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or larger")


@dataclass(frozen=True)
class TrainConfig:
    """The run itself."""

    epochs: int = 60
    batch_size: int = 64
    """Rows of one forward pass; the effective batch is batch_size x accumulate for every loss but the contrastive
    ones.
    """
    accumulate: int = 1
    sampler: Literal["random", "identity", "modality", "tasks"] = "random"
    """random: a permutation of the records. identity: P identities x K rows. modality: P identities x (K infrared + K
    visible). tasks: identity batches of several tasks, put together."""
    instances: int = 4
    """K: rows per identity; under the modality sampler of each modality."""
    mixture: Literal["batch", "step"] = "batch"
    """Sampler tasks: every batch has rows of all tasks, or each batch is of one task."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Sampler tasks: task -> share of the rows, or of the batches; 0 leaves a task out, a task that is not named has
    1.
    """
    task_instances: dict[str, int] = field(default_factory=dict)
    """Sampler tasks: task -> rows per identity; train.instances where it is not named."""
    drop_last: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    checkpoint_activations: bool = False
    compile: bool = False
    freeze: tuple[str, ...] = ()
    """Patterns (regular expressions that match the whole name) of parameters that are not trained."""
    init_from: str = ""
    """Run directory whose weights (best, else last) start this run; nothing else is taken from it."""
    select: Literal["val", "test", "last"] = "val"
    """What chooses `best`: an identity-disjoint validation split, the test set (then every result says so), or the last
    epoch.
    """
    eval_period: int = 5
    """Epochs between two evaluations during training."""
    log_period: int = 20
    """Steps between two log lines; metrics.jsonl has every step."""
    max_steps: int = 0
    """Stop after so many steps; 0 = no limit. For trials and benchmarks."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "eval_period", "log_period"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _require(self.batch_size >= 2, "train.batch_size", self.batch_size, "at least 2")
        _require(self.instances >= 1, "train.instances", self.instances, "at least 1")
        _require(
            self.sampler != "identity" or self.batch_size % self.instances == 0,
            "train.batch_size",
            self.batch_size,
            "a multiple of train.instances",
        )
        _require(
            self.sampler != "modality" or self.batch_size % (2 * self.instances) == 0,
            "train.batch_size",
            self.batch_size,
            "a multiple of 2 x train.instances under the modality sampler",
        )
        for name, lowest in (("task_weights", 0), ("task_instances", 1)):
            table = getattr(self, name)
            _require(
                set(table) <= {task.value for task in Task},
                f"train.{name}",
                table,
                f"by task: {', '.join(task.value for task in Task)}",
            )
            _require(
                all(math.isfinite(value) and value >= lowest for value in table.values()),
                f"train.{name}",
                table,
                f"finite numbers, at least {lowest}",
            )
        _require(self.clip_norm >= 0, "train.clip_norm", self.clip_norm, "0 (off) or larger")
        _require(self.max_steps >= 0, "train.max_steps", self.max_steps, "0 (no limit) or larger")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = 512
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ap: Literal["sum", "trapezoid"] = "sum"
    """Average precision: the reference's sum form, or the trapezoid of the Oxford protocol."""
    memory_mb: int = 1024
    """Budget of one block of similarities and its working copies."""
    cache_device_mb: int = 2048
    """Token cache on the compute device; what exceeds it goes to host memory, then to disk."""
    cache_host_mb: int = 8192
    max_rank: int = 50
    thresholds: tuple[float, ...] = ()
    """tau of mAP@tau, for data whose queries and gallery have annotations, for instance [0.25, 0.5, 0.75]; empty =
    none.
    """
    relevance: str = "tfidf"
    """What compares annotations that are texts: tfidf, or t_s:FOLDER-OR-HUB-ID, t_s_centred:FOLDER-OR-HUB-ID (CLS of a
    BERT).
    """
    no_positive: Literal["zero", "zero_matched", "skip"] = "zero_matched"
    """mAP@tau of a query without a positive at tau: 0; 0 unless its person is not searched at all; or left out."""
    ap_depth: int = 0
    """AP sees only so many ranks after the exclusion (the n of mAP@tau); 0 = all."""
    ap_topk: int = 0
    """Further rows `[ap_topk=N]` with the released IRM evaluator's AP, cut before the exclusion (500 there); 0 =
    none.
    """
    flip: bool = False
    """Further rows `[flip]`: each feature is the mean of the image's and of its mirror image's."""
    rerank: bool = False
    """Further rows `[re-ranked]`: k-reciprocal re-ranking."""
    rerank_k1: int = 20
    rerank_k2: int = 6
    rerank_lambda: float = 0.3

    def __post_init__(self) -> None:
        for name in ("batch_size", "memory_mb", "max_rank", "rerank_k1", "rerank_k2"):
            _require(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "at least 1")
        for name in ("cache_device_mb", "cache_host_mb", "ap_depth", "ap_topk"):
            _require(getattr(self, name) >= 0, f"eval.{name}", getattr(self, name), "0 or larger")
        _require(0 <= self.rerank_lambda <= 1, "eval.rerank_lambda", self.rerank_lambda, "between 0 and 1")
        _require(
            all(math.isfinite(tau) for tau in self.thresholds), "eval.thresholds", self.thresholds, "finite numbers"
        )


MODEL_CONFIGS: dict[Family, type] = {Family.REID5O: Reid5oConfig, Family.VIREID: VireidConfig}
"""Section `model` of each family."""

OBJECTIVE_CONFIGS: dict[Family, type] = {Family.REID5O: ObjectiveConfig, Family.VIREID: VireidObjectiveConfig}
"""Section `objective` of each family."""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, complete. Sections are dataclasses of this module."""

    family: Family
    name: str
    output_dir: str
    seed: int
    data: DataConfig
    instruction: InstructionConfig
    augment: AugmentConfig
    model: Any
    objective: Any
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalConfig

    def __post_init__(self) -> None:
        if self.family is not Family.VIREID:
            return
        _require(
            self.train.sampler in ("modality", "tasks"),
            "train.sampler",
            self.train.sampler,
            "modality (or tasks) for the family vireid, whose batches need visible and infrared images of each "
            "identity",
        )
        by_heads = [name for name in ("modality_id", "imitation") if self.objective.losses.get(name)]
        _require(
            self.model.head_width > 0 or not by_heads,
            "model.head_width",
            self.model.head_width,
            f"above 0 with the losses {' and '.join(by_heads)}, which are those of the modality heads",
        )
