"""Files that towers of IRM start from: PASS, ALBEF, BERT, and whatever vision transformer timm has.

Each is returned under our names of the tower, with what it says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from configs.schema.irm import IrmConfig
from model.weights.clip import count_blocks
from model.weights.irm_names import rename_text, rename_tower, text_only_layers, under
from model.weights.model_folders import read_configuration
from model.weights.positions import Method
from utils.checkpoint_io import load_tensors
from utils.errors import UserError, nearest
from utils.foreign import foreign_file


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """Weights of one tower under our names.

    sizes: what the file says of the model's options of these names (`layers` are the tower's own). optional: how names
    begin that it may lack. grid: rows and columns of its positions, resized by `method`. others: weights of the model
    beside the tower. ignored: what is left of the file, in words. note: what a reader must know of it, a licence for
    instance.
    """

    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    optional: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    method: Method = "bicubic"
    antialias: bool = False
    others: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    note: str = ""


def read_pass(place: str, config: IrmConfig) -> TowerSource:
    """Read PASS's transformer: {'teacher': it}, a state dict, or one under `model` or `state_dict`.

    Its positions are those of an image twice as high as wide, resized bilinearly. Source: PASS's code. Raises UserError
    for another file.
    """
    state = _table(place, ("model", "state_dict", "teacher"))
    state = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}
    heads = [name for name in state if any(part in name for part in ("head", "dist", "pre_logits"))]
    tower = {name: value for name, value in state.items() if name not in heads}
    needed = ("cls_token", "cls_pos", "pos_embed", "patch_embed.proj.weight", "part_token1", "blocks.0.attn.qkv.weight")
    missing = [name for name in needed if name not in tower]
    columns = 0 if missing else round((tower["pos_embed"].shape[1] / 2) ** 0.5)
    if missing or 2 * columns**2 != tower["pos_embed"].shape[1]:
        what = f"no {missing[0]}" if missing else f"{tower['pos_embed'].shape[1]} positions"
        raise UserError(f"{place} is no transformer of PASS ({what}); give pass_vit_base_full.pth or one like it")
    renamed, foreign = rename_tower(tower, prefix_rows=0)
    _refuse_foreign(place, foreign, "PASS")
    sizes = _tower_sizes(renamed) | {"part_tokens": sum(name.startswith("embed.part_tokens.") for name in renamed)}
    return TowerSource(
        tensors=renamed, sizes=sizes, grid=(2 * columns, columns), method="bilinear", ignored=_counted(heads)
    )


def read_albef_text(place: str, config: IrmConfig) -> TowerSource:
    """Read ALBEF's text encoder, its projections of texts and images, its temperature and its matching head.

    Raises UserError for another file.
    """
    state = _table(place, ("model",))
    text = under(state, "text_encoder.")
    layers = text_only_layers(text)
    if "bert.embeddings.word_embeddings.weight" not in text or layers == count_blocks(text, "bert.encoder.layer."):
        raise UserError(
            f"{place} is no ALBEF (no text encoder with layers that look at images); give ALBEF.pth, or a plain BERT "
            "as bert:FOLDER-OR-HUB-ID"
        )
    renamed, foreign = rename_text(text, layers)
    _refuse_foreign(place, foreign, "ALBEF")
    renames = {"text_proj": "text_projection", "vision_proj": "image_projection", "itm_head": "match_head"}
    others = {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in renames.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    } | ({"temperature": state["temp"]} if "temp" in state else {})
    if config.matching != "fusion":
        # The other matching head reads something else.
        others = {name: value for name, value in others.items() if not name.startswith("match_head.")}
    used = {"text_encoder", "temp", *renames}
    sizes = _text_sizes(text) | {"text_layers": layers}
    if config.fusion_layers:
        sizes["fusion_layers"] = count_blocks(renamed, "fusion.")
    if "text_projection.weight" in others:
        sizes["caption_dim"] = others["text_projection.weight"].shape[0]
    return TowerSource(
        tensors=_wanted(renamed, config),
        sizes=sizes,
        optional=("transform.", "bias"),
        others=others,
        ignored=_counted([name for name in state if name.partition(".")[0] not in used]),
    )


def read_albef_clothes(place: str, config: IrmConfig) -> TowerSource:
    """Read ALBEF's momentum image encoder, which the released IRM encodes clothes pictures by; positions bicubic.

    Raises UserError for another file.
    """
    state = _table(place, ("model",))
    tower = under(state, "visual_encoder_m.")
    patches = tower["pos_embed"].shape[1] - 1 if "pos_embed" in tower else -1
    side = round(max(patches, 0) ** 0.5)
    if not patches > 0 or side**2 != patches or "cls_token" not in tower or "patch_embed.proj.weight" not in tower:
        raise UserError(f"{place} is no ALBEF (no momentum image encoder of square images); give ALBEF.pth")
    renamed, foreign = rename_tower(tower, prefix_rows=1)
    _refuse_foreign(place, foreign, "ALBEF")
    ignored = _counted([name for name in state if not name.startswith("visual_encoder_m.")])
    return TowerSource(tensors=renamed, sizes=_tower_sizes(renamed), grid=(side, side), ignored=ignored)


def read_bert(place: str, config: IrmConfig) -> TowerSource:
    """Read a BERT of Hugging Face's form, a folder or an id of its hub; it has no layers that look at images.

    Raises UserError for another model, another activation and too few layers.
    """
    from transformers import BertConfig, BertForMaskedLM

    where = f"bert:{place}"
    remedy = "give a folder with config.json and model.safetensors, or check the hub id and the network"
    with foreign_file(f"{where} cannot be read as a Hugging Face BERT model", remedy):
        stated = read_configuration(BertConfig, place, where, "bert:bert-base-uncased")
        if stated.hidden_act != "gelu":
            raise UserError(f"{where} computes {stated.hidden_act}, and the text encoder gelu; give bert-base-uncased")
        loaded: Any = BertForMaskedLM.from_pretrained(place, config=stated, output_loading_info=True)
        model, loading = loaded
    missing = sorted(str(name) for name in loading["missing_keys"])
    lacking = [name for name in missing if not name.startswith("cls.")]
    if lacking:
        raise UserError(f"{where} lacks {len(lacking)} of its weights, {lacking[0]} first; download it again")
    state = {name: value for name, value in model.state_dict().items() if not missing or not name.startswith("cls.")}
    layers, wanted = count_blocks(state, "bert.encoder.layer."), config.text_layers + config.fusion_layers
    if layers < wanted:
        raise UserError(
            f"{where} has {layers} layers and the model {wanted}; give a deeper one, or set model.text_layers and "
            f"model.fusion_layers to {layers} together"
        )
    renamed, foreign = rename_text(state, config.text_layers)
    _refuse_foreign(where, foreign, "BERT")
    return TowerSource(
        tensors=_wanted(renamed, config),
        sizes=_text_sizes(state) | {"heads": stated.num_attention_heads},
        optional=("fusion.", "transform.", "bias"),
        ignored=(f"layers {wanted} to {layers - 1}",) if layers > wanted else (),
    )


def read_timm(place: str, config: IrmConfig) -> TowerSource:
    """Read a vision transformer of timm (a name, hf-hub:ID or local-dir:FOLDER), whatever it was trained on.

    Raises UserError for a name that timm does not know, a network without answer, and another form of transformer than
    the tower's.
    """
    import timm

    where = f"timm:{place}"
    if ":" not in place and not timm.is_model(place.partition(".")[0]):
        raise UserError(
            f"{where}: timm has no such model; {nearest(place.partition('.')[0], timm.list_models('vit*'))}"
        )
    with foreign_file(f"{where} cannot be loaded by timm", "check the name, the folder and the network"):
        model: Any = timm.create_model(place, pretrained=True, num_classes=0)
    _require_form(where, model)
    state = dict(model.state_dict())
    prefix_rows = model.pos_embed.shape[1] - model.patch_embed.grid_size[0] * model.patch_embed.grid_size[1]
    renamed, foreign = rename_tower(state, prefix_rows)
    _refuse_foreign(where, foreign, "the tower")
    sizes = _tower_sizes(renamed) | {"heads": model.blocks[0].attn.num_heads}
    licence = getattr(model, "pretrained_cfg", {}).get("license") or "not stated, look it up before use"
    return TowerSource(
        tensors=renamed,
        sizes=sizes,
        optional=("embed.class_position", "embed.part_"),
        grid=tuple(model.patch_embed.grid_size),
        antialias=True,
        note=f"licence of {where}: {licence}",
    )


Reader = Callable[[str, IrmConfig], TowerSource]
READERS: Mapping[str, Mapping[str, Reader]] = {
    "init": {"pass": read_pass, "timm": read_timm},
    "text_init": {"albef": read_albef_text, "bert": read_bert},
    "clothes_init": {"albef": read_albef_clothes, "timm": read_timm},
}
"""Option of section `model` -> what may stand before the colon. `random` is always possible."""


def read_source(option: str, config: IrmConfig) -> TowerSource | None:
    """Return the weights that an option of section `model` names, None for random; text layers as the section has them.

    Raises UserError, naming the option.
    """
    value = getattr(config, option)
    kind, _, place = value.partition(":")
    if value == "random":
        return None
    forms = ["random", *(f"{name}:..." for name in READERS[option])]
    if kind not in READERS[option] or not place:
        raise UserError(f"model.{option} = {value!r} names no source of weights: give {' or '.join(forms)}")
    try:
        return READERS[option][kind](place, config)
    except UserError as error:
        raise UserError(f"model.{option}: {error}") from error


def _wanted(tensors: Mapping[str, Tensor], config: IrmConfig) -> dict[str, Tensor]:
    """Leave out the layers that the model does not have, and without fusion layers the head behind them."""
    count = config.fusion_layers
    kept = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("fusion.") or int(name.split(".")[1]) < count
    }
    return (
        kept if count else {name: value for name, value in kept.items() if not name.startswith(("transform.", "bias"))}
    )


def _table(place: str, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a file by name, unwrapped in this order."""
    content = load_tensors(place)
    for key in wrappers:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{place} holds no table of weights; give a state dict")
    return {
        str(name): value.float() if value.is_floating_point() else value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _tower_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        "width": tensors["embed.class_token"].shape[-1],
        "patch_size": tensors["embed.proj.weight"].shape[-1],
        "layers": count_blocks(tensors, "blocks."),
    }


