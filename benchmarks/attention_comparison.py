"""The attention of one model over every kind of memory, shape by shape, each compared and then timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from vmm.benchmarks import attention_memory as memory
from vmm.benchmarks.attention_kernels import Kernel, reference, require_close
from vmm.benchmarks.attention_paged import Paged
from vmm.benchmarks.attention_results import FLASH, PAGED, STOCK, TRITON, Case, Results
from vmm.benchmarks.attention_shapes import BLOCK_TOKENS, GROUPS, Model, Scale, Shape
from vmm.benchmarks.attention_timing import Arms, Timer
from vmm.pool import Pool

_SAME_KERNEL = 5e-3  # relative error between memories: the order of summing may differ
_OTHER_KERNEL = 2e-2  # against float32 arithmetic, and of other kernels: bfloat16 rounds at 4e-3
_LEAST_ROUNDS = 3

Layers = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Setting:
    """What all comparisons share."""

    scale: Scale
    device: str
    timer: Timer
    kernels: dict[str, Kernel]
    paged: Paged | None
    results: Results


@dataclass
class Comparison:
    """``held`` by kind of memory, torch.empty's first; ``blocks`` and ``table`` are the paged peer's."""

    setting: Setting
    model: Model
    page_bytes: int
    held: dict[str, memory.Held]
    blocks: memory.Held
    table: torch.Tensor

    def measure(self, shape: Shape) -> None:
        """By every kernel. What torch refuses, a kernel or one of its arms, is noted as unavailable and not
        tried again."""
        device = self.table.device
        sizes = (shape.batch, shape.queries, self.model.q_heads, self.model.dim)
        q = torch.randn(sizes, dtype=memory.DTYPE, device=device)
        count = (
            self.setting.scale.measured_layers if shape.phase == "decode" else 1
        )  # a prompt is long enough
        views = {name: self._views(held, shape, count) for name, held in self.held.items()}
        expected: torch.Tensor | None = None
        if shape.context * shape.queries * shape.batch <= self.setting.scale.checked_scores:
            expected = reference(q, *views[STOCK][0])
        for name, kernel in self.setting.kernels.items():
            case = Case(self.model, shape, name, self.page_bytes)
            arms = {arm: partial(_attend, kernel, q, layers) for arm, layers in views.items()}
            expected = self._compare_and_time(case, arms, expected)
        if self.setting.paged is not None and shape.phase == "decode":
            self._measure_paged(shape, q, views, expected)

    def _views(self, held: memory.Held, shape: Shape, count: int) -> Layers:
        sizes = (shape.batch, shape.context)
        return [
            tuple(each[: shape.tokens].unflatten(0, sizes) for each in pair) for pair in held.layers[:count]
        ]  # type: ignore[misc]

    def _measure_paged(
        self, shape: Shape, q: torch.Tensor, views: dict[str, Layers], expected: torch.Tensor | None
    ) -> None:
        paged = self.setting.paged
        assert paged is not None
        blocks = shape.context // BLOCK_TOKENS
        table = self.table[: shape.batch * blocks].view(shape.batch, blocks)
        with_table = [(k, v, table) for k, v in self.blocks.layers]
        case = Case(self.model, shape, TRITON, self.page_bytes)
        arms = {arm: partial(_attend, _contiguous(paged), q, layers) for arm, layers in views.items()}
        arms[PAGED] = partial(_attend_paged, paged, q, with_table, shape.context)
        self._compare_and_time(case, arms, expected)

    def _compare_and_time(self, case: Case, arms: Arms, expected: torch.Tensor | None) -> torch.Tensor | None:
        """torch.empty's output of the first layer, or ``expected`` where there is none. Raises Mismatch
        where an arm's output is another."""
        kernel = f"{case.kernel} {case.shape.phase}"
        outputs = self._tried(kernel, case, arms[STOCK])
        if outputs is None:
            return expected
        if expected is not None:
            require_close(f"{kernel} {case.name}: torch.empty", outputs[0], expected, _OTHER_KERNEL)
        possible = {STOCK: arms[STOCK]}
        for arm, work in arms.items():
            found = None if arm == STOCK else self._tried(f"{kernel} on {arm}", case, work)
            if found is None:
                continue
            possible[arm] = work
            for layer, (out, same) in enumerate(zip(found, outputs, strict=True)):
                require_close(f"{kernel} {case.name}: {arm}, layer {layer}", out, same, _SAME_KERNEL)
        self._time(case, possible)
        return outputs[0]

    def _tried(self, what: str, case: Case, work: Callable[[], object]) -> list[torch.Tensor] | None:
        if what in self.setting.results.unavailable:
            return None
        try:
            outputs = work()
        except torch.OutOfMemoryError:
            self.setting.results.skipped.append(f"{what} {case.name}: out of memory")
            return None
        except Exception as error:  # Triton's are no RuntimeError
            if self.setting.device != "cpu":
                torch.cuda.synchronize()  # raises where the error is not a refusal but the context's end
            self.setting.results.unavailable[what] = f"{type(error).__name__}: {error}"[:200]
            return None
        return outputs  # type: ignore[return-value]

    def _time(self, case: Case, arms: Arms) -> None:
        start = perf_counter()
        once = self.setting.timer({STOCK: arms[STOCK]}, 1)[STOCK]
        once = max(once, perf_counter() - start) * len(arms)
        share = self.setting.scale.longest_s if case.kernel == FLASH else 2 * self.setting.scale.shape_s
        if _LEAST_ROUNDS * once > share:
            self.setting.results.skipped.append(
                f"{case.kernel} {case.shape.phase} {case.name}: {_LEAST_ROUNDS} rounds would take"
                f" {_LEAST_ROUNDS * once:.0f} s"
            )
            return
        rounds = max(_LEAST_ROUNDS, min(self.setting.scale.rounds, int(self.setting.scale.shape_s / once)))
        self.setting.results.seconds[case] = self.setting.timer(arms, rounds)


def _attend(kernel: Kernel, q: torch.Tensor, layers: Layers) -> list[torch.Tensor]:
    return [kernel(q, k, v) for k, v in layers]


def _contiguous(paged: Paged) -> Kernel:
    return lambda q, k, v: paged(q, k, v, None, 0)


def _attend_paged(paged: Paged, q: torch.Tensor, layers: list, context: int) -> list[torch.Tensor]:
    return [paged(q, k, v, table, context) for k, v, table in layers]


@contextmanager
def comparison(setting: Setting, model: Model, page_bytes: int, tokens: int) -> Iterator[Comparison]:
    """Holds ``tokens`` tokens in every kind of memory, all of the same values."""
    layers, device = setting.scale.measured_layers, setting.device
    source = memory.stock(model, layers, tokens, device)
    with Pool(memory.pool_bytes(model, layers, tokens, page_bytes), device=device, lookahead_pages=0) as pool:
        held = {
            STOCK: source,
            "kvtensor": memory.kv_tensors(pool, source, page_bytes),
            **{group: memory.record_tensors(pool, source, model, group, page_bytes) for group in GROUPS},
        }
        blocks, table = memory.paged(source)
        try:
            yield Comparison(setting, model, page_bytes, held, blocks, table)
        finally:
            if device != "cpu":
                torch.cuda.synchronize()
            for each in (*held.values(), blocks):
                each.close()
