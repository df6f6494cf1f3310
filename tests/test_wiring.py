"""Covers: configs/schema/experiment, configs/schema/family, datasets/build, solver/training/engine,
solver/training/families. Every option of every section, given an unusual value, is seen where it acts.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from instructed_family import register, write_data
from irm_wiring import irm, irm_small, irmpp
from official_trees import market1501, msmt17, prcc, regdb, sysu
from scripts import global_state_kept
from tiny_orbench import write_orbench
from trees import plant
from wiring import (
    NIR,
    RGB,
    TEXT,
    Assembled,
    annotations_of,
    argument,
    asked_and_used_workers,
    assembled,
    border,
    evaluated,
    flipped,
    foreign_annotations,
    frozen_parts,
    identities_of,
    instructed_rows,
    measured,
    neck_or_pooled,
    nested,
    pictures_of,
    rate,
    schema_keys,
    seeds_of,
    sources_of,
    tasks_of,
)
from wiring_table import GIVEN, OPTIMIZER, Experiment, Option

from configs.load import build_experiment
from configs.schema.experiment import FAMILIES
from configs.schema.vireid import VireidConfig
from configs.vocabulary import Family, Task
from datasets.instructions import BANK, RELEASED
from model.build import build_model
from model.resnet import gem_pool
from model.weights.clip_sources import read_clip
from model.weights.reid5o import read_flat_config, read_official_state, reid5o_sizes
from solver.commands.train import run_training
from solver.reports.published import Published
from solver.training.engine import assemble
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("keep_logging")
CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden" / "reid5o" / "caseA"


def reid5o(root: Path) -> Experiment:
    """A run over ORBench that is evaluated on its test lists."""
    write_orbench(root, identities=4, test_identities=2, images=4)
    rows: dict[str, Option] = {
        "seed": Option(11, seeds_of, {11}),
        "published": Option({"TEXT": {"mAP": 12.5}}, lambda run: Published.of(run.job.config).figures),
        "published_note": Option("by a paper", lambda run: Published.of(run.job.config).note),
        "data.root": Option(str(root), lambda run: str(root) * all(root in path.parents for path in pictures_of(run))),
    }
    return Experiment(
        "reid5o",
        rows | reid5o_model(root / "words") | reid5o_run(),
        {"data.workers": 0, "schedule.target_lr": 0.0001},
        fit=True,
    )


def reid5o_model(words: Path) -> dict[str, Option]:
    qkv, expert = "vision.blocks.2.attn.qkv", "vision.blocks.2.mlp.fc1"
    return {
        "model.tokenizer": Option(f"bert:{words}", lambda run: f"bert:{run.job.reader.texts.tokenizer.vocab}"),
        "model.text_length": Option(9, lambda run: len(run.read[0].inputs[TEXT])),
        "model.vocab_size": Option(500, lambda run: run.shape("text.token_embedding.weight")[0]),
        "model.image_size": Option((48, 24), lambda run: tuple(run.read[0].inputs[RGB].shape[1:])),
        "model.patch_size": Option(12, lambda run: run.module("tokenizers.rgb.conv").kernel_size[0]),
        "model.stride": Option(6, lambda run: run.module("tokenizers.rgb.conv").stride[0]),
        "model.embed_dim": Option(20, lambda run: run.shape("classifier.weight")[1]),
        "model.vision_width": Option(24, lambda run: run.shape("vision.projection")[0]),
        "model.vision_layers": Option(3, lambda run: len(run.module("vision.blocks"))),
        "model.vision_heads": Option(6, lambda run: run.module("vision.blocks.0.attn").num_heads),
        "model.text_width": Option(16, lambda run: run.shape("text.projection")[0]),
        "model.text_layers": Option(2, lambda run: len(run.module("text.blocks"))),
        "model.text_heads": Option(4, lambda run: run.module("text.blocks.0.attn").num_heads),
        "model.mmt_depth": Option(2, lambda run: len(run.module("fusion.blocks"))),
        "model.mmt_heads": Option(5, lambda run: run.module("fusion.attention").num_heads),
        "model.lora.mode": Option("all", lambda run: "all" if hasattr(run.module(qkv), "lora_up") else "mlp"),
        "model.lora.layers": Option(
            1, lambda run: sum(hasattr(block.mlp.fc1, "lora_up") for block in run.module("vision.blocks"))
        ),
        "model.lora.rank": Option(3, lambda run: run.shape(f"{expert}.lora_down.0")[0]),
        "model.lora.num_experts": Option(5, lambda run: len(run.module(f"{expert}.lora_down"))),
        "model.lora.scale": Option(0.7, lambda run: run.module(expert).scale),
        "model.lora.train_base": Option(True, lambda run: run.module(expert).weight.requires_grad),
    }


def reid5o_run() -> dict[str, Option]:
    return {
        "augment.flip": Option(1.0, flipped),
        "augment.erase": Option(1.0, lambda run: min(float(row.boxes[NIR][2] > 0) for row in run.read)),
        "augment.channel": Option(
            1.0, lambda run: min(float(bool((row.inputs[RGB] == row.inputs[RGB][:1]).all())) for row in run.read)
        ),
        "augment.caption_mask": Option(0.9, argument("mask_caption", "probability")),
        "augment.keep_eot": Option(False, argument("mask_caption", "keep_eot")),
        "objective.losses": Option({"mm_sdm": 0.5, "id": 0.25}, lambda run: run.job.objective.weights),
        "objective.ramps": Option({"id": (0, 9)}, lambda run: run.lines[0]["loss/id"], 0.0),
        "objective.temperature": Option(0.3, argument("sdm_loss", "temperature")),
        "objective.combinations_per_step": Option(5, lambda run: len(run.job.objective.combinations(0))),
        "optimizer.name": Option("adamw", lambda run: type(run.job.optimizer).__name__.lower()),
        "optimizer.eps": Option(1e-5, lambda run: run.job.optimizer.defaults["eps"]),
        "optimizer.betas": Option((0.8, 0.95), lambda run: run.job.optimizer.defaults["betas"]),
        **OPTIMIZER,
        # Three epochs of two steps: the first is warm-up, then (1 - share) ** power approaches the target.
        "schedule.name": Option("poly", rate(3), 0.0001 + 0.0019 * 0.75**2),
        "schedule.power": Option(2.0, rate(4), 0.0001 + 0.0019 * 0.5**2),
        "schedule.target_lr": Option(0.0001, rate(5), 0.0001 + 0.0019 * 0.25**2),
        "schedule.interval": Option("step", lambda run: "step" if rate(2)(run) != rate(3)(run) else "epoch"),
        "schedule.warmup_epochs": Option(1.0, lambda run: [line["lr"] for line in run.lines].index(0.002) / 2),
        "schedule.warmup_factor": Option(0.25, lambda run: run.lines[0]["lr"] / 0.002),
        "schedule.warmup_method": Option("constant", rate(1), 0.0005),
        "train.epochs": Option(3, lambda run: run.lines[-1]["epoch"]),
        "train.batch_size": Option(4, lambda run: len(run.batches[0][0].person_ids)),
        "train.accumulate": Option(2, lambda run: len(run.batches[0])),
        "train.accumulate_features": Option(False, lambda run: bool(run.calls.get("joined"))),
        "train.sampler": Option("identity", identities_of, {2}),
        "train.instances": Option(2, lambda run: max(identities_of(run))),
        "train.precision": Option("bf16", argument("autocast", "precision")),
        "train.clip_norm": Option(0.5, argument("clip_grad_norm_", "max_norm")),
        "train.checkpoint_activations": Option(True, lambda run: bool(run.calls.get("checkpoint"))),
        "train.compile": Option(True, lambda run: len(run.calls.get("compile_blocks", ())) == 1),
        "train.freeze": Option(("text\\..*",), frozen_parts, {"text"}),
        "train.select": Option("test", lambda run: run.results[0].name),
        "train.eval_period": Option(2, lambda run: run.evaluated_after, [2, 3]),
        # Every fourth of six steps is one, in the second epoch.
        "train.save_minutes": Option(0.001, argument("StateFiles", "minutes")),
        "train.save_steps": Option(7, argument("StateFiles", "steps")),
        "train.keep_states": Option(3, argument("StateFiles", "keep")),
        "train.log_period": Option(4, lambda run: [call["epoch"] for call in run.calls["log_step"]], [1]),
        "eval.cache_device_mb": Option(3, lambda run: run.given("TokenCache", "budget").device_bytes / 2**20),
        "eval.cache_host_mb": Option(5, lambda run: run.given("TokenCache", "budget").host_bytes / 2**20),
        "eval.precision": Option("bf16", argument("encoding", "precision")),
    }


def clip_file(root: Path) -> Experiment:
    """ReID5o from a CLIP archive whose pictures are smaller, without experts."""
    write_orbench(root, identities=6, test_identities=2, images=3)
    sizes = reid5o_sizes(read_official_state(GOLDEN / "best.pth"), read_flat_config(GOLDEN / "configs.yaml"))
    base = {f"model.{name}": value for name, value in vars(sizes).items() if name not in ("init", "lora")}
    archive = GOLDEN / "clip_init.pt"
    return Experiment(
        "reid5o",
        {
            "model.init": Option(
                str(archive),
                lambda run: (
                    str(archive)
                    * torch.equal(
                        run.job.model.text.token_embedding.weight,
                        read_clip(str(archive)).tensors["token_embedding.weight"].float(),
                    )
                ),
            ),
            "model.position_resize": Option("bicubic", argument("load_clip", "position_resize")),
            "model.lora.enabled": Option(False, lambda run: any("lora" in name for name in run.job.model.state_dict())),
            "data.val_fraction": Option(0.34, lambda run: 6 - run.job.benchmark.num_identities, 2),
            "data.workers": Option(3, asked_and_used_workers, (3, True)),
            "data.cache_dir": Option(
                str(root / "cache"), lambda run: str(root / "cache") * any((root / "cache").rglob("*.*"))
            ),
            "data.cache_gb": Option(5.0, argument("build_cache", "gigabytes")),
            "data.cache_days": Option(3.0, argument("build_cache", "days")),
            "train.drop_last": Option(True, lambda run: run.job.loader.steps_per_epoch, 2),
        },
        {**base, "model.tokenizer": "bert:words", "data.root": str(root), "train.batch_size": 5},
    )


def unreadable(root: Path) -> Experiment:
    """ORBench with an image that is no image and one that is not there, in training and in the gallery."""
    write_orbench(root, identities=4, test_identities=2, images=2)
    for name in ("nir/0011/0.jpg", "vis/0015/0.jpg"):
        (root / "ORBench" / name).write_bytes(b"nothing")
    (root / "ORBench" / "vis/0012/1.jpg").unlink()
    return Experiment(
        "reid5o",
        {
            "data.on_error": Option(
                "skip", lambda run: (len(run.job.loader.skipped) > 0, len(run.results[0].skipped)), (True, 1)
            )
        },
        {**TINY_REID5O, "data.root": str(root), "data.workers": 0, "train.select": "test", "train.max_steps": 1},
        fit=True,
    )


TINY_REID5O = {
    "model.image_size": (32, 16),
    **{f"model.{name}": 32 for name in ("embed_dim", "vision_width", "text_width")},
    **{f"model.{name}": 1 for name in ("vision_layers", "text_layers", "mmt_depth", "lora.layers")},
    "model.text_length": 12,
}


FROM_FILE = "backbone.stages.1.0.conv1.weight"
"""A weight that a file of `torchvision_file` gives a value of its own; the run that reads it freezes it."""


def torchvision_file(path: Path, **sizes: Any) -> Path:
    """Save weights of a network of these sizes under torchvision's names, `FROM_FILE` a quarter."""
    config = VireidConfig(**{**sizes, "init": "random", "stem": "shared", "non_local": False})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(Family.VIREID, config, 2)
    # Not every weight is a quarter: such a map overflows when it is raised to GeM's power.
    torch.nn.init.constant_(model.get_parameter(FROM_FILE), 0.25)
    state = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    torch.save({torchvision_name(name): value for name, value in state.items()}, path)
    return path


