"""What the layers of one cache share: the pool, the limits, and who grows when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from vmm import _core
from vmm.errors import InvalidArgument, OutOfPages
from vmm.layout import (
    HEAD_MAJOR,
    MOST_INT32_ELEMENTS,
    TOKEN_MAJOR,
    Layout,
    fits,
    fits_int32,
    warn_of_int32,
)
from vmm.pool import Pool
from vmm.stream import torch_stream

if TYPE_CHECKING:
    from vmm.integrations.transformers.layer import VmmLayer

Result = TypeVar("Result")

# DLPack's type codes: https://dmlc.github.io/dlpack/latest/c_api.html
_TYPE_CODES = {torch.float64: 2, torch.float32: 2, torch.float16: 2, torch.bfloat16: 4}


def with_garbage_collected(work: Callable[[], Result]) -> Result:
    """``work()``; when it runs out of pages, again without the caches that only reference cycles keep."""
    try:
        return work()
    except OutOfPages:
        gc.collect()
    return work()


class CacheMemory:
    """Not thread-safe, like the cache it belongs to; caches on one pool may be used in different threads.

    ``pool`` is one, or how to get one for the device of the first states. ``heads`` (of one row) and
    ``page_bytes`` are checked as soon as the pool is known.
    """

    def __init__(
        self,
        pool: Pool | Callable[[torch.device], Pool],
        max_tokens: int,
        page_bytes: int | None,
        heads: int = 1,
    ) -> None:
        self.max_tokens = max_tokens
        self.page_bytes = page_bytes
        self.frontier = 0
        self._heads = heads
        self._has_warned = False
        # Weak, or the cache would be a reference cycle, and its memory would wait for the garbage collector.
        self._layers: list[weakref.ref[VmmLayer]] = []
        self._find_pool = pool
        self._pool = pool if isinstance(pool, Pool) else None

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            raise InvalidArgument(
                "pool: depends on where the first states are, unless pool or device is given"
            )
        return self._pool

    def check(self) -> None:
        """Raises InvalidArgument where the pool, if it is known yet, cannot hold one row."""
        if self._pool is None:
            return
        granularity, page_bytes = self._pool._core.granularity, self.page_bytes
        if page_bytes is None:
            self.page_bytes = self._pool.default_page_bytes
        elif not isinstance(page_bytes, int) or page_bytes < granularity or page_bytes & (page_bytes - 1):
            raise InvalidArgument(
                f"page_bytes is {page_bytes!r}; expected a power of two of at least {granularity}"
            )
        self.layout(1, self._heads)

    def require_device(self, device: torch.device) -> None:
        """Chooses the pool for the first states; refuses states that are elsewhere than it."""
        if self._pool is None:
            self._pool = self._find_pool(device)
            try:
                self.check()
            except InvalidArgument:
                self._pool = None
                raise
        if str(device) != self._pool.device:
            raise InvalidArgument(f"device is {device}; the cache's pool is on {self._pool.device}")

    def empty_copy(self) -> CacheMemory:
        """For another cache of the same kind, without layers."""
        return CacheMemory(self._pool or self._find_pool, self.max_tokens, self.page_bytes, self._heads)

    def add(self, layer: VmmLayer) -> None:
        self._layers.append(weakref.ref(layer))

    @property
    def layers(self) -> list[VmmLayer]:
        return [layer for reference in self._layers if (layer := reference()) is not None]

    def layout(self, batch: int, heads: int) -> Layout:
        """The layout for so many rows. Raises InvalidArgument when no layout leaves enough mappings."""
        limit = self.pool._core.max_mappings
        tensors = 2 * len(self._layers)
        # Head-major is what attention on CPUs is faster on; a GPU's pages are too large for a head each.
        for layout in (TOKEN_MAJOR,) if self.pool._core.gpu else (HEAD_MAJOR, TOKEN_MAJOR):
            if fits(layout, tensors, batch, heads, limit):
                return layout
        raise InvalidArgument(
            f"batch is {batch}: with {len(self._layers)} layers the cache would use more than half of the"
            f" {limit} memory mappings a process may have; raise {_core.mapping_limit()[1]} or use fewer rows"
        )

    def allocate(self, batch: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, tuple]:
        """A ``[batch, heads, max_tokens, dim]`` tensor with nothing mapped, and its part of a growth."""
        if dtype not in _TYPE_CODES:
            expected = ", ".join(str(known) for known in _TYPE_CODES)
            raise InvalidArgument(f"dtype is {dtype}; expected one of {expected}")
        layout = self.layout(batch, heads)
        record_bytes = layout.record_elements(heads, dim) * dtype.itemsize
        extent_bytes = -(-self.max_tokens * record_bytes // self.page_bytes) * self.page_bytes
        extents = layout.extents(batch, heads)
        elements = extent_bytes // dtype.itemsize
        if self.pool._core.gpu and not fits_int32(elements) and not self._has_warned:
            self._has_warned = True  # once for all layers
            warn_of_int32(f"max_tokens: a row has {elements} elements; expect fewer tokens")
        lease = self.pool.reserve(
            page_bytes=self.page_bytes,
            extent_bytes=extent_bytes,
            extents=extents,
            longest_bytes=MOST_INT32_ELEMENTS * dtype.itemsize if self.pool._core.gpu else 2**62,
            stream=torch_stream(self.pool),
        )
        capsule = lease.dlpack(
            offset_bytes=0,
            shape=(batch, heads, self.max_tokens, dim),
            strides=layout.strides(lease.extent_bytes // dtype.itemsize, heads, dim),
            type_code=_TYPE_CODES[dtype],
            type_bits=8 * dtype.itemsize,
        )
        with torch.inference_mode(False):  # or only inference mode could ever write into it
            return torch.from_dlpack(capsule), (lease, 0, extents, record_bytes)

    def grow(self, layer: VmmLayer, to: int) -> int:
        """Makes tokens [0, to) of ``layer`` usable; returns its new limit.

        The first layer to get there asks for all: so a prompt that does not fit fails before any layer has
        changed, and the pager maps the other layers while the first ones compute.
        """
        if to > self.max_tokens:
            raise InvalidArgument(f"max_tokens is {self.max_tokens}; the cache would grow to {to} tokens")
        if to > self.frontier:
            with_garbage_collected(lambda: self._admit(layer.length, to))
        limit = with_garbage_collected(lambda: layer.growth.advance(to))
        self.frontier = max(self.frontier, to)
        return limit

    def _admit(self, pace: int, to: int) -> None:
        # Layers that did not keep pace are not used by this model: they get nothing.
        _core.admit([layer.growth for layer in self.layers if layer.growth and layer.length == pace], to)
