"""Released ReID5o checkpoints: `best.pth` and the flat `configs.yaml` beside it, read strictly and written back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from configs.schema.reid5o import LoraConfig, Reid5oConfig
from model.reid5o import ReID5o
from model.weights.clip import count_blocks
from model.weights.reid5o_names import alias_names, reference_name, released_in_half
from utils.checkpoint_io import load_tensors
from utils.errors import UserError, nearest, shortened
from utils.foreign import foreign_file

SHOWN = 4
MAX_CONFIG_BYTES = 1_000_000
_FLAT_DEFAULTS: dict[str, Any] = {
    "add_lora": False,
    "lora_mode": "mlp",
    "lora_r": 4,
    "num_loras": 4,
    "lora_layers": 2,
    "mmt_depth": 4,
}


def load_reid5o(checkpoint: str | Path, config: str | Path | Mapping[str, Any], **overrides: Any) -> ReID5o:
    """Return the model of a released checkpoint, in eval mode, float32, on the CPU.

    config: the flat configs.yaml or its values. overrides: fields of Reid5oConfig, for instance vision_heads=8 for a
    checkpoint trained before 2026-01-08. Raises UserError when the file is missing, truncated, of another family, holds
    code (never run), or when any entry is missing, unexpected or of another shape.
    """
    state = read_official_state(checkpoint)
    flat = config if isinstance(config, Mapping) else read_flat_config(config)
    return build_official(state, reid5o_sizes(state, flat, **overrides), str(checkpoint))


def build_official(state: Mapping[str, Tensor], config: Reid5oConfig, where: str) -> ReID5o:
    """Build the model of `config` around the entries of a released state, without drawing random weights first."""
    with torch.device("meta"):
        model = ReID5o(config, num_identities=state["classifier.weight"].shape[0])
    model.load_state_dict(from_official(model, state, where), strict=True, assign=True)
    return model.eval()


def read_official_state(path: str | Path) -> dict[str, Tensor]:
    """Read a released checkpoint: a state dict or {'model': it, ...}; `module.` prefixes go, all becomes float32.

    Raises UserError when it is missing, damaged, holds code, or is not of this family.
    """
    content = load_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state_dict of a model; give the best.pth of a released ReID5o run")
    state = {str(name).removeprefix("module."): value.float() for name, value in content.items()}
    if "vision.projection" in state:
        raise UserError(
            f"{path} is a checkpoint of this project, not a released one; use --run DIRECTORY instead of a flat "
            "configs.yaml"
        )
    if not {"classifier.weight", "clip_text_encoder.text_projection", "rgb_tokenizer.conv1.weight"} <= set(state):
        raise UserError(
            f"{path} is no released ReID5o checkpoint: it lacks the text tower, the tokenizers or the classifier; give "
            "the best.pth that lies beside the flat configs.yaml"
        )
    return state


def is_flat_config(path: str | Path) -> bool:
    """Return whether the file looks like the flat configs.yaml of a released run (a top-level `img_size`)."""
    file = Path(path)
    if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
        return False
    return re.search(r"^img_size\s*:", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None


class _FlatLoader(yaml.SafeLoader):
    """Safe YAML that knows one tag more: tuples."""


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_FlatLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


def read_flat_config(path: str | Path) -> dict[str, Any]:
    """Read the flat configs.yaml of a released run. The tag `!!python/tuple` is known; every other one is refused.

    Raises UserError when the file is missing or is not such a file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no such configuration: {file}; give the configs.yaml that lies beside the checkpoint")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{file} has more than {MAX_CONFIG_BYTES} bytes: not a configuration")
    with foreign_file(f"{file} is not a readable flat configs.yaml", "copy it again from beside the checkpoint"):
        # A subclass of the safe loader: it builds plain values only.
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_FlatLoader)  # noqa: S506
    if not isinstance(values, dict) or not {"img_size", "stride_size"} <= set(values):
        raise UserError(
            f"{file} is not the flat configs.yaml of a released run: it must state img_size and stride_size"
        )
    return values


