"""The worker's side: the memory that vLLM takes for its KV cache, of which only confirmed blocks are mapped."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

import vmm
from vmm.arguments import chosen_page_bytes
from vmm.dlpack import tensor_over
from vmm.integrations.vllm.compat import is_kv_allocation
from vmm.integrations.vllm.lease_blocks import LeaseBlocks
from vmm.units import rounded_up

if TYPE_CHECKING:
    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings


class WorkerMemory:
    """One worker's KV memory. Made in the worker's process, because a pool does not outlast a fork."""

    def __init__(self, settings: Settings, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        budget = layout.size if settings.budget_bytes is None else settings.budget_bytes
        self.pool = vmm.Pool(budget, device=device)
        self.page_bytes = chosen_page_bytes(settings.page_bytes, self.pool)
        self._budget = budget
        try:
            self._reserve()
        except BaseException:
            self.pool.close()
            raise

    def hello(self) -> dict[str, int]:
        """What the scheduler must know."""
        return {
            "row": self.layout.blocks_in_row(self.page_bytes),
            "capacity": self.layout.blocks_within(self._budget, self.page_bytes),
            "page_bytes": self.page_bytes,
            "budget_bytes": self._budget,
        }

    def _reserve(self) -> None:
        size = rounded_up(self.layout.reach, self.page_bytes)
        self._lease = self.pool._core.reserve(page_bytes=self.page_bytes, extent_bytes=size, zeroed=True)
        self.blocks = LeaseBlocks(self._lease, self.layout)
        # vLLM's null block: block tables are padded with it, so kernels read and write it at any time.
        self.blocks.keep([0])

    def tensor(self, size: int) -> torch.Tensor:
        """The memory as vLLM's ``torch.zeros(size, dtype=torch.int8)``, mapped or not."""
        if size < self.layout.size:
            raise RuntimeError(f"vLLM takes {size} bytes for its KV cache instead of {self.layout.size}")
        return tensor_over(self._lease, torch.int8, (size,), (1,))

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """While this is open, vLLM's allocation of its KV cache is answered with our memory."""
        answer = _AnswerAllocation(self.tensor)
        with answer:
            yield
        if answer.answered != 1:
            raise RuntimeError(
                f"vLLM made {answer.answered} allocations for its KV cache where VmmConnector expected one;"
                " please report this with the model's name"
            )

    def keep(self, ids: array[int]) -> bool:
        """Maps blocks for as long as the scheduler wants. False when there is no memory for all of them; then
        nothing has changed."""
        try:
            self.blocks.keep(ids)
        except vmm.OutOfPages:
            return False
        return True

    def drop(self, ids: array[int]) -> None:
        """Gives the memory of blocks back to the system."""
        if self.pool._core.gpu:
            torch.cuda.synchronize()  # streams that the pool does not know of may still read them
        self.blocks.drop(ids)
        self.pool.trim()

    def figures(self) -> dict[str, int]:
        stats = self.pool.stats()
        return {"mapped_bytes": stats.mapped_bytes, "budget_bytes": stats.budget_bytes, "stalls": stats.stalls}

    def close(self) -> None:
        self.pool.close()


class _AnswerAllocation(TorchFunctionMode):
    def __init__(self, tensor: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self._tensor = tensor
        self.answered = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_kv_allocation(func, args, kwargs):
            return func(*args, **kwargs)
        self.answered += 1
        return self._tensor(args[0])