def torchvision_name(name: str) -> str:
    plain = name.removeprefix("backbone.").removeprefix("stems.shared.")
    return re.sub(r"^stages\.(\d)", lambda stage: f"layer{int(stage[1]) + 1}", plain)


def vireid(root: Path) -> Experiment:
    """A run over SYSU-MM01 that ends after three steps."""
    sysu(root)
    return Experiment(
        "vireid",
        {
            "data.dataset": Option("sysu", lambda run: run.job.benchmark.name),
            "data.merge_val": Option(False, lambda run: run.job.benchmark.num_identities, 2),
            "data.protocols": Option(
                ("sysu-indoor-single-seeded",),
                lambda run: tuple({listed.protocol for listed in run.job.benchmark.splits["test"].query_lists}),
            ),
            "optimizer.name": Option("sgd", lambda run: type(run.job.optimizer).__name__.lower()),
            "optimizer.momentum": Option(0.7, lambda run: run.job.optimizer.defaults["momentum"]),
            **OPTIMIZER,
            # One step an epoch: 0, 1, 2.
            "schedule.name": Option("step", rate(0), 0.002),
            "schedule.milestones": Option((1, 2), rate(1), 0.0006),
            "schedule.gamma": Option(0.3, rate(2), 0.00018),
            "train.sampler": Option(
                "modality", lambda run: {len(b.rows[NIR]) for step in run.batches for b in step}, {4}
            ),
            "train.max_steps": Option(3, lambda run: len(run.batches)),
            "train.select": Option("last", lambda run: run.job.split, None),
            **vireid_model(root),
            **vireid_objective(),
        },
        {"data.root": str(root), "data.workers": 0, "schedule.warmup_epochs": 0.0, "train.batch_size": 8}
        | {"train.instances": 2, "train.freeze": (re.escape(FROM_FILE),)},
        fit=True,
    )