def reid5o_sizes(state: Mapping[str, Tensor], flat: Mapping[str, Any], **overrides: Any) -> Reid5oConfig:
    """Return section `model` for a released state and its flat configuration.

    Sizes come from the tensors; image size, stride, fusion depth and LoRA options from `flat`. overrides: fields of
    Reid5oConfig that replace what was found. Raises UserError for a state of another family or an impossible value.
    """
    valid = [field.name for field in dataclasses.fields(Reid5oConfig)]
    for name in overrides:
        if name not in valid:
            raise UserError(f"unknown option of the model {name!r}: {nearest(name, valid)}")
    options = {**_FLAT_DEFAULTS, **flat}
    try:
        found: dict[str, Any] = {
            "image_size": _image_size(options["img_size"]),
            "stride": int(options["stride_size"]),
            "mmt_depth": int(options["mmt_depth"]),
            "patch_size": state["rgb_tokenizer.conv1.weight"].shape[-1],
            "embed_dim": state["clip_text_encoder.text_projection"].shape[1],
            "vision_width": state["rgb_tokenizer.class_embedding"].shape[0],
            "vision_layers": count_blocks(state, "vision_encoder.transformer.resblocks."),
            "text_width": state["clip_text_encoder.ln_final.weight"].shape[0],
            "text_layers": count_blocks(state, "clip_text_encoder.transformer.resblocks."),
            "text_length": state["clip_text_encoder.positional_embedding"].shape[0],
            "vocab_size": state["clip_text_encoder.token_embedding.weight"].shape[0],
            "lora": _lora(options),
        }
        return Reid5oConfig(**{**found, **overrides})
    except KeyError as error:
        raise UserError(
            f"the checkpoint is no released ReID5o checkpoint, or the configs.yaml is not its own: {error} is missing"
        ) from error
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"the flat configs.yaml does not describe a ReID5o model: {error}") from error


def from_official(model: ReID5o, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename a released state to ours, every entry accounted for.

    Second names (`...orig_param`) may be present or absent; present ones must equal the entry they repeat.
    Raises UserError that lists what is missing, unexpected, of another shape or unequal.
    """
    expected = {name: reference_name(name) for name, _ in model.named_parameters()}
    aliases = alias_names(expected)
    known = {target.name for target in expected.values()}
    problems = [
        _listed("missing", sorted(known - set(state))),
        _listed("unexpected", sorted(set(state) - known - set(aliases))),
        _listed(
            "unlike the entry they repeat",
            sorted(
                alias
                for alias, main in aliases.items()
                if alias in state and main in state and not torch.equal(state[alias], state[main])
            ),
        ),
    ]
    renamed: dict[str, Tensor] = {}
    shapes: list[str] = []
    for name, parameter in model.named_parameters():
        target = expected[name]
        if target.name in state:
            value = state[target.name].t().contiguous() if target.transposed else state[target.name]
            renamed[name] = value
            if value.shape != parameter.shape:
                shapes.append(f"{target.name} {tuple(value.shape)} (the model: {tuple(parameter.shape)})")
    problems.append(_listed("of another shape", shapes))
    if any(problems):
        raise UserError(
            f"{where} does not fit its configuration: {'; '.join(filter(None, problems))}; give the configs.yaml that "
            "belongs to it, or override what differs (model.stride=..., model.image_size=...)"
        )
    return renamed


def export_reid5o(model: ReID5o, half: bool = False) -> dict[str, Tensor]:
    """Return the model's weights under the released names, second names included, on the CPU.

    half: store them in the released mix of float16 and float32, which rounds them; float32 otherwise.
    """
    exported: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        target = reference_name(name)
        value = parameter.detach().cpu().float()
        value = value.t().contiguous() if target.transposed else value.clone()
        exported[target.name] = value.half() if half and released_in_half(target.name) else value
    aliases = alias_names({name: reference_name(name) for name, _ in model.named_parameters()})
    return exported | {alias: exported[main] for alias, main in aliases.items()}


def _lora(options: Mapping[str, Any]) -> LoraConfig:
    if options["lora_mode"] not in ("mlp", "all"):
        raise ValueError(f"lora_mode = {options['lora_mode']!r}: must be mlp or all")
    return LoraConfig(
        enabled=bool(options["add_lora"]),
        mode=options["lora_mode"],
        layers=int(options["lora_layers"]),
        rank=int(options["lora_r"]),
        num_experts=int(options["num_loras"]),
    )


def _image_size(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"img_size = {value!r}: must be height and width")
    return int(value[0]), int(value[1])


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} entries {what}: {shortened(names, SHOWN)}" if names else ""
