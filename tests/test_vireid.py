"""Covers: model/vireid, model/resnet, model/weights/vireid, model/weights/vireid_names, model/weights/pickled_modules,
solver/losses/triplet, solver/losses/imitation. The visible-infrared network: against
torchvision's, against AGW's description, and its files.
"""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.load import load_experiment
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family, Modality
from datasets.loading.readers import PillowReader, SourceReader
from datasets.structures import EvalSplit, QueryList, Source
from model.build import build_model, initialise
from model.resnet import Backbone, NarrowStride, NonLocal, residual_map
from model.vireid import Vireid
from model.weights.pickled_modules import read_pickled_module
from model.weights.vireid import convert_vireid, published_sizes, read_published
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.spec import EvaluationSpec
from solver.losses.imitation import imitation_loss
from solver.losses.triplet import batch_hard_triplet_loss, weighted_triplet_loss
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

RGB, NIR = Modality.RGB, Modality.NIR
SMALL: dict[str, Any] = {"init": "random", "depth": 18, "blocks": (1, 1, 1, 1), "width": 4, "image_size": (32, 16)}


def small(**options: Any) -> Vireid:
    config = VireidConfig(**{**SMALL, **options})
    model = build_model(Family.VIREID, config, 5)
    assert isinstance(model, Vireid)
    initialise(Family.VIREID, model, config)
    return model


def images(count: int, seed: int = 0, size: tuple[int, int] = (32, 16)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth", [18, 50])
def test_the_sane_variant_is_torchvisions_network(depth: Literal[18, 50]) -> None:
    """Without biases, with ReLU and stride 2 the map must be that of torchvision's own ResNet with the same weights."""
    theirs = torchvision.models.get_model(f"resnet{depth}").eval().to(memory_format=torch.channels_last)
    ours = Backbone(VireidConfig(depth=depth, conv_bias=False, stem_relu=True, last_stride=2)).eval()
    values = list(theirs.state_dict().items())
    own = ours.state_dict()
    ours.load_state_dict({name: value for name, (_, value) in zip(own, values)})
    x = images(2, size=(64, 32))
    with torch.no_grad():
        hidden = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            hidden = stage(hidden)
        assert torch.equal(ours({RGB: x}), hidden)


def test_convolutions_lie_channels_last_and_compute_the_same() -> None:
    """Whatever replaces the values leaves the layout: files, which may hold contiguous tensors."""
    model = small()
    model.load_state_dict(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    )
    for network in (model.backbone, residual_map(4)):
        maps = [weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
        assert len(maps) > 4
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in maps)
    x = images(3)
    plain = Backbone(VireidConfig(**SMALL)).eval()
    plain.load_state_dict(model.backbone.state_dict())
    plain.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.eval()({RGB: x}), plain({RGB: x}), rtol=1e-5, atol=1e-6)


class Strided(TorchDispatchMode):
    """Notes the channels that each strided 1x1 convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default and args[1].shape[2:] == (1, 1) and max(args[3]) > 1:
            self.channels.append(args[1].shape[1])
        return function(*args, **(kwargs or {}))


def test_no_strided_convolution_is_so_narrow_that_its_gradient_writes_elsewhere() -> None:
    """oneDNN's issue 6035: below 16 channels."""
    for width, wanted in ((4, [16]), (8, [16, 32]), (16, [16, 32, 64])):
        with Strided() as seen:
            Backbone(VireidConfig(**SMALL | {"width": width, "last_stride": 2}))({RGB: images(2)})
            residual_map(width)(images(2))
        assert sorted(seen.channels) == sorted(wanted + [channels for channels in wanted if channels < 4 * width])


