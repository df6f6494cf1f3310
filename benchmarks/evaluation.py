"""Whole evaluation against the reference's plan: each of the 32 lists read, encoded and fused from scratch.

    python benchmarks/evaluation.py --setting tiny      # quickstart model and data (random weights, or --run
    runs/quickstart) python benchmarks/evaluation.py --setting vitb16    # ViT-B/16 sizes, random weights, few
    identities: minutes on a CPU python benchmarks/evaluation.py --precision bf16    # against the fp32 baseline and
    against the bf16 baseline

Both sides have the same weights, precision, threads, loader and rule for batch sizes, and alternate; the best of the
repeats counts. The counted ratio is that of the multiply-adds of the two plans; the floor of a side is its
multiply-adds at the rate of a large matrix product in the same precision. Exit code 1 when a metric differs by more
than 1e-6 (in fp32; images whose similarities differ by less than 1e-6 may swap) or the measured ratio is below 0.9 x
the one that encoding each source once allows.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.retrieval.metrics import SHOWN_METRICS
from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.schema.experiment import ExperimentConfig  # noqa: E402
from configs.schema.reid5o import Reid5oConfig  # noqa: E402
from configs.vocabulary import Modality  # noqa: E402
from datasets.build import build_benchmark, build_source_reader  # noqa: E402
from datasets.loading.loaders import source_loader  # noqa: E402
from datasets.loading.transforms import model_input  # noqa: E402
from datasets.structures import EvalSplit, QueryList, Source, distinct_sources  # noqa: E402
from datasets.synthetic.render import render  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from model.layers import attend  # noqa: E402
from model.reid5o import ReID5o  # noqa: E402
from solver.evaluation.encoding import batch_rows, inference  # noqa: E402
from solver.evaluation.evaluator import evaluate_split  # noqa: E402
from solver.evaluation.plan import plan_evaluation  # noqa: E402
from solver.evaluation.result import EvaluationResult  # noqa: E402
from solver.evaluation.spec import EvaluationSpec  # noqa: E402
from solver.runs import open_run  # noqa: E402
from utils.device import DTYPES, describe_device, resolve_device  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.tables import format_table  # noqa: E402
from utils.threads import plan_threads  # noqa: E402

Metrics = dict[str, dict[str, float]]
REACH, SAME, ROUNDING = 0.9, 1e-6, 1e-6
VITB16 = (
    "model.init=random",
    "model.image_size=[384,128]",
    "model.stride=16",
    "model.patch_size=16",
    "model.embed_dim=512",
    "model.vision_width=768",
    "model.vision_layers=12",
    "model.text_width=512",
    "model.text_layers=12",
    "model.text_length=77",
    "model.mmt_depth=4",
    "model.lora.layers=2",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both sides evaluate."""

    model: ReID5o
    split: EvalSplit
    reader: Any
    spec: EvaluationSpec
    device: torch.device


def plain_fuse(model: ReID5o, tokens: Tensor) -> Tensor:
    """The fusion as the reference writes it, (B, S, D) -> (B, D): projection for every query, last linear on every
    token.
    """
    fusion = model.fusion
    hidden = fusion.attention.proj(attend(fusion.attention.qkv(fusion.ln_pre(tokens)), fusion.attention.num_heads))
    for block in fusion.blocks:
        hidden = block(hidden)
    head = fusion.head
    return head.fc(head.ln(head.activation(head.dense(fusion.ln_post(hidden))))).float().mean(dim=1)


def encode_list(setting: Setting, sources: Sequence[Source], rows: int) -> list[Any]:
    """Read and encode one column of a list."""
    modality = sources[0].modality
    return [
        setting.model.encode(modality, model_input(modality, inputs.to(setting.device)))
        for _, inputs, _ in source_loader(sources, setting.reader, rows, setting.spec.workers)
    ]


def reference_features(setting: Setting, listed: QueryList, tokens_of: Mapping[Modality, int]) -> Tensor:
    """Features (n, D) of a list, from nothing: batch by batch, every member encoded, then fused."""
    rows = batch_rows(
        sum(tokens_of[modality] for modality in listed.combination), setting.spec.config.batch_size, setting.device
    )
    columns = [[entry[position] for entry in listed.entries] for position in range(len(listed.combination))]
    if len(columns) == 1:
        return torch.cat([batch.pooled for batch in encode_list(setting, columns[0], rows)])
    loaders = [source_loader(column, setting.reader, rows, setting.spec.workers) for column in columns]
    features = []
    for parts in zip(*loaders):
        members = [
            setting.model.encode(modality, model_input(modality, inputs.to(setting.device))).tokens
            for modality, (_, inputs, _) in zip(listed.combination, parts)
        ]
        features.append(plain_fuse(setting.model, torch.cat(members, dim=1)))
    return torch.cat(features)