def vireid_model(root: Path) -> dict[str, Option]:
    sizes: dict[str, Any] = {"depth": 18, "blocks": (1, 2, 1, 1), "width": 6, "conv_bias": False}
    file = torchvision_file(root / "weights.pth", **sizes)
    stem, block = "backbone.stems.nir", "backbone.stages.0.0"
    return {
        "model.init": Option(str(file), lambda run: str(file) * bool((run.state[FROM_FILE] == 0.25).all())),
        "model.image_size": Option((64, 32), lambda run: tuple(run.read[0].inputs[RGB].shape[1:])),
        "model.depth": Option(18, lambda run: 18 if not hasattr(run.module(block), "conv3") else 50),
        "model.blocks": Option((1, 2, 1, 1), lambda run: tuple(len(stage) for stage in run.module("backbone.stages"))),
        "model.width": Option(6, lambda run: run.shape(f"{stem}.conv1.weight")[0]),
        "model.conv_bias": Option(False, lambda run: run.module(f"{block}.conv1").bias is not None),
        "model.stem_relu": Option(True, lambda run: isinstance(run.module(f"{stem}.relu"), torch.nn.ReLU)),
        "model.stem": Option("two_stream", lambda run: "two_stream" if len(run.module("backbone.stems")) == 2 else ""),
        "model.non_local": Option(True, lambda run: len(run.module("backbone.non_local")) > 0),
        "model.last_stride": Option(2, evaluated(lambda model, given: 4 / model.backbone(given).shape[2])),
        "model.neck": Option("gn", lambda run: "gn" if isinstance(run.module("neck"), torch.nn.GroupNorm) else "bn"),
        "model.neck_bias": Option(False, lambda run: run.module("neck").bias.requires_grad),
        "model.classifier_bias": Option(False, lambda run: run.module("classifier").bias is not None),
        "model.pooling": Option("gem", evaluated(pooling_of)),
        "model.feature": Option("pooled", evaluated(feature_of)),
        "model.head_width": Option(7, lambda run: run.shape("heads.rgb.fc1.weight")[0]),
    }


