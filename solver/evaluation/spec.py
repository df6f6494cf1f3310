"""How to evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.evaluation import EvalConfig
from configs.schema.experiment import ExperimentConfig
from solver.evaluation.token_cache import MEGABYTE, CacheBudget
from utils.processes import ALONE, Processes


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """The options of an evaluation, and what the machine, the data section and one pass add to them."""

    config: EvalConfig = field(default_factory=EvalConfig)
    """Section `eval`."""
    workers: int = 0
    """Loader processes."""
    skip_unreadable: bool = False
    """Leave unreadable sources out, counted and listed, instead of stopping."""
    mirror: bool = False
    """Encode the mirror images."""
    processes: Processes = ALONE
    """Among which the work is shared out; all evaluate the same model on the same splits."""

    @classmethod
    def of(cls, config: ExperimentConfig, workers: int, processes: Processes = ALONE) -> EvaluationSpec:
        """Return what an experiment's sections say. workers: loader processes. processes: that evaluate together."""
        return cls(
            config=config.eval, workers=workers, skip_unreadable=config.data.on_error == "skip", processes=processes
        )

    @property
    def budget(self) -> CacheBudget:
        """Budget of the token cache."""
        return CacheBudget(
            device_bytes=self.config.cache_device_mb * MEGABYTE, host_bytes=self.config.cache_host_mb * MEGABYTE
        )
