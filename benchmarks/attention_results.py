"""What was measured, as the attention benchmark's metrics; benchmarks/attention.py says what they mean."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from vmm.benchmarks.attention_shapes import MIB, Model, Shape

FLASH = "sdpa"  # the kernel of the headline metrics, which their names leave out
TRITON = "triton"  # the peer's, with a block table and without
STOCK, PAGED, OURS = "stock", "paged", "G1"


@dataclass(frozen=True)
class Case:
    """One comparison: the same work on every kind of memory."""

    model: Model
    shape: Shape
    kernel: str
    page_bytes: int

    @property
    def name(self) -> str:
        return f"{self.model.name}_{self.shape.name}"


@dataclass
class Results:
    default_page_bytes: int  # the one that names leave out
    seconds: dict[Case, dict[str, float]] = field(default_factory=dict)  # by kind of memory
    skipped: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)  # "kernel phase", perhaps of one arm, and why
    paged_kernel: str = "none"

    def metrics(self) -> dict[str, float]:
        each: dict[str, dict[str, float]] = defaultdict(dict)  # by what it is, by case
        for case, seconds in self.seconds.items():
            for name, ratio in self._ratios(case, seconds).items():
                each[name][case.name] = ratio
        means = {name: statistics.geometric_mean(ratios.values()) for name, ratios in each.items()}
        shapes = {f"{name}_{case}": ratio for name, ratios in each.items() for case, ratio in ratios.items()}
        return {**means, **shapes}

    def peers(self) -> dict[str, float | str]:
        """Milliseconds of torch.empty and of the paged peer, and what there is nothing of."""
        found: dict[str, float | str] = {
            f"{arm}_{case.shape.phase}_{case.kernel}{self._page(case)}_{case.name}_ms": 1e3 * seconds[arm]
            for case, seconds in self.seconds.items()
            for arm in (STOCK, PAGED)
            if arm in seconds
        }
        found["paged_kernel"] = self.paged_kernel
        found["skipped"] = "; ".join(self.skipped) or "nothing"
        for what, why in self.unavailable.items():
            found[f"unavailable: {what}"] = why
        return found

    def _page(self, case: Case) -> str:
        return "" if case.page_bytes == self.default_page_bytes else f"_{case.page_bytes / MIB:g}MiB"

    def _ratios(self, case: Case, seconds: dict[str, float]) -> dict[str, float]:
        page = self._page(case)
        if case.kernel != TRITON:
            kernel = "" if case.kernel == FLASH else f"_{case.kernel}"
            return {
                f"{case.shape.phase}_ratio_{arm}{kernel}{page}": seconds[STOCK] / taken
                for arm, taken in seconds.items()
                if arm != STOCK
            }
        found = {
            f"ours_over_paged{'' if arm == OURS else f'_{arm}'}{page}": taken / seconds[PAGED]
            for arm, taken in seconds.items()
            if arm not in (STOCK, PAGED)
        }
        flash = self.seconds.get(Case(case.model, case.shape, FLASH, case.page_bytes))
        if flash is not None and OURS in flash:
            found[f"flash_over_paged{page}"] = flash[OURS] / seconds[PAGED]
        return found