def pooling_of(model: Any, given: Any) -> str:
    hidden = model.backbone(given)
    means = {"gem": gem_pool(hidden), "avg": hidden.mean(dim=(2, 3))}
    return next(name for name, value in means.items() if torch.allclose(model.pool(given), value))


def feature_of(model: Any, given: Any) -> str:
    found = {"pooled": model.pool(given), "neck": model.neck(model.pool(given))}
    return next(name for name, value in found.items() if torch.allclose(model.encode_batch(given)[RGB].pooled, value))


def vireid_objective() -> dict[str, Option]:
    weights = {"id": 2.0, "modality_id": 0.5, "imitation": 0.25, "triplet": 1.5}
    return {
        "objective.losses": Option(weights, lambda run: run.job.objective.weights),
        "objective.margin": Option(0.9, argument("batch_hard_triplet_loss", "margin")),
        "objective.triplet_feature": Option("pooled", neck_or_pooled),
        "objective.label_smoothing": Option(
            0.2, lambda run: max(call["smoothing"] for call in run.calls["identity_loss"])
        ),
        "objective.imitation_reduction": Option("mean", argument("imitation_loss", "reduction")),
        "objective.ramps": Option({"id": (0, 9)}, lambda run: run.lines[0]["loss/id"], 0.0),
    }