@pytest.mark.parametrize("shape", [(16, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_narrow_strides_compute_what_torch_does(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    ours, x = NarrowStride(4, 8, 1, 2, bias=bias), torch.randn(3, 4, *shape).double().requires_grad_()
    theirs = nn.Conv2d(4, 8, 1, 2, bias=bias).double()
    theirs.load_state_dict(ours.double().state_dict())
    gradients = []
    for layer in (ours, theirs):
        y = layer(x)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*gradients)


def test_the_last_stride_keeps_the_map() -> None:
    for stride, shape in ((1, (2, 1)), (2, (1, 1))):
        assert (
            Backbone(VireidConfig(depth=18, blocks=(1, 1, 1, 1), width=4, last_stride=stride))({RGB: images(2)}).shape[
                2:
            ]
            == shape
        )


def test_a_batch_of_both_modalities_is_one_batch_for_the_norms() -> None:
    model, rgb, nir = small().train(), images(4), images(3, seed=1)
    together = model.encode_batch({RGB: rgb, NIR: nir})
    mixed = model.features({RGB: torch.cat([rgb, nir])})
    torch.testing.assert_close(torch.cat([together[RGB].pooled, together[NIR].pooled]), mixed, rtol=1e-5, atol=1e-5)


def test_two_stems_differ_and_share_the_rest() -> None:
    model = small(stem="two_stream", stem_relu=True).eval()
    with torch.no_grad():
        model.backbone.get_parameter("stems.nir.conv1.weight").mul_(0)
        seen, unseen = (model.encode(kind, images(2)).pooled for kind in (RGB, NIR))
        assert not torch.allclose(seen, unseen)
        model.backbone.stems["nir"].load_state_dict(model.backbone.stems["rgb"].state_dict())
        torch.testing.assert_close(model.encode(NIR, images(2)).pooled, seen)


def test_the_feature_is_an_option() -> None:
    for feature in ("pooled", "neck"):
        model = small(feature=feature).eval()
        state = model.state_dict()
        # A fresh norm is the identity in evaluation.
        mean, variance = state["neck.running_mean"].uniform_(-1, 1), state["neck.running_var"].uniform_(0.5, 2)
        scale = state["neck.weight"].uniform_(0.5, 2)
        pooled = model.pool({RGB: images(2)})
        scaled = (pooled - mean) / (variance + 1e-5).sqrt() * scale
        expected = pooled if feature == "pooled" else scaled + state["neck.bias"]
        torch.testing.assert_close(model.encode(RGB, images(2)).pooled, expected)
    model = small(neck="gn").eval()
    assert model.encode(RGB, images(2)).pooled.shape == (2, 32) and isinstance(model.neck, nn.GroupNorm)


def test_fresh_parts_have_the_weights_that_are_promised() -> None:
    hidden = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(NonLocal(4).eval()(hidden), hidden) and torch.equal(NonLocal(4).train()(hidden), hidden)
    model = build_model(Family.VIREID, VireidConfig(**SMALL), 4000)
    initialise(Family.VIREID, model, VireidConfig(**SMALL))
    weight = model.get_parameter("classifier.weight").detach()
    # Kaiming's rule by fan out: the standard deviation is sqrt(2 / outputs), not sqrt(2 / inputs).
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 4000), rel=0.05)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            bound = (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]) ** -0.5
            largest = layer.bias.detach().abs().max().item()
            assert 0.3 * bound < largest <= bound, f"{name}: uniform up to 1 / sqrt(fan in)"


def test_other_modalities_and_mixed_queries_are_refused() -> None:
    model = small()
    with pytest.raises(UserError, match="not SK"):
        model.encode(Modality.SK, images(1))
    split = EvalSplit(
        name="test",
        protocol="",
        gallery=(Source(modality=RGB, value="absent.jpg"),),
        gallery_ids=(0,),
        query_lists=(
            QueryList(
                combination=(NIR, RGB),
                entries=((Source(modality=NIR, value="absent.jpg"), Source(modality=RGB, value="absent.jpg")),),
                person_ids=(0,),
            ),
        ),
    )
    # Before any file is read: there are none.
    with pytest.raises(UserError, match=r"no fusion.*NIR\+RGB"):
        evaluate_split(model, split, SourceReader(PillowReader((64, 32))), EvaluationSpec(), torch.device("cpu"))