def sorted_metrics(similarity: Tensor, query_ids: Sequence[int], gallery_ids: Sequence[int]) -> dict[str, float]:
    """Metrics in percent by sorting every row, one loop over the queries."""
    order = torch.argsort(similarity, dim=1, descending=True, stable=True).cpu()
    matches = torch.tensor(gallery_ids)[order] == torch.tensor(query_ids)[:, None]
    totals = dict.fromkeys(SHOWN_METRICS, 0.0)
    for row in matches:
        ranks = row.nonzero().squeeze(1).double() + 1
        for depth in (1, 5, 10):
            totals[f"R{depth}"] += float(ranks[0] <= depth)
        totals["mAP"] += float((torch.arange(1, len(ranks) + 1) / ranks).mean())
        totals["mINP"] += float(len(ranks) / ranks[-1])
    return {name: 100 * value / len(matches) for name, value in totals.items()}


def reference_evaluation(
    setting: Setting, tokens_of: Mapping[Modality, int], precision: str
) -> tuple[Metrics, dict[str, Tensor]]:
    """The reference's plan; returns the metrics and the similarities (n, G) of each list."""
    found: Metrics = {}
    similarities: dict[str, Tensor] = {}
    with inference(setting.model, setting.device, precision):
        rows = batch_rows(tokens_of[Modality.RGB], setting.spec.config.batch_size, setting.device)
        gallery = torch.cat([batch.pooled for batch in encode_list(setting, setting.split.gallery, rows)])
        for listed in setting.split.query_lists:
            query = reference_features(setting, listed, tokens_of)
            similarities[listed.name] = F.normalize(query.float()) @ F.normalize(gallery).T
            found[listed.name] = sorted_metrics(similarities[listed.name], listed.person_ids, setting.split.gallery_ids)
    return found, similarities


def largest_difference(result: EvaluationResult, reference: Metrics) -> float:
    """Largest absolute difference of any metric of any list, as a fraction."""
    ours = {entry.task: entry.metrics() for entry in result.lists}
    return (
        max(abs(ours[task][name] - values[name]) for task, values in reference.items() for name in SHOWN_METRICS) / 100
    )


def unexplained_difference(result: EvaluationResult, split: EvalSplit, similarities: Mapping[str, Tensor]) -> float:
    """The same, beyond what reordering similarities closer than ROUNDING can do.

    Two correct float32 computations of a fusion differ in the last bits, which swaps images whose similarities all but
    tie. No metric falls when every match rises, so the metrics with the matches lowered and raised are its bounds.
    """
    worst = 0.0
    for entry, listed in zip(result.lists, split.query_lists):
        match = torch.tensor(listed.person_ids)[:, None] == torch.tensor(split.gallery_ids)
        similarity = similarities[entry.task].double().cpu()
        low, high = (
            sorted_metrics(similarity + sign * ROUNDING * match, listed.person_ids, split.gallery_ids)
            for sign in (-1, 1)
        )
        ours = entry.metrics()
        worst = max(worst, *(max(low[name] - ours[name], ours[name] - high[name]) / 100 for name in low))
    return worst


def reid5o_section(config: ExperimentConfig) -> Reid5oConfig:
    """Return the section `model` of a configuration of the family reid5o."""
    assert isinstance(config.model, Reid5oConfig)
    return config.model


