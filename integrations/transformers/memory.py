"""What the layers of one cache share: the pool, the limits, and who grows when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from vmm import _core
from vmm.arguments import chosen_page_bytes
from vmm.dlpack import checked_float, tensor_over
from vmm.errors import InvalidArgument, OutOfPages
from vmm.integrations.transformers.idle import IdleLayers, lost
from vmm.integrations.transformers.rows import Place
from vmm.limits import MOST_INT32_ELEMENTS, fits_int32, fits_mappings, too_many_mappings, warn_of_int32
from vmm.pool import Pool
from vmm.records import LayoutName, part_of_one
from vmm.stream import torch_stream
from vmm.tenant import Tenant, owner_id
from vmm.units import rounded_up

if TYPE_CHECKING:
    from vmm.integrations.transformers.layer import VmmLayer

Result = TypeVar("Result")


class CacheMemory:
    """The memory of one cache. It is as little thread-safe as its cache; caches on one pool may be used in
    different threads.

    ``pool`` is a pool, or finds one for the device of the first states. ``heads`` (of one row) and
    ``page_bytes`` are checked as soon as the pool is known.
    """

    def __init__(
        self,
        pool: Pool | Callable[[torch.device], Pool],
        max_tokens: int,
        page_bytes: int | None,
        heads: int = 1,
        tenant: Tenant | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.page_bytes = page_bytes
        self.frontier = 0
        self._heads = heads
        self.tenant = tenant
        self._has_warned = False
        # Strong references would make the cache a cycle, whose memory would wait for the garbage collector.
        self._layers: list[weakref.ref[VmmLayer]] = []
        self.idle: IdleLayers | None = None  # while the cache is parked
        self.parked_tokens = 0  # when it was parked last
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
        self.page_bytes = chosen_page_bytes(self.page_bytes, self._pool)
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

    def with_room(self, work: Callable[[], Result]) -> Result:
        """Calls ``work``; when it runs out of pages, frees the caches that only reference cycles keep, waits
        for what parked ones give, and calls it again."""
        try:
            return work()
        except OutOfPages:
            gc.collect()
        while True:
            try:
                return work()
            except OutOfPages as error:
                asked = error.asked
            if not self.pool._core.await_room(asked):
                return work()

    def wake(self) -> bool:
        """Whether the cache was parked; it is not any more. Raises as IdleLayers.wake, and SequenceLost."""
        if self.idle is None:
            return False
        left = self.with_room(self.idle.wake)
        idle, self.idle = self.idle, None
        idle.show()
        self.frontier = max(layer.length for layer in self.layers)
        if left is not None:
            raise lost(self.layers, left)
        return True

    def empty_copy(self) -> CacheMemory:
        """The memory of another cache of the same kind, without layers."""
        return CacheMemory(
            self._pool or self._find_pool, self.max_tokens, self.page_bytes, self._heads, self.tenant
        )

    def add(self, layer: VmmLayer) -> VmmLayer:
        """Counts ``layer``, which it returns, among the cache's own."""
        self._layers.append(weakref.ref(layer))
        return layer

    @property
    def layers(self) -> list[VmmLayer]:
        """The layers that were added and still live."""
        return [layer for reference in self._layers if (layer := reference()) is not None]

    def layout(self, batch: int, heads: int) -> LayoutName:
        """The layout for so many rows. Raises InvalidArgument when no layout leaves enough mappings."""
        most = self.pool._core.max_mappings
        rows = 2 * len(self._layers) * batch
        # Attention on CPUs is faster on head-major K and V; a GPU's pages are too large for a head each.
        if not self.pool._core.gpu and fits_mappings(rows * heads, most):
            return "head-major"
        if fits_mappings(rows, most):
            return "token-major"
        what = f"batch is {batch}: with {len(self._layers)} layers the cache"
        raise too_many_mappings(what, most, "fewer rows")

    def allocate(self, batch: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, Place]:
        """A ``[batch, heads, max_tokens, dim]`` tensor with nothing mapped, and where it lies."""
        part = part_of_one(self.layout(batch, heads), heads, dim)
        record_bytes = part.record * checked_float(dtype).itemsize
        extent_bytes = rounded_up(self.max_tokens * record_bytes, self.page_bytes)
        extents = batch * part.extents
        elements = extent_bytes // dtype.itemsize
        if self.pool._core.gpu and not fits_int32(elements) and not self._has_warned:
            self._has_warned = True  # once for all layers
            warn_of_int32(f"max_tokens: a row has {elements} elements; expect fewer tokens")
        lease = self.pool._core.reserve(
            page_bytes=self.page_bytes,
            extent_bytes=extent_bytes,
            extents=extents,
            longest_bytes=MOST_INT32_ELEMENTS * dtype.itemsize if self.pool._core.gpu else 2**62,
            stream=torch_stream(self.pool),
            tenant=owner_id(self.tenant),
        )
        row, token, head, element = part.strides(lease.extent_bytes // dtype.itemsize, dim)
        space = tensor_over(
            lease, dtype, shape=(batch, heads, self.max_tokens, dim), strides=(row, head, token, element)
        )
        return space, Place(lease, batch, extents, record_bytes)

    def grow(self, layer: VmmLayer, to: int, like: list[int] | None = None) -> int:
        """Makes tokens [0, to) of ``layer`` usable; returns its new limit. Where ``like`` says which rows
        will be written alike, their whole pages are mapped once.

        The first layer to get there asks for all layers. So a prompt that does not fit fails before any layer
        has changed, and the pager maps the other layers while the first ones compute.
        """
        if to > self.max_tokens:
            raise InvalidArgument(f"max_tokens is {self.max_tokens}; the cache would grow to {to} tokens")
        if to > self.frontier:
            self.with_room(lambda: self._admit(layer.length, to, like))
        advance = layer.growth.advance
        limit = self.with_room(lambda: advance(to) if like is None else layer.growth.advance_alike(like, to))
        self.frontier = max(self.frontier, to)
        return limit

    def _admit(self, pace: int, to: int, like: list[int] | None) -> None:
        # Layers that did not keep pace are not used by this model: they get nothing.
        growths = [layer.growth for layer in self.layers if layer.growth and layer.length == pace]
        if like is None:
            _core.admit(growths, to)
        else:  # the pager would not know what to share
            _core.admit_alike(growths, like, to)