def told(root: Path) -> Experiment:
    """Lists of three tasks, for a family that follows instructions, measured in every way."""
    write_data(root)
    weights = {"trad": 2.0, "li": 1.0, "ctcc": 0.0}
    return Experiment(
        "told",
        {
            "instruction.sentences": Option("released", lambda run: RELEASED[Task.TRAD] in annotations_of(run), True),
            "instruction.typing": Option("coin", instructed_rows, {True, False}),
            "instruction.pairing": Option("other", foreign_annotations, True),
            "instruction.given": Option(
                "shuffled",
                lambda run: {"instructions shuffled" in listed.protocol for listed in run.results[0].lists},
                {True},
            ),
            "instruction.gallery": Option(
                "none", lambda run: {"gallery alone" in listed.protocol for listed in run.results[0].lists}, {True}
            ),
            "augment.pad_crop": Option(3, border),
            "augment.jitter": Option((0.4, 0.3, 0.2, 0.1), argument("jitter_colours", "strengths")),
            "augment.erase_area": Option((0.1, 0.2), argument("_erase_box", "share")),
            "augment.erase_fill": Option("random", lambda run: bool(run.calls.get("_filled")), True),
            "objective.losses": Option({"id": 0.5, "bank": 2.0}, lambda run: run.job.objective.weights),
            "objective.ramps": Option({"id": (0, 9)}, lambda run: run.lines[0]["loss/id"], 0.0),
            "train.steps": Option(5, lambda run: len(run.lines)),
            "schedule.warmup": Option("during", rate(1), 1e-5 * 0.55 * (1 + math.cos(math.pi / 5)) / 2),
            "schedule.warmup_steps": Option(2, rate(2), 1e-5 * (1 + math.cos(math.pi * 2 / 5)) / 2),
            "train.sampler": Option("tasks", lambda run: type(run.job.loader.batches).__name__, "TaskBatches"),
            "train.mixture": Option("step", lambda run: {len(tasks) for tasks in tasks_of(run)}, {1}),
            "train.task_weights": Option(
                weights, lambda run: {task for tasks in tasks_of(run) for task in tasks}, {"trad", "li"}
            ),
            "train.ema": Option(0.9, argument("moving_average", "decay")),
            "train.task_instances": Option({"li": 1}, lambda run: min(identities_of(run)), 1),
            "eval.batch_size": Option(3, lambda run: max(call["batch_size"] for call in run.calls["source_loader"])),
            "eval.ap": Option("trapezoid", measured("ap"), {"trapezoid"}),
            "eval.memory_mb": Option(777, argument("evaluate_features", "memory_mb")),
            "eval.max_rank": Option(7, measured("max_rank"), {7}),
            "eval.thresholds": Option((0.4, 0.6), measured("thresholds"), {(0.4, 0.6)}),
            "eval.no_positive": Option("skip", measured("no_positive"), {"skip"}),
            "eval.ap_depth": Option(5, measured("ap_depth"), {5}),
            "eval.ap_topk": Option(4, measured("ap_topk"), {None, 4}),
            "eval.flip": Option(True, lambda run: "flip" in {listed.stamp for listed in run.results[0].lists}),
            "eval.rerank": Option(True, lambda run: "re-ranked" in {listed.stamp for listed in run.results[0].lists}),
            "eval.rerank_k1": Option(2, argument("rerank_distances", "k1")),
            "eval.rerank_k2": Option(3, argument("rerank_distances", "k2")),
            "eval.rerank_lambda": Option(0.6, argument("rerank_distances", "weight")),
        },
        {"data.dataset": "omnireid", "data.root": str(root), "data.protocols": ("lists",), "data.workers": 0}
        | {
            "augment.flip": 0.0,
            "augment.erase": 1.0,
            "model.image_size": (12, 6),
            "train.batch_size": 4,
            "train.instances": 2,
        }
        | {"train.select": "test", "schedule.interval": "step"},
        fit=True,
    )