class MultiplyAdds:
    """Multiply-adds of one row, counted by running the model without data."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._fake = FakeTensorMode()
        with self._fake:
            self.model = ReID5o(reid5o_section(config), 1).eval()
        self.config = config
        self.encode: dict[Modality, float] = {}
        self.tokens: dict[Modality, int] = {}
        for modality in Modality:
            self.encode[modality], encoded = self._count(functools.partial(self._encode, modality))
            self.tokens[modality] = encoded.tokens.shape[1]

    def _encode(self, modality: Modality) -> Any:
        # Called inside the count, so that the inputs are made there and hold no data either.
        return self.model.encode(modality, self._inputs(modality))

    def _inputs(self, modality: Modality) -> Tensor:
        if modality is Modality.TEXT:
            return torch.zeros((1, reid5o_section(self.config).text_length), dtype=torch.int64)
        return torch.zeros((1, 3, *self.config.model.image_size))

    def _count(self, call: Any) -> tuple[float, Any]:
        # The plain form of attention is made of matrix products, which the counter knows.
        with self._fake, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            result = call()
        return counter.get_total_flops() / 2, result

    def prepare(self, tokens: int) -> float:
        """First projection of so many tokens."""
        return self._count(lambda: self.model.prepare(torch.zeros((1, tokens, self.model.embed_dim))))[0]

    def fuse_prepared(self, tokens: int) -> float:
        """One fusion after the first projection, last linear after the mean."""
        return self._count(lambda: self.model.fuse_prepared(torch.zeros((1, tokens, 3 * self.model.embed_dim))))[0]

    def plain_fuse(self, tokens: int) -> float:
        """One fusion in the plain form."""
        return self._count(lambda: plain_fuse(self.model, torch.zeros((1, tokens, self.model.embed_dim))))[0]


def count_plans(counter: MultiplyAdds, split: EvalSplit) -> dict[str, float]:
    """Multiply-adds of the reference's plan, of encoding once with plain fusions, and of our plan."""
    sources = distinct_sources(split)
    plan = plan_evaluation([split])
    lengths = {
        listed.name: sum(counter.tokens[modality] for modality in listed.combination) for listed in split.query_lists
    }
    mixed = [listed for listed in split.query_lists if len(listed.combination) > 1]
    reference = len(split.gallery) * counter.encode[Modality.RGB] + sum(
        len(listed.entries) * counter.encode[modality]
        for listed in split.query_lists
        for modality in listed.combination
    )
    plain = sum(len(listed.entries) * counter.plain_fuse(lengths[listed.name]) for listed in mixed)
    once = sum(len(found) * counter.encode[modality] for modality, found in sources.items())
    prepared = sum(
        len(found) * counter.prepare(counter.tokens[modality])
        for modality, found in sources.items()
        if modality is not Modality.RGB
    )
    fused = sum(
        len(members) * counter.fuse_prepared(sum(counter.tokens[modality] for modality in combination))
        for combination, members in plan.sets.items()
    )
    return {"reference": reference + plain, "encode once": once + plain, "ours": once + prepared + fused}


def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds per second of a large square matrix product in that precision; the best of several."""
    size = 1536 if device.type == "cpu" else 8192
    left, right = (torch.randn((size, size), device=device).to(DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        best = min(best, timed(device, lambda: left @ right)[0])
    return size**3 / best


def timed(device: torch.device, call: Any) -> tuple[float, Any]:
    """Return seconds and the result of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def make_setting(options: argparse.Namespace, root: str) -> tuple[Setting, ExperimentConfig]:
    """Render the data and build the model of the chosen setting."""
    real_size = options.setting == "vitb16"
    config_file = (
        Path(__file__).resolve().parent.parent
        / "configs"
        / "reid5o"
        / ("orbench.yaml" if real_size else "quickstart.yaml")
    )
    overrides = [f"data.root={root}", f"eval.precision={options.precision}", *(VITB16 if real_size else ())]
    device = resolve_device(options.device)
    if options.run:
        trained = open_run(options.run, overrides=overrides[:2], device=device)
        model, config = trained.model, trained.config
    else:
        config = load_experiment(config_file, overrides)
        torch.manual_seed(0)
        model = build_model(config.family, config.model, 1)
        initialise(config.family, model, config.model)
        model.to(device).eval()
    height, width = config.model.image_size
    render(
        "orbench",
        root,
        identities=2,
        test_identities=options.test_identities,
        seed=1,
        image_size=(max(height, 64), max(width, 32)),
        images_per_modality=options.images,
        processes=None,
    )
    threads = plan_threads(device.type, options.workers)
    torch.set_num_threads(options.threads or threads.threads)
    split = build_benchmark(config.data, select="test", need_train=False).splits["test"]
    spec = EvaluationSpec(config=config.eval, workers=threads.workers)
    assert isinstance(model, ReID5o)
    return Setting(
        model=model, split=split, reader=build_source_reader(config.data, config.model), spec=spec, device=device
    ), config


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=("tiny", "vitb16"), default="tiny")
    parser.add_argument("--run", default="", help="evaluate the weights of this run instead of random ones (tiny)")
    parser.add_argument("--test-identities", type=int, default=None, help="default: 100 tiny, 2 vitb16")
    parser.add_argument("--images", type=int, default=None, help="per person and modality; default: 4 tiny, 2 vitb16")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; default: the cores")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of both sides")
    parser.add_argument("--repeats", type=int, default=None, help="runs of each side; default: 3 tiny, 2 vitb16")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    small = options.setting == "tiny"
    options.test_identities = options.test_identities or (100 if small else 2)
    options.images = options.images or (4 if small else 2)
    options.repeats = options.repeats or (3 if small else 2)
    return options


