"""Where the options of IRM are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from instructed_family import write_captioned, write_data
from wiring import RGB, TEXT, Assembled, argument, evaluated, told_by
from wiring_table import Experiment, Option


def irm(root: Path) -> Experiment:
    """Lists of four tasks, each batch of one of them, through every loss."""
    write_captioned(write_data(root))
    return Experiment(
        "irm",
        irm_model(root / "words") | irm_objective(),
        {"data.dataset": "omnireid", "data.root": str(root), "data.protocols": ("lists",), "data.workers": 0}
        | {"train.sampler": "tasks", "train.mixture": "step", "train.batch_size": 4, "train.instances": 2}
        | {"train.task_instances": {"t2i": 1}, "train.select": "last", "train.epochs": 1},
        fit=True,
    )


def irm_model(words: Path) -> dict[str, Option]:
    return {
        "model.tokenizer": Option(f"bert:{words}", lambda run: f"bert:{run.job.reader.texts.tokenizer.vocab}"),
        "model.text_length": Option(9, lambda run: len(told_by(run, TEXT)[0])),
        "model.vocab_size": Option(500, lambda run: run.shape("text_encoder.embeddings.word_embeddings.weight")[0]),
        "model.text_positions": Option(
            11, lambda run: run.shape("text_encoder.embeddings.position_embeddings.weight")[0]
        ),
        "model.image_size": Option((32, 16), lambda run: tuple(run.read[0].inputs[RGB].shape[1:])),
        "model.instruction_size": Option((16, 24), lambda run: tuple(told_by(run, RGB)[0].shape[1:])),
        "model.width": Option(20, lambda run: run.shape("classifier.weight")[1]),
        "model.heads": Option(5, lambda run: run.module("image.blocks.0.attn").heads),
        "model.layers": Option(3, lambda run: len(run.module("image.blocks"))),
        "model.clothes_layers": Option(2, lambda run: len(run.module("clothes.blocks"))),
        "model.text_layers": Option(2, lambda run: len(run.module("text_encoder.layers"))),
        "model.fusion_layers": Option(1, lambda run: len(run.module("text_encoder.fusion"))),
        "model.text_mlp_ratio": Option(
            2.0, lambda run: run.shape("text_encoder.layers.0.intermediate.dense.weight")[0] / 20
        ),
        "model.attention_layers": Option(1, lambda run: len(run.module("attention.blocks"))),
        "model.patch_size": Option(8, lambda run: run.module("image.embed.proj").kernel_size[0]),
        "model.part_tokens": Option(2, lambda run: len(run.module("image.embed.part_tokens"))),
        "model.dropout": Option(0.3, lambda run: run.module("text_encoder.embeddings.dropout").p),
        "model.drop_path": Option(0.2, lambda run: run.module("image.blocks.2.drop_path1").drop_prob),
        "model.editing": Option(
            "shared", lambda run: "own" if "image.blocks.0.attn.instruction_kv.weight" in run.state else "shared"
        ),
        "model.gate": Option("tanh", lambda run: "tanh" if run.module("image.blocks.0.attn").squash else "raw"),
        "model.gates": Option("layer", lambda run: run.shape("image.blocks.0.attn.gate"), (1,)),
        "model.attention": Option("dual", lambda run: len(run.module("out_classifiers")), 2),
        "model.mask_padding": Option(False, lambda run: run.module("attention").mask_padding),
        "model.encoder": Option("frozen", lambda run: "frozen" * (not run.module("clothes.norm").weight.requires_grad)),
        "model.feature": Option("neck", evaluated(irm_feature_of)),
        "model.similarity": Option("euclidean", lambda run: run.job.model.similarity),
        "model.init_std": Option(0.5, lambda run: round(run.module("image.blocks.0.attn.qkv").weight.std().item(), 1)),
        "model.caption_dim": Option(6, lambda run: run.shape("text_projection.weight")[0]),
        "model.matching": Option("fusion", lambda run: "fusion" if run.shape("match_head.weight")[1] == 20 else ""),
        "model.instruction_statistics": Option("clip", statistics_of_clothes, {"clip"}),
    }


def irm_feature_of(model: Any, given: Any) -> str:
    found, tower = model.encode_batch(given)[RGB].pooled, model.encode_images(given[RGB]).cls
    forms = {"neck": model.neck(tower), "pooled": tower}
    return next(name for name, value in forms.items() if torch.allclose(found[:, :20], value, atol=1e-5))


def statistics_of_clothes(run: Assembled) -> set[str]:
    """By which statistics the training normalised pictures of the size of instructions."""
    calls = [call for call in run.calls["model_input"] if tuple(call["inputs"].shape[2:]) == (16, 24)]
    return {call["statistics"] for call in calls}


def irm_objective() -> dict[str, Option]:
    weights = {"id": 2.0, "id_out": 0.5, "triplet": 0.25, "triplet_out": 1.5, "contrast": 0.75, "match": 1.25}
    weights |= {"masked_language": 0.125, "replaced": 3.0}
    return {
        "objective.losses": Option(weights, lambda run: run.job.objective.weights),
        "objective.ramps": Option({"id": (0, 9)}, lambda run: of(run, "id")[0], 0.0),
        "objective.triplet": Option(
            "literal", lambda run: "literal" * bool(run.calls["literal_adaptive_triplet_loss"])
        ),
        "objective.margin": Option(0.9, argument("literal_adaptive_triplet_loss", "margin")),
        # Behind the neck a batch has mean 0; the last triplets are those of the attention module.
        "objective.triplet_feature": Option(
            "neck",
            lambda run: (
                "neck" * bool(run.calls["literal_adaptive_triplet_loss"][-1]["features"].mean(dim=0).abs().max() < 1e-4)
            ),
        ),
        "objective.identity_scope": Option(
            "task", lambda run: "task" * any(bool(call["logits"].isinf().any()) for call in run.calls["identity_loss"])
        ),
        **caption_options(),
    }


def caption_options() -> dict[str, Option]:
    return {
        "objective.queue": Option(5, lambda run: len(run.job.objective.captions.queue.person_ids)),
        "objective.momentum": Option(0.6, lambda run: run.job.objective.captions.teacher.momentum),
        "objective.distillation": Option(0.3, argument("masked_language_loss", "distillation")),
        "objective.mask_share": Option(0.4, lambda run: min(call["share"] for call in run.calls["hide_pieces"])),
        "objective.replace_share": Option(0.6, lambda run: max(call["share"] for call in run.calls["hide_pieces"])),
        "objective.distillation_axis": Option("sequence", argument("masked_language_loss", "axis")),
    }


def irm_small(root: Path) -> Experiment:
    """What the other cannot have: a residual stem, blocks of the image tower as attention module, one pair of heads."""
    write_data(root)
    return Experiment(
        "irm",
        {
            "model.stem": Option("residual", lambda run: "residual" * hasattr(run.module("image.embed"), "stem")),
            "model.stem_width": Option(6, lambda run: run.shape("image.embed.stem.0.conv1.weight")[0]),
            "model.attention_weights": Option("image", lambda run: "image" * (not len(run.module("attention.blocks")))),
            "model.heads_shared": Option(True, lambda run: not hasattr(run.job.model, "out_neck")),
        },
        {"data.dataset": "omnireid", "data.root": str(root), "data.protocols": ("lists",), "data.workers": 0}
        | {"train.sampler": "tasks", "train.batch_size": 12, "train.instances": 2, "train.select": "last"}
        | {"model.image_size": (32, 16), "model.instruction_size": (16, 16), "model.width": 8, "model.heads": 2}
        | {f"model.{name}": 1 for name in ("layers", "clothes_layers", "text_layers", "fusion_layers")},
    )


def irmpp(root: Path) -> Experiment:
    """The same lists through every loss of IRM++."""
    made = irm(root)
    weights = {"id": 2.0, "soft": 0.5, "hard": 0.25, "triplet": 1.5, "contrast": 0.75, "match": 1.25}
    weights |= {"masked_language": 0.125, "replaced": 3.0}
    model = {key: option.value for key, option in made.options.items() if key.startswith("model.")}
    return Experiment(
        "irmpp",
        {
            "objective.losses": Option(weights, lambda run: run.job.objective.weights),
            "objective.ramps": Option({"id": (0, 9)}, lambda run: of(run, "id")[0], 0.0),
            "objective.sign": Option("printed", lambda run: "printed" * (max(of(run, "hard")) < 0)),
            "objective.temperature": Option(0.3, argument("bank_losses", "temperature")),
            "objective.target_temperature": Option(0.4, argument("bank_losses", "target_temperature")),
            "objective.hard_target": Option("softmax", argument("bank_losses", "hard_target")),
            "objective.xi": Option(0.001, argument("bank_losses", "xi")),
            "objective.centre": Option(True, argument("bank_losses", "centre")),
            # Each batch is of one task: those of Trad have no soft loss.
            "objective.soft_tasks": Option("varied", lambda run: "varied" * (0.0 in of(run, "soft"))),
            "objective.unwritten": Option(
                "random", lambda run: "random" * all(bool(call["written"].all()) for call in run.calls["bank_losses"])
            ),
            "objective.triplet": Option(
                "literal", lambda run: "literal" * bool(run.calls["literal_adaptive_triplet_loss"])
            ),
            "objective.margin": Option(0.9, argument("literal_adaptive_triplet_loss", "margin")),
            **caption_options(),
        },
        {**made.base, **model, "model.heads_shared": True, "instruction.typing": "coin"}
        | {"data.protocols": ("task-free",)},
        fit=True,
    )


def of(run: Assembled, name: str) -> list[float]:
    """The values of a loss, step by step."""
    return [line[f"loss/{name}"] for line in run.lines]