def one_option(family: str, option: str, row: Option, **base: Any) -> Experiment:
    """Something that is only read."""
    plain = {"data.workers": 0, "train.select": "last", "model.image_size": (16, 16)}
    own = {"objective.losses": {"id": 1.0}, "model.init": "random", "model.width": 2} if family == "vireid" else {}
    return Experiment(family, {option: row}, {**plain, **own, **{k.replace("__", "."): v for k, v in base.items()}})


def sentence_of_tests(root: Path) -> Experiment:
    market1501(root)
    row = Option(
        5,
        lambda run: {source.value for source in run.job.benchmark.splits["test"].gallery_instructions},
        {BANK[Task.TRAD][5]},
    )
    return one_option("told", "instruction.test_sentence", row, data__dataset="market1501", data__root=str(root))


def pictures_of_clothes(root: Path) -> Experiment:
    prcc(root)
    row = Option("image", lambda run: {source.endswith(".jpg") for source in annotations_of(run)}, {True})
    return one_option("told", "instruction.cc", row, data__dataset="prcc", data__root=str(root))


def boxes(root: Path) -> Experiment:
    for kind in ("labeled", "detected"):
        for place, person in (("bounding_box_train", 5), ("query", 9), ("bounding_box_test", 9)):
            names = [f"{person:04d}_c{2 if place == 'bounding_box_test' else 1}_{number}.png" for number in (1, 2)]
            plant(root / "cuhk03-np" / kind / place, *names)
    row = Option("detected", lambda run: {Path(source.value).parts[-3] for source in sources_of(run)}, {"detected"})
    return one_option("vireid", "data.variant", row, data__dataset="cuhk03", data__root=str(root))