def measure(
    setting: Setting, tokens_of: Mapping[Modality, int], repeats: int
) -> tuple[dict[str, float], EvaluationResult, tuple[Metrics, dict[str, Tensor]]]:
    """Return the best seconds of each side, our result, and what the reference found in the same precision."""
    baselines = list(dict.fromkeys((setting.spec.config.precision, "fp32")))
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *baselines)}
    found: dict[str, Any] = {}
    evaluate_split(setting.model, setting.split, setting.reader, setting.spec, setting.device)
    for _ in range(repeats):
        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda: evaluate_split(setting.model, setting.split, setting.reader, setting.spec, setting.device)
        }
        calls |= {name: functools.partial(reference_evaluation, setting, tokens_of, name) for name in baselines}
        for name, call in calls.items():
            elapsed, found[name] = timed(setting.device, call)
            seconds[name].append(elapsed)
    return {name: min(values) for name, values in seconds.items()}, found["ours"], found[setting.spec.config.precision]


def report(
    setting: Setting, counts: Mapping[str, float], rate: float, seconds: Mapping[str, float], result: EvaluationResult
) -> bool:
    """Print times, floors and ratios; return whether the ratio is reached."""
    precision = setting.spec.config.precision
    print(
        f"{precision}, {describe_device(setting.device)}, {torch.get_num_threads()} threads, {setting.spec.workers} "
        f"loader processes; gallery {len(setting.split.gallery)}, entries {result.counts['query_list_entries']}, "
        f"sources {result.counts['sources_encoded_total']}, fused {result.counts['distinct_sets_fused']} of "
        f"{result.counts['mixed_entries']}; {result.cache['stored']} cached"
    )
    rows = []
    for name, side, plan in ((f"reference {precision}", precision, "reference"), ("ours", "ours", "ours")):
        rows.append(
            {
                "plan": name,
                "seconds": seconds[side],
                "GMAC": counts[plan] / 1e9,
                "floor s": counts[plan] / rate,
                "% of matmul rate": 100 * counts[plan] / rate / seconds[side],
            }
        )
    print(format_table(rows, title=f"matmul rate {rate / 1e9:.1f} GMAC/s"))
    print(f"seconds of ours by part: {dict(result.seconds)}")
    ratios = {name: seconds[name] / seconds["ours"] for name in seconds if name != "ours"}
    for plan, label in (("encode once", "each source encoded once"), ("ours", "our whole plan")):
        counted = counts["reference"] / counts[plan]
        print(
            f"counted ratio, {label}: {counted:.2f}; "
            + "; ".join(
                f"measured against {name}: {ratio:.2f} = {ratio / counted:.2f} x" for name, ratio in ratios.items()
            )
        )
    return ratios[precision] >= REACH * counts["reference"] / counts["encode once"]


def main() -> int:
    """Time both plans and print their ratio beside the ratio that counting allows."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        setting, config = make_setting(options, folder)
        counter = MultiplyAdds(config)
        counts = count_plans(counter, setting.split)
        rate = matmul_rate(setting.device, options.precision)
        seconds, result, (reference, similarities) = measure(setting, counter.tokens, options.repeats)
    reached = report(setting, counts, rate, seconds, result)
    unexplained = unexplained_difference(result, setting.split, similarities)
    print(
        f"largest difference of any metric: {largest_difference(result, reference):.1e}; beyond swaps of similarities "
        f"closer than {ROUNDING:.0e}: {max(0.0, unexplained):.1e}"
    )
    return 0 if reached and (unexplained <= SAME or options.precision != "fp32") else 1


if __name__ == "__main__":
    run_script(main)