def _text_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    vocab_size, width = state["bert.embeddings.word_embeddings.weight"].shape
    return {"width": width, "vocab_size": vocab_size}


def _require_form(where: str, model: Any) -> None:
    """Raise UserError for a transformer that computes something else than the tower with the same names."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(getattr(model, "pos_embed", None), Tensor) or not blocks or not hasattr(model, "patch_embed"):
        raise UserError(f"{where} is no plain vision transformer; choose a vit_... of timm")
    activation, eps = type(blocks[0].mlp.act), blocks[0].norm1.eps
    if activation is not nn.GELU or eps != 1e-6:
        raise UserError(
            f"{where} computes {activation.__name__} and norms of eps {eps:g}, the tower GELU and 1e-06; choose "
            "another vision transformer"
        )


def _refuse_foreign(where: str, foreign: list[str], what: str) -> None:
    if foreign:
        raise UserError(
            f"{where} has {len(foreign)} tensors that {what} has no place for, {foreign[0]} first; choose other weights"
        )


def _counted(names: list[str]) -> tuple[str, ...]:
    """`part.* (n tensors)` for each first part of the names."""
    parts = [name.partition(".")[0] for name in names]
    return tuple(f"{part} ({parts.count(part)} tensors)" for part in dict.fromkeys(parts))