def one_of_ten_trials(root: Path) -> Experiment:
    for file in (regdb(root) / "idx").iterdir():
        if not file.stem.endswith("_3"):
            file.unlink()
    row = Option(3, lambda run: run.job.benchmark.trials["regdb"])
    return one_option("vireid", "data.trial", row, data__dataset="regdb", data__root=str(root))


def one_of_two_members(root: Path) -> Experiment:
    market1501(root), msmt17(root)
    row = Option(("msmt17",), lambda run: {"MSMT17_V1" in source.value for source in sources_of(run)}, {True})
    return one_option("vireid", "data.members", row, data__dataset="joint", data__root=str(root))


def one_image_less(root: Path) -> Experiment:
    first = next(path for path in sorted(market1501(root).rglob("*.jpg")) if "train" in str(path))
    (root / "left_out.txt").write_text(f"{first.relative_to(root)}\n", encoding="utf-8")
    row = Option(
        str(root / "left_out.txt"),
        lambda run: (len(sources_of(run)), str(first) in {s.value for s in sources_of(run)}),
        (3, False),
    )
    return one_option("vireid", "data.exclude", row, data__dataset="market1501", data__root=str(root))


EXPERIMENTS: dict[str, Callable[[Path], Experiment]] = {
    made.__name__: made
    for made in (
        reid5o,
        clip_file,
        unreadable,
        vireid,
        told,
        irm,
        irm_small,
        irmpp,
        sentence_of_tests,
        pictures_of_clothes,
        boxes,
        one_of_ten_trials,
        one_of_two_members,
        one_image_less,
    )
}

ELSEWHERE = {
    "family": "decides which sections and models there are: every experiment of the table has its own",
    "name": "test_a_run_lies_under_its_name_and_gives_another_its_weights",
    "output_dir": "test_a_run_lies_under_its_name_and_gives_another_its_weights",
    "instruction.crop": "test_without_the_box_an_image_without_clothes_is_refused",
    "train.init_from": "test_a_run_lies_under_its_name_and_gives_another_its_weights",
    "train.init_banks": "tests/test_irmpp_runs.py starts from a run of other identities with both values",
    "eval.relevance": "test_the_encoder_of_annotations_is_the_one_that_is_named",
    "eval.verification": "only test.py looks at it, tests/test_calibration.py runs it with and without",
    "eval.rescore": "test_scores_of_a_matching_head_are_asked_of_the_model_before_it_trains",
}
"""Options without a row: the test below that sees them, or the reason."""

FILES_OF_WEIGHTS = dict.fromkeys((Family.IRM, Family.IRMPP), {"model.init", "model.text_init", "model.clothes_init"})
"""Options that name files of several forms: the tests of a family's initial weights give them."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Experiment, Assembled]]:
    """Name of an experiment -> it and its run; each runs once."""

    @functools.cache
    def run(name: str) -> tuple[Experiment, Assembled]:
        experiment = EXPERIMENTS[name](tmp_path_factory.mktemp(name))
        values = {key: option.value for key, option in experiment.options.items()}
        with pytest.MonkeyPatch.context() as patch, global_state_kept():
            family = register(patch).value if experiment.family == "told" else experiment.family
            folder = tmp_path_factory.mktemp("run")
            return experiment, assembled(family, {**experiment.base, **values}, folder, fit=experiment.fit)

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_option_arrives_where_it_acts(name: str, runs: Callable[[str], tuple[Experiment, Assembled]]) -> None:
    experiment, run = runs(name)
    wrong = {}
    for key, option in experiment.options.items():
        expected, found = option.value if option.expected is GIVEN else option.expected, option.found(run)
        if found != (pytest.approx(expected) if isinstance(expected, float) else expected):
            wrong[key] = f"{option.value!r} should show as {expected!r}, there is {found!r}"
    assert not wrong


def sharing(family: Family, key: str) -> set[str]:
    """The families whose section of the option is this family's."""
    section = key.partition(".")[0]
    return {other.value for other in Family if getattr(FAMILIES[other], section) is getattr(FAMILIES[family], section)}


