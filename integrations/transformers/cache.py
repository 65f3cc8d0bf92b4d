"""VmmCache: the Transformers cache over a vmm pool."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

from vmm.arguments import checked_number
from vmm.default_pools import chosen_pool, default_pool
from vmm.errors import InvalidArgument, MappingLimit
from vmm.integrations.transformers.idle import IdleLayers
from vmm.integrations.transformers.layer import VmmLayer
from vmm.integrations.transformers.memory import CacheMemory
from vmm.integrations.transformers.saved import SavedLayer
from vmm.integrations.transformers.sliding import VmmSlidingLayer
from vmm.pool import Pool
from vmm.stream import release_after
from vmm.tenant import Tenant, pool_for
from vmm.tiers import checked_by_s, checked_hint


@dataclass(frozen=True)
class CacheStats:
    """One cache at one moment. Only the layers in vmm's memory count."""

    tokens: int  #: of the longest layer
    live_bytes: int  #: of K and V that hold tokens
    mapped_bytes: int  #: live, the last pages' rest, look-ahead, an adopted reservation's surplus
    layers: int  #: in vmm's memory; the others are stock
    layout: str


class VmmCache(DynamicCache):
    """A ``DynamicCache`` whose full-attention layers grow in place in virtual memory.

    ``max_tokens`` bounds a sequence (default: the model's ``max_position_embeddings``); it costs addresses,
    not memory. ``budget`` (bytes or text like ``"12GiB"``) gives the cache a pool of its own; ``pool`` shares
    one; with neither, the cache shares the device's default pool. ``device`` is where the pool is (default:
    where the first states are). The memory belongs to ``tenant``, if there is one. When the cache dies its
    memory goes back to the pool, still mapped, and the next cache of the same shape and tenant starts warm,
    unless it comes later than the pool's ``idle_seconds``.

    Sliding-window, linear-attention and other special layers stay the stock ones. All layers must be on one
    device.

    Raises InvalidArgument for bad arguments, and on growth past ``max_tokens``; OutOfPages when a forward
    needs more pages than can be had. If that happens in the middle of a forward, ``crop`` back to the length
    before it and go on. Several threads must not use one cache at once; they may use several caches of one
    pool.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        max_tokens: int | None = None,
        budget: int | str | None = None,
        *,
        pool: Pool | None = None,
        page_bytes: int | None = None,
        device: torch.device | str | None = None,
        tenant: Tenant | None = None,
    ) -> None:
        if not isinstance(config, PreTrainedConfig):
            raise InvalidArgument(f"config is {type(config).__name__}; expected a model's config")
        text_config = config.get_text_config(decoder=True)
        if max_tokens is None:
            max_tokens = getattr(text_config, "max_position_embeddings", None)
        checked_number("max_tokens", max_tokens, 1, 2**31 - 1)
        heads = getattr(text_config, "num_key_value_heads", None) or 1
        where = _pool_or_finder(pool, budget, device, tenant)
        memory = CacheMemory(where, max_tokens, page_bytes, heads, tenant)
        Cache.__init__(self, layers=_make_layers(text_config, memory))
        self._memory = memory
        memory.check()

    @property
    def pool(self) -> Pool:
        """The cache's pool. Raises InvalidArgument while it depends on where the first states will be."""
        return self._memory.pool

    @property
    def is_compileable(self) -> bool:
        return False  # else a model without full attention would be compiled, on CUDA, because of our class

    def stats(self) -> CacheStats:
        """The sizes of this cache. Its pool has stats of its own: ``cache.pool.stats()``."""
        tokens = live = mapped = 0
        layout = "none yet"
        for layer in self._memory.layers:
            if layer.growth is None or not layer.is_initialized:
                continue
            tokens = max(tokens, layer.length)
            for space in (layer._key_space, layer._value_space):
                rows, heads, _, dim = space.shape
                live += rows * heads * layer.shown_tokens * dim * space.itemsize
                layout = self._memory.layout(rows, heads)
            mapped += layer.mapped_bytes
        return CacheStats(tokens, live, mapped, len(self._memory.layers), layout)

    def crop(self, tokens_to_remove: int, stream: Any = None) -> None:
        """Crops as ``DynamicCache`` does; layers that an interrupted forward left behind lose accordingly
        less. What is on ``stream`` now (a vmm.Stream, a CUDA stream, or its handle) may still
        read the tokens. Raises OutOfPages, with nothing cropped, where a page must be copied because other
        rows or caches share it.
        """
        release_after(self.pool, stream)
        lengths = [
            layer.get_seq_length() if isinstance(layer, VmmLayer | DynamicSlidingWindowLayer) else None
            for layer in self.layers
        ]
        longest = max((length for length in lengths if length is not None), default=0)
        crops = []
        for layer, length in zip(self.layers, lengths, strict=True):
            behind = 0 if length is None else longest - length
            if behind == 0 or tokens_to_remove + behind < 0:
                crops.append((layer, tokens_to_remove + behind))
        for layer, tokens in crops:
            if isinstance(layer, VmmLayer):
                layer.prepare_crop(tokens)
        for layer, tokens in crops:
            layer.crop(tokens)

    def reset(self, stream: Any = None) -> None:
        """Forgets all tokens; ``stream`` as in ``crop``."""
        release_after(self.pool, stream)
        if self._memory.idle is not None:  # nobody needs to bring them back
            self._memory.idle = None
            for layer in self._memory.layers:
                layer._forget()
        super().reset()

    def park(
        self, *, idle_s: float | None = None, category: str = "", priority: int = 0, stream: Any = None
    ) -> None:
        """The conversation is idle from now on: its user thinks, or a tool runs. Where memory is short others
        get what its full-attention layers have, once that has been copied to a tier of the pool
        (``Pool(host=, nvme=)``). Whoever uses the cache next brings it back, to the same addresses, and waits
        for that: nothing is computed again. ``prefetch`` brings it back earlier, and ``ready`` says when it
        is there. Nothing waits here, and nothing happens to a cache that is parked. Layers with windows stay.

        ``category`` names its kind, and ``idle_s`` is your guess how long it will be idle: from both the
        policy ``predictive`` learns how long such caches are idle. ``priority`` is for the policy of that
        name; ``stream`` as in ``crop``.

        The call that brings it back may raise OutOfPages, and the cache is parked still; or SequenceLost,
        where copies were not good: the cache has the tokens before those that were lost, or none if it has
        layers with windows (and ``reset`` it, if it has other special layers). Raises InvalidArgument where
        the pool has no tiers, or has tiers for pages of another size. What was read of ``layers`` before must
        not be read while it is parked.
        """
        hint = checked_hint(category, priority, idle_s)
        if not self.pool._core.has_tiers:
            raise InvalidArgument(
                "park: the pool has no tier to which idle caches could go; make it with host= or nvme="
            )
        layers = [each for each in self._layers_with_rows() if not each.window]
        if self._memory.idle is not None or not layers:
            return
        release_after(self.pool, stream)
        tokens = max(layer.length for layer in layers)
        new_tokens = max(0, tokens - self._memory.parked_tokens)
        self._memory.idle = IdleLayers(self.pool, layers, hint=hint, new_tokens=new_tokens)
        self._memory.parked_tokens = tokens

    def prefetch(self, by_s: float | None = None) -> None:
        """The cache will be used in ``by_s`` seconds, or soon. If it is parked, and away, it is loaded
        meanwhile, those first that are wanted first. Waits for nothing. Raises InvalidArgument for anything
        but None or seconds from 0 to 1e9."""
        seconds = checked_by_s(by_s)
        if self._memory.idle is not None:
            self._memory.idle.prefetch(seconds)

    @property
    def ready(self) -> bool:
        """Whether whoever uses the cache would not have to wait for its tokens."""
        return self._memory.idle is None or self._memory.idle.ready

    @property
    def load_s(self) -> float | None:
        """How many seconds that would take: see `vmm.kv_cache.Sequence.load_s`."""
        return 0.0 if self._memory.idle is None else self._memory.idle.load_s

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rebatch(lambda rows: rows.repeat_interleave(repeats))
        for layer in self._stock_layers():
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._rebatch(lambda rows: rows[indices.cpu()])
        for layer in self._stock_layers():
            layer.batch_select_indices(indices)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders rows in place, for beam search: pages that a row shares with its new self already stay."""
        self._reorder(beam_idx.cpu())
        for layer in self._stock_layers():
            layer.reorder_cache(beam_idx)

    def _reorder(self, beam_idx: torch.Tensor) -> None:
        self._memory.wake()
        layers = self._layers_with_rows()
        if not layers:
            return
        same = torch.arange(len(layers[0].keys))
        rows = same[beam_idx].tolist()
        if len(rows) != len(same):
            return self._rebatch(lambda rows: rows[beam_idx])
        if rows == same.tolist():
            return None
        try:
            moves = [(layer, layer.prepare_move(rows)) for layer in layers]
        except MappingLimit:
            return self._rebatch(lambda rows: rows[beam_idx])
        try:
            for layer, move in moves:
                layer.finish_move(move, rows)
        except BaseException:
            self.reset()  # rather no tokens than rows in two orders
            raise

    def _rebatch(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Gives all layers other rows or, when memory runs out, none: the old rows stay until the last layer
        has its new ones."""
        changed: list[tuple[VmmLayer, VmmLayer]] = []
        try:
            for layer in self._layers_with_rows():
                rows = choose(torch.arange(len(layer.keys))).tolist()
                changed.append((layer, layer.rebatched(rows)))
        except BaseException:
            changed.clear()  # else the traceback would keep their memory
            raise
        for layer, fresh in changed:
            layer.become(fresh)

    def _layers_with_rows(self) -> list[VmmLayer]:
        return [layer for layer in self._memory.layers if layer.growth is not None and layer.length]

    def _stock_layers(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, VmmLayer) or layer.growth is None]

    def __copy__(self) -> VmmCache:
        """Shares the layers, as a shallow copy of the stock cache does."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> VmmCache:
        """Shares whole pages of tokens, and copies the rest."""
        memory = self._memory.empty_copy()
        return _assembled(memory, [_copied(layer, memory, memo) for layer in self.layers])

    def __reduce__(self) -> tuple:
        # Whoever loads it gets it in the default pool of its device.
        saved = [layer.saved() if isinstance(layer, VmmLayer) else layer for layer in self.layers]
        return _load, (self._memory.max_tokens, self._memory.page_bytes, saved)


def _pool_or_finder(
    pool: Any, budget: int | str | None, device: Any, tenant: Any
) -> Pool | Callable[[torch.device], Pool]:
    """The pool or, where it depends on the device of the first states, what finds it then."""
    if pool is None and tenant is None and device is None and torch.cuda.is_available():
        return lambda device: chosen_pool(None, budget, device)
    return pool_for(tenant, pool, budget, device)


def _make_layers(config: PreTrainedConfig, memory: CacheMemory) -> list[Any]:
    layers = []
    for kind, options in zip(*get_layer_types_and_kwargs(config), strict=True):
        stock = DYNAMIC_LAYER_TYPE_MAPPING[kind]
        if stock is DynamicLayer:
            layers.append(memory.add(VmmLayer(memory)))
        elif stock is DynamicSlidingWindowLayer and options["sliding_window"] > 1:
            layers.append(memory.add(VmmSlidingLayer(memory, **options)))
        else:
            layers.append(stock(**options))
    return layers


def _copied(layer: Any, memory: CacheMemory, memo: dict[int, Any]) -> Any:
    if not isinstance(layer, VmmLayer):
        return copy.deepcopy(layer, memo)
    if layer.growth is not None and layer.length:
        return layer.rebatched(list(range(len(layer.keys))), memory)
    return layer.saved().loaded(memory)  # empty, or where gradients are recorded


def _assembled(memory: CacheMemory, layers: list[Any]) -> VmmCache:
    cache = VmmCache.__new__(VmmCache)
    Cache.__init__(cache, layers=layers)
    cache._memory = memory
    for layer in layers:
        if isinstance(layer, VmmLayer):
            memory.add(layer)
            memory.frontier = max(memory.frontier, layer.length)
    return cache


def _load(max_tokens: int, page_bytes: int | None, saved: list[Any]) -> VmmCache:
    memory = CacheMemory(default_pool, max_tokens, page_bytes)
    layers = [each.loaded(memory) if isinstance(each, SavedLayer) else each for each in saved]
    return _assembled(memory, layers)
