"""The worker's side: the memory that vLLM takes for its KV cache, of which only confirmed blocks are
mapped."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

import vmm
from vmm.arguments import chosen_page_bytes
from vmm.integrations.vllm import compat
from vmm.units import rounded_up

if TYPE_CHECKING:
    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings

_LONGEST_WAIT_S = 30.0  # for a minimum that another engine of the share still uses
_MOMENT_S = 0.05  # in which an idle engine of the share gives memory back
_RETRY_S = 0.005


class WorkerMemory:
    """One worker's KV memory. Made in the worker's process, because a pool does not outlast a fork."""

    def __init__(self, settings: Settings, layout: Layout, device: torch.device, request_blocks: int) -> None:
        self.layout = layout
        budget = layout.size if settings.budget_bytes is None else settings.budget_bytes
        page = settings.page_bytes
        if settings.share is None:
            self.pool = vmm.Pool(budget, device=device)
            assured = budget
        else:
            assured = settings.minimum_bytes or _least_bytes(layout, page or 2 << 20, request_blocks, budget)
            self.pool = vmm.Pool(
                budget, device=device, share=settings.share, minimum=assured, priority=settings.priority
            )
        self.gpu = self.pool._core.gpu
        self.shared = settings.share is not None
        try:
            if not self.pool._core.device_events:
                raise ValueError(
                    "VmmConnector: this CUDA driver is too old to tell when all streams of a device are done"
                    " with a block; update it to one of CUDA 12.5 or later"
                )
            self.page_bytes = chosen_page_bytes(page, self.pool)
            self.row = layout.blocks_in_row(self.page_bytes)
            self.block_bytes = layout.stride * len(layout.starts)
            self._budget, self._assured = budget, assured
            self._reserve()
        except BaseException:
            self.pool.close()
            raise

    def hello(self) -> dict[str, Any]:
        """What the scheduler must know when it comes, which is after the warm-up."""
        if self.gpu:
            compat.gpu_runner_is_warm()
        return {
            "row": self.row,
            "block_bytes": self.block_bytes,
            "page_bytes": self.page_bytes,
            "capacity": self.layout.blocks_within(self._budget, self.page_bytes),
            #: What nobody can keep from this worker for long.
            "assured_bytes": self._assured,
            "shared": self.shared,
            # Not measured on a GPU yet: what kernels of other backends look at while requests run.
            "shrinks": not self.gpu,
        }

    def _reserve(self) -> None:
        # What is not mapped must read as zeros: kernels look at stale ids in block tables.
        self._range = self.pool.range(self.layout.reach, self.page_bytes, zeroed=True)
        self._blocks = self._range.blocks(self.layout.starts, self.layout.stride, self.layout.count)
        # vLLM's null block: block tables are padded with it, so kernels read and write it at any time.
        self._keep_within([0], _LONGEST_WAIT_S)  # in a share others may still use what is promised to us

    def _keep_within(self, ids: Sequence[int], seconds: float) -> None:
        """Keeps the blocks. In a share it waits so long for memory: others have been asked for it."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self._blocks.keep(ids)
            except vmm.OutOfPages:
                if not self.shared or time.monotonic() > until:
                    raise
            time.sleep(_RETRY_S)

    def tensor(self, size: int) -> torch.Tensor:
        """The memory as vLLM's ``torch.zeros(size, dtype=torch.int8)``, mapped or not."""
        if size != self.layout.size:
            raise RuntimeError(f"vLLM takes {size} bytes for its KV cache instead of {self.layout.size}")
        return self._range.tensor(torch.int8)[:size]

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
            self._keep_within(ids, _MOMENT_S)
        except vmm.OutOfPages:
            return False
        return True

    def drop(self, ids: array[int]) -> None:
        """Gives the memory of blocks back to the system."""
        # Streams that the pool does not know of may still read them.
        self._blocks.drop(ids, unmap=True, whole_device=True)
        self.pool.trim()

    def figures(self) -> dict[str, int]:
        stats = self.pool.stats()
        return {
            "mapped_bytes": stats.mapped_bytes,
            "granted_bytes": stats.granted_bytes,
            "pressure_bytes": stats.pressure_bytes,
        }

    def close(self) -> None:
        self.pool.close()


def _least_bytes(layout: Layout, page_bytes: int, request_blocks: int, budget: int) -> int:
    """What one request and the null block need."""
    blocks = rounded_up(request_blocks + 1, layout.blocks_in_row(page_bytes))
    return min(layout.bytes_of(blocks, page_bytes), budget)


class _AnswerAllocation(TorchFunctionMode):
    def __init__(self, tensor: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self._tensor = tensor
        self.answered = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not compat.is_kv_allocation(func, args, kwargs):
            return func(*args, **kwargs)
        self.answered += 1
        return self._tensor(args[0])