def test_no_option_is_forgotten_and_every_value_is_unusual(tmp_path: Path) -> None:
    """An option that is added without a row fails here; one without a use finds nothing to put into the row."""
    rows: dict[str, dict[str, Any]] = {}
    for name, made in EXPERIMENTS.items():
        (tmp_path / name).mkdir()
        experiment = made(tmp_path / name)
        for key, option in experiment.options.items():
            rows.setdefault(key, {})[experiment.family] = option.value
    for family in Family:
        known = schema_keys(family)
        # What is a section's own has a row of a family with that section; the others have one of any.
        own = {key for key in known if key.startswith(("model.", "objective."))}
        seen = {key for key, by_family in rows.items() if key not in own or by_family.keys() & sharing(family, key)}
        without = set(known) - seen - set(ELSEWHERE) - FILES_OF_WEIGHTS.get(family, set())
        assert not without, f"{family.value}: options without a row"
        usual = [key for key in seen & set(known) if rows[key].get(family.value, object()) == known[key]]
        assert not usual, "the value of the table is the default, which tells nothing"
    everything = {key for family in Family for key in schema_keys(family)} - FILES_OF_WEIGHTS[Family.IRM]
    everything |= {"model.init"}
    assert set(rows) | set(ELSEWHERE) == everything, "rows of options that are gone"
    assert not set(rows) & set(ELSEWHERE)
    assert {text for text in ELSEWHERE.values() if text.startswith("test_")} <= set(globals())


def tiny(root: Path, folder: Path, **changes: Any) -> Any:
    """A configuration over ORBench that trains one step."""
    values = {**TINY_REID5O, "output_dir": str(folder), "data.root": str(root), "data.workers": 0}
    values |= {"train.select": "last", "train.max_steps": 1, "train.batch_size": 4}
    return build_experiment([("tiny", {"family": "reid5o", **nested({**values, **changes})})])


def test_a_run_lies_under_its_name_and_gives_another_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solver.commands.train.draw_curves", lambda folder: None)
    root = write_orbench(tmp_path / "data")
    run_training(tiny(root, tmp_path / "elsewhere", name="called"), device="cpu", overwrite=False)
    run = tmp_path / "elsewhere" / "called"
    found = assemble(tiny(root, tmp_path, seed=5, **{"train.init_from": str(run)}), CPU).model
    saved = load_checkpoint(run / "best.pth")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in found.state_dict().items())


def test_without_the_box_an_image_without_clothes_is_refused(tmp_path: Path) -> None:
    prcc(tmp_path)
    options = {
        "instruction.cc": "image",
        "instruction.crop": "none",
        "data.dataset": "prcc",
        "data.root": str(tmp_path),
    }
    with pytest.MonkeyPatch.context() as patch:
        config = build_experiment([("told", {"family": register(patch).value, **nested(options)})])
        with pytest.raises(UserError, match="instruction.crop=box"):
            assemble(config, CPU)


def test_the_encoder_of_annotations_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(split: Any, *, encoder: str, read_clothes: Any, processes: Any) -> None:
        raise UserError(f"asked for {encoder}")

    made = told(tmp_path)
    values = {key: option.value for key, option in made.options.items() if key != "eval.rerank"}
    monkeypatch.setattr("solver.evaluation.evaluator.relevance_of", refuse)
    with pytest.raises(UserError, match="asked for t_s:somewhere"):
        assembled(
            register(monkeypatch).value, {**made.base, **values, "eval.relevance": "t_s:somewhere"}, tmp_path, fit=False
        )


def test_scores_of_a_matching_head_are_asked_of_the_model_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = told(tmp_path)
    values = {**made.base, **{key: option.value for key, option in made.options.items()}, "eval.rescore": 7}
    with pytest.raises(UserError, match="eval.rescore=7: this model has no matching head"):
        assembled(register(monkeypatch).value, values, tmp_path, fit=False)