def test_non_local_attention_by_loops() -> None:
    torch.manual_seed(0)
    block = NonLocal(4).double().eval()
    nn.init.normal_(block.norm.weight)
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    positions = [(row, column) for row in range(2) for column in range(3)]

    def project(layer: nn.Conv2d, row: int, column: int) -> Tensor:
        assert layer.bias is not None
        return layer.weight[:, :, 0, 0] @ x[0, :, row, column] + layer.bias

    expected = torch.empty_like(x)
    assert block.project.bias is not None
    for row, column in positions:
        mixed = sum(
            (project(block.query, row, column) @ project(block.key, *other)) / 6 * project(block.value, *other)
            for other in positions
        )
        value = block.project.weight[:, :, 0, 0] @ mixed + block.project.bias
        expected[0, :, row, column] = x[0, :, row, column] + value / math.sqrt(1 + 1e-5) * block.norm.weight
    torch.testing.assert_close(block(x), expected)


class AgwNetwork:
    """AGW's computation out of three torchvision networks, from its description; state names as published."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.parts = {
            "visible_module.visible": torchvision.models.resnet50(),
            "thermal_module.thermal": torchvision.models.resnet50(),
            "base_resnet.base": torchvision.models.resnet50(),
        }
        base = self.parts["base_resnet.base"]
        base.layer4[0].conv2.stride = base.layer4[0].downsample[0].stride = (1, 1)
        self.bottleneck, self.classifier = nn.BatchNorm1d(2048), nn.Linear(2048, 6, bias=False)
        nn.init.uniform_(self.bottleneck.weight)
        self.extra = {}
        for stage, count, channels in ((2, 2, 512), (3, 3, 1024)):
            for place in range(count):
                block = nn.ModuleDict(
                    {
                        "g": nn.Sequential(nn.Conv2d(channels, channels // 2, 1)),
                        "theta": nn.Conv2d(channels, channels // 2, 1),
                        "phi": nn.Conv2d(channels, channels // 2, 1),
                        "W": nn.Sequential(nn.Conv2d(channels // 2, channels, 1), nn.BatchNorm2d(channels)),
                    }
                )
                nn.init.normal_(block.get_parameter("W.1.weight"), std=0.1)
                self.extra[stage, place] = block

    def state(self) -> dict[str, Tensor]:
        found = {
            f"{prefix}.{name}": value
            for prefix, part in self.parts.items()
            for name, value in part.state_dict().items()
        }
        for (stage, place), block in self.extra.items():
            found |= {f"NL_{stage}.{place}.{name}": value for name, value in block.state_dict().items()}
        found |= {f"bottleneck.{name}": value for name, value in self.bottleneck.state_dict().items()}
        return found | {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}

    @torch.no_grad()
    def features(self, x: Tensor, thermal: bool) -> Tensor:
        for part in (*self.parts.values(), self.bottleneck, *self.extra.values()):
            part.eval()
        stem = self.parts["thermal_module.thermal" if thermal else "visible_module.visible"]
        hidden = stem.maxpool(stem.relu(stem.bn1(stem.conv1(x))))
        base = self.parts["base_resnet.base"]
        for stage, layer in enumerate((base.layer1, base.layer2, base.layer3, base.layer4), start=1):
            for index, block in enumerate(layer):
                hidden = block(hidden)
                place = index - (len(layer) - {2: 2, 3: 3}.get(stage, 0))
                if (stage, place) in self.extra:
                    hidden = self.non_local(hidden, self.extra[stage, place])
        pooled = (hidden.flatten(2) ** 3).mean(-1).add(1e-12) ** (1 / 3)
        return self.bottleneck(pooled)

    @staticmethod
    def non_local(x: Tensor, block: nn.ModuleDict) -> Tensor:
        rows, columns = x.shape[2:]
        attention = torch.einsum("bct,bcs->bts", block["theta"](x).flatten(2), block["phi"](x).flatten(2)) / (
            rows * columns
        )
        mixed = torch.einsum("bts,bcs->bct", attention, block["g"](x).flatten(2))
        return x + block["W"](mixed.reshape(len(x), -1, rows, columns))


def test_an_agw_checkpoint_gives_agws_features(tmp_path: Path) -> None:
    network = AgwNetwork()
    reports = {"cmc": np.ones(3, np.float32), "mAP": np.float64(0.44), "mINP": np.float64(0.3)}
    torch.save({"net": network.state(), **reports, "epoch": 3}, tmp_path / "agw.t")
    printed = convert_vireid(tmp_path / "agw.t", tmp_path / "ours.pth")
    for name in ("ours.pth", "other.pth"):
        (tmp_path / "other.yaml").write_text("a configuration of a run")
        with pytest.raises(UserError, match="exists and is not replaced"):
            convert_vireid(tmp_path / "agw.t", tmp_path / name)
    assert (tmp_path / "other.yaml").read_text() == "a configuration of a run" and not (tmp_path / "other.pth").exists()
    assert "AGW" in printed and "6 identities" in printed
    config = load_experiment(tmp_path / "ours.yaml")
    content = load_checkpoint(tmp_path / "ours.pth")
    model = build_model(config.family, config.model, content["num_identities"])
    model.load_state_dict(content["model"], strict=True)
    model.eval()
    x = images(2, size=(64, 32))
    with torch.no_grad():
        # Features of up to 1e10 in float32: the oldest supported torch sums them in another order.
        for modality, thermal in ((RGB, False), (NIR, True)):
            torch.testing.assert_close(
                model.encode(modality, x).pooled, network.features(x, thermal), rtol=1e-3, atol=1e-4
            )


class Baseline(nn.Module):
    """Stands for a class that is not importable where the file is read."""

    def __init__(self) -> None:
        super().__init__()
        reference = small(head_width=0)
        self.base = nn.Module()
        stem = reference.backbone.stems["shared"]
        self.base.conv1, self.base.bn1 = stem.conv1, stem.bn1
        for number, stage in enumerate(reference.backbone.stages, start=1):
            setattr(self.base, f"layer{number}", stage)
        self.bottleneck, self.share_classifier = reference.neck, reference.classifier


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_converted_and_nothing_in_it_is_run(tmp_path: Path, zipped: bool) -> None:
    module = Baseline().eval()
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {trap}",)

    module.trap = Trap()  # type: ignore[assignment]
    torch.save(module, tmp_path / "model.pkl", _use_new_zipfile_serialization=zipped)
    state = read_pickled_module(tmp_path / "model.pkl")
    assert not trap.exists()
    expected = module.state_dict()
    assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    convert_vireid(tmp_path / "model.pkl", tmp_path / "ours.pth")
    assert not trap.exists()
    content, config = load_checkpoint(tmp_path / "ours.pth"), load_experiment(tmp_path / "ours.yaml")
    assert isinstance(config.model, VireidConfig)
    assert content["num_identities"] == 5 and config.model.blocks == (1, 1, 1, 1) and config.model.width == 4
    model = build_model(config.family, config.model, 5)
    model.load_state_dict(content["model"], strict=True)
    own, theirs = "backbone.stages.3.0.conv2.weight", "base.layer4.0.conv2.weight"
    torch.testing.assert_close(model.get_parameter(own), module.get_parameter(theirs))


def test_damaged_and_foreign_files_are_told(tmp_path: Path) -> None:
    torch.save(Baseline(), tmp_path / "whole.pkl")
    data = (tmp_path / "whole.pkl").read_bytes()
    (tmp_path / "half.pkl").write_bytes(data[: len(data) // 2])
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pkl")
    (tmp_path / "text.pth").write_text("hello")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("half.pkl", "other.pth", "linear.pkl", "text.pth", "empty.zip", "absent.pth"):
        with pytest.raises(UserError, match=name.split(".")[0]) as caught:
            read_published(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    state = Baseline().state_dict()
    del state["base.layer2.0.bn1.weight"]
    torch.save(state, tmp_path / "holed.pth")
    with pytest.raises(UserError, match=r"stages\.1\.0\.bn1\.weight"):
        convert_vireid(tmp_path / "holed.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
    assert published_sizes(Baseline().state_dict()).head_width == 0


def test_initial_weights_from_a_file(tmp_path: Path) -> None:
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    config = VireidConfig(init=str(tmp_path / "r18.pth"), depth=18)
    model = build_model(Family.VIREID, config, 4)
    report = initialise(Family.VIREID, model, config)
    assert torch.equal(model.get_parameter("backbone.stages.2.1.conv1.weight"), source.layer3[1].conv1.weight)
    assert report.count("loaded") == len(source.state_dict()) - 2, "all but the classifier of ImageNet"
    assert next(row for row in report.rows if row.name == "backbone.stages.0.0.conv1.bias").action == "new"
    for options in ({"depth": 34}, {"depth": 18, "width": 32}, {"depth": 50}):
        other = VireidConfig(init=config.init, **options)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"model\.depth"):
            initialise(Family.VIREID, build_model(Family.VIREID, other, 4), other)


def test_triplet_with_unequal_numbers_of_rows_by_loops() -> None:
    torch.manual_seed(0)
    features = torch.randn(9, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 0, 3, 0, 0, 1])
    total = 0.0
    for anchor in range(9):
        away = [float((features[anchor] - features[other]).norm()) for other in range(9)]
        positive = max(distance for distance, label in zip(away, labels) if label == labels[anchor])
        negative = min(distance for distance, label in zip(away, labels) if label != labels[anchor])
        total += max(0.0, 0.3 + positive - negative)
    loss = batch_hard_triplet_loss(features, labels)
    assert loss.item() == pytest.approx(total / 9, abs=1e-6)
    assert torch.autograd.gradcheck(lambda rows: weighted_triplet_loss(rows, labels), features.clone().requires_grad_())
    with pytest.raises(ValueError, match="two persons"):
        batch_hard_triplet_loss(features, torch.zeros(9, dtype=torch.int64))


def test_weighted_triplet_by_loops() -> None:
    torch.manual_seed(1)
    features, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])
    total = 0.0
    for anchor in range(6):
        away = [math.sqrt(max(float((features[anchor] - features[other]).pow(2).sum()), 1e-12)) for other in range(6)]
        near = [(math.exp(distance), distance) for distance, label in zip(away, labels) if label == labels[anchor]]
        far = [(math.exp(-distance), distance) for distance, label in zip(away, labels) if label != labels[anchor]]
        positive, negative = (
            sum(weight * distance for weight, distance in pairs) / sum(weight for weight, _ in pairs)
            for pairs in (near, far)
        )
        total += math.log1p(math.exp(positive - negative))
    assert weighted_triplet_loss(features, labels).item() == pytest.approx(total / 6, abs=1e-9)


def test_imitation_by_hand() -> None:
    student, teacher = (
        torch.zeros(1, 2, dtype=torch.float64, requires_grad=True),
        torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64, requires_grad=True),
    )
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2).
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = imitation_loss(student, teacher)
    assert loss.item() == pytest.approx(expected) and imitation_loss(
        student, teacher, reduction="mean"
    ).item() == pytest.approx(expected / 2)
    loss.backward()
    assert teacher.grad is None and student.grad is not None
    assert torch.allclose(student.grad, torch.tensor([[-0.25, 0.25]], dtype=torch.float64))


def test_every_trainable_number_gets_a_gradient() -> None:
    from solver.objectives.vireid import VireidObjective

    model = small(stem="two_stream", non_local=True).train()
    objective = VireidObjective(
        VireidObjectiveConfig(
            losses={"id": 1.0, "modality_id": 1.0, "imitation": 1.0, "triplet": 1.0, "weighted_triplet": 1.0},
            margin=None,
            imitation_reduction="mean",
        )
    )
    labels = torch.tensor([0, 0, 1, 1])
    objective.compute(model, {RGB: images(4), NIR: images(4, seed=1)}, {RGB: labels, NIR: labels}).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert F.softmax(model.identity_logits(torch.zeros(1, 32)), dim=1).shape == (1, 5)
    assert VireidConfig().head_width == 512
