"""Sections `data`, `instruction` and `augment`: where the data are and how they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.schema.checks import require


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
    cache_gb: float = 200.0
    """Largest size of data.cache_dir, and of gallery_cache/ of a run: what was used longest ago goes; 0 = no limit."""
    cache_days: float = 90.0
    """Entries of these caches that were not used for so many days go; 0 = they stay."""
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
        require(1 <= self.trial <= 10, "data.trial", self.trial, "1..10")
        require(bool(self.root), "data.root", self.root, "the folder that holds the dataset's own folder")
        require(0 <= self.val_fraction < 1, "data.val_fraction", self.val_fraction, "at least 0 and below 1")
        require(self.cache_gb >= 0, "data.cache_gb", self.cache_gb, "0 (no limit) or a size in GB")
        require(self.cache_days >= 0, "data.cache_days", self.cache_days, "0 (no limit) or a number of days")
        require(self.workers >= -1, "data.workers", self.workers, "-1 (choose) or a number of processes")


@dataclass(frozen=True)
class InstructionConfig:
    """Instructions of the six tasks of OmniReID; a family that follows none encodes the images alone."""

    sentences: Literal["bank", "released", "fixed"] = "bank"
    """Trad, CC and VI: twenty sentences of ours, one drawn per (seed, epoch, index); the fixed strings of the released
    code; or `test_sentence` of the bank in training too.
    """
    test_sentence: int = 0
    """Which sentence of the bank is given at test time."""
    cc: Literal["bank", "image"] = "bank"
    """Clothes-changing: a sentence, or an image of the clothes as in the released code."""
    crop: Literal["none", "box"] = "box"
    """Where a data set ships no clothes image: refuse, or take the upper-body box (rows 15 to 55 %, full width)."""
    pairing: Literal["own", "other"] = "own"
    """Training, CTCC and LI: an instructed row has its own annotation, or that of the person in other clothes."""
    typing: Literal["all", "coin", "lists"] = "all"
    """Training: all rows but those of T2I are given their annotation as instruction, or about half of them, drawn per
    (seed, epoch, index), while the others are as gallery images are: not instructed (coin), or as in the lists, with
    what belongs to the image itself, under CTCC its upper-body box (lists).
    """
    given: Literal["right", "shuffled", "none"] = "right"
    """At test what queries are given: their instruction, that of another person's query, or none. What is relevant
    never changes.
    """
    gallery: Literal["protocol", "none"] = "protocol"
    """At test what gallery images are given: what the protocol says, or nothing."""

    def __post_init__(self) -> None:
        require(0 <= self.test_sentence < 20, "instruction.test_sentence", self.test_sentence, "0..19")
        require(
            self.typing != "lists" or self.crop == "box",
            "instruction.typing",
            self.typing,
            "all or coin with instruction.crop=none: gallery lines of CTCC are given the upper-body box of their image",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images and captions; each modality draws its own."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad_crop: int = 0
    """Black border in pixels, from which a window of the input size is cropped at random."""
    erase: float = 0.0
    """Probability of erasing one box."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest share of the area that the box has."""
    erase_fill: Literal["mean", "random"] = "mean"
    """What fills it: after normalisation the mean of the model's statistics, or before it one colour drawn at random
    (the released code of Instruct-ReID).
    """
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of the random change of brightness, contrast, saturation and hue, for instance [0.5, 0.5, 0.5, 0.4] in
    the released code of Instruct-ReID; 0 = none.
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
            require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "between 0 and 1")
        low, high = self.erase_area
        require(0 < low <= high < 1, "augment.erase_area", self.erase_area, "two shares above 0 and below 1, ascending")
        require(
            all(math.isfinite(value) and value >= 0 for value in self.jitter) and self.jitter[3] <= 0.5,
            "augment.jitter",
            self.jitter,
            "four numbers, 0 or larger, the last (hue) at most 0.5",
        )
        require(0 <= self.pad_crop <= 512, "augment.pad_crop", self.pad_crop, "0..512")
