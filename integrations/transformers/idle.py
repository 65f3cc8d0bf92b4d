"""A cache whose conversation is idle: its tokens go to the pool's tiers where memory is short."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from vmm import _core
from vmm.errors import SequenceLost
from vmm.tiers import seconds

if TYPE_CHECKING:
    from vmm.integrations.transformers.layer import VmmLayer
    from vmm.pool import Pool


class IdleLayers:
    """Layers of one cache, all of which have tokens; they are parked from now on. Raises InvalidArgument
    where their pages have another size than the tiers'."""

    def __init__(
        self, pool: Pool, layers: list[VmmLayer], *, hint: tuple[str, int, int], new_tokens: int
    ) -> None:
        category, priority, idle_ns = hint
        self._core = _core.ParkedGrowths(
            pool._core,
            [(layer.growth, layer.length) for layer in layers],
            category=category,
            priority=priority,
            idle_ns=idle_ns,
            new_tokens=new_tokens,
        )
        self._layers = [weakref.ref(layer) for layer in layers]  # else this would keep them
        for layer in layers:
            layer.park()

    @property
    def ready(self) -> bool:
        return self._core.ready

    @property
    def load_s(self) -> float | None:
        return seconds(self._core.load_ns)

    def prefetch(self, by_s: float) -> None:
        self._core.want(int(by_s * 1e9))

    def wake(self) -> int | None:
        """Brings the tokens back. Returns how many are left where some were lost. Raises OutOfPages, Closed
        or DriverError, and nothing has changed."""
        return self._core.wake()

    def show(self) -> None:
        """After wake(): the layers have their tokens again."""
        for reference in self._layers:
            if (layer := reference()) is not None:
                layer.unpark()


def lost(layers: list[VmmLayer], left: int) -> SequenceLost:
    """Cuts all layers of a cache back to the tokens that are left. Windows have given up what they would need
    then, so a cache with windows has none left."""
    if any(layer.window for layer in layers):
        left = 0
    for layer in layers:
        if left == 0:
            layer._forget()
        elif layer.growth is not None:
            layer.crop(min(0, left - layer.length))
    return SequenceLost(
        f"the copies of tokens were not good, and these are lost: the cache has its first {left}", (), (left,)
    )
