"""One attention layer's K and V in vmm's memory."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import increment_version
from transformers.cache_utils import DynamicLayer

from vmm._core import Growth, Lease
from vmm.errors import InvalidArgument
from vmm.integrations.transformers.memory import CacheMemory, with_garbage_collected
from vmm.stream import torch_stream

logger = logging.getLogger("vmm")


class CacheView(torch.Tensor):
    """The live part of a layer's K or V, as models and callers see it: ``[batch, heads, length, dim]``.

    It is an ordinary tensor, but its storage spans addresses where nothing is mapped, and the stock deepcopy
    and pickle would walk through them. Here they copy what the view shows, and they do so for the usual views
    of it (_VIEWS), too; rarer ones are plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self._compact()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._compact().__reduce_ex__(protocol)

    def _compact(self) -> torch.Tensor:
        return self.detach().as_subclass(torch.Tensor).clone()


def _stays_a_cache_view(name: str) -> Callable[..., CacheView]:
    method = getattr(torch.Tensor, name)

    @functools.wraps(method)
    def view(self: CacheView, *args: Any, **kwargs: Any) -> CacheView:
        return method(self, *args, **kwargs).as_subclass(CacheView)

    return view


# This is not done by __torch_function__, because attention itself would pay for that.
_VIEWS = "__getitem__ detach expand narrow permute select squeeze transpose unsqueeze view"
for _name in _VIEWS.split():
    setattr(CacheView, _name, _stays_a_cache_view(_name))


def _kind(states: torch.Tensor) -> tuple[int, int, int, torch.dtype]:
    rows, heads, _, dim = states.shape
    return rows, heads, dim, states.dtype


class VmmLayer(DynamicLayer):
    """A ``DynamicLayer`` that grows in place: it copies nothing of the past and reserves no memory ahead.

    Where gradients are recorded it becomes a ``DynamicLayer``: backward through two cached forwards needs the
    values that an in-place write would replace.
    """

    def __init__(self, memory: CacheMemory) -> None:
        super().__init__()
        self._memory = memory
        self._forget()

    def _forget(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.growth: Growth | None = None  # None: nothing reserved
        self.length = 0
        self._limit = 0  # tokens that may be written without asking
        self._leases: list[Lease] = []
        self._key_space: torch.Tensor | None = None
        self._value_space: torch.Tensor | None = None
        self._key_tail: torch.Tensor | None = None
        self._value_tail: torch.Tensor | None = None
        self._key_kind: tuple = ()  # what an update must look like
        self._value_kind: tuple = ()

    def _reserve(
        self, key_states: torch.Tensor, value_states: torch.Tensor, batch: int | None = None
    ) -> None:
        """Reserves addresses for states of these shapes (with another batch, if given); maps nothing."""
        spaces, parts, kinds = [], [], []
        for states in (key_states, value_states):
            self._memory.require_device(states.device)
            rows, *row = _kind(states)
            kinds.append((rows if batch is None else batch, *row))
            space, part = self._memory.allocate(*kinds[-1])
            spaces.append(space)
            parts.append(part)
        self.growth = Growth(self._memory.pool._core, parts)
        self._leases = [part[0] for part in parts]
        self._key_space, self._value_space = spaces
        # Appending writes through these. Autograd need not know: views that it may have saved end before.
        self._key_tail, self._value_tail = (space.data for space in spaces)
        self._key_kind, self._value_kind = kinds
        self.dtype, self.device = key_states.dtype, key_states.device
        self._limit = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        kinds = _kind(key_states), _kind(value_states)
        layers = self._memory.layers
        is_first = not any(layer.length for layer in layers)
        # The other layers will want the same: once their addresses are known, the pager can prepare them.
        # What they have of another kind may be right, unless it is from an attempt that failed.
        for layer in (self, *(other for other in layers if not other.is_initialized)):
            differs = (layer._key_kind, layer._value_kind) != kinds
            if layer.growth is None or (differs and (is_first or layer is self)):
                layer._reserve(key_states, value_states)
        self._show(0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.length and (self.growth is not None or not self.is_initialized):
            self._start(key_states, value_states)
        if self.growth is None or key_states.requires_grad or value_states.requires_grad:
            self._leave()
            return super().update(key_states, value_states, *args, **kwargs)
        torch_stream(self._memory.pool)
        start = self.length
        rows, heads, count, dim = key_states.shape
        end = start + count
        if (rows, heads, dim, key_states.dtype) != self._key_kind:
            self._refuse("key_states", key_states, self._key_kind)
        rows, heads, value_count, dim = value_states.shape
        if (rows, heads, dim, value_states.dtype) != self._value_kind or value_count != count:
            self._refuse("value_states", value_states, self._value_kind)
        if end > self._limit:
            self._allow(self._memory.grow(self, end))
        try:
            self._key_tail.narrow(2, start, count).copy_(key_states)
            self._value_tail.narrow(2, start, count).copy_(value_states)
        except BaseException:
            self.growth.scrub(start, end, torch_stream(self._memory.pool))
            raise
        self._show(end)
        return self.keys, self.values

    def _start(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Initialises for a first update, which may be of another shape than what was reserved."""
        if self.growth is None and (key_states.requires_grad or value_states.requires_grad):
            super().lazy_initialization(key_states, value_states)
        else:
            self.lazy_initialization(key_states, value_states)

    def _refuse(self, argument: str, states: torch.Tensor, kind: tuple) -> None:
        rows, heads, dim, dtype = kind
        raise InvalidArgument(
            f"{argument} is {tuple(states.shape)} of {states.dtype}; expected"
            f" [{rows}, {heads}, tokens, {dim}] of {dtype}, as many tokens in keys and values"
        )

    def _allow(self, limit: int) -> None:
        self._limit = min(limit, self._memory.max_tokens)  # the last page may have room for more

    def _show(self, length: int) -> None:
        self.length = length
        self.keys = self._key_space.narrow(2, 0, length).as_subclass(CacheView)
        self.values = self._value_space.narrow(2, 0, length).as_subclass(CacheView)

    def _leave(self) -> None:
        """Becomes a DynamicLayer that holds the same states."""
        if self.growth is None:
            return
        logger.warning("gradients are recorded: a layer of VmmCache falls back to concatenation")
        keys, values = copy.deepcopy(self.keys), copy.deepcopy(self.values)
        self._forget()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def rebatched(self, rows: torch.Tensor) -> VmmLayer:
        """A layer whose row i is what row rows[i] is here, in addresses of its own."""
        keys, values, length = self.keys, self.values, self.length
        fresh = VmmLayer(self._memory)
        fresh._reserve(keys, values, batch=len(rows))
        fresh._allow(with_garbage_collected(lambda: fresh.growth.advance(length)))
        # Row by row: a gather of all rows at once would need the layer's memory a third time.
        for to, row in enumerate(rows.tolist()):
            fresh._key_space[to, :, :length].copy_(keys[row])
            fresh._value_space[to, :, :length].copy_(values[row])
        fresh._show(length)
        fresh.is_initialized = True
        return fresh

    def become(self, other: VmmLayer) -> None:
        self.__dict__.update(other.__dict__)

    @property
    def mapped_bytes(self) -> int:
        return sum(lease.mapped_bytes for lease in self._leases)

    # From here on: the rest of DynamicLayer's contract, in place.

    def get_seq_length(self) -> int:
        return self.length if self.growth is not None else super().get_seq_length()

    def get_max_length(self) -> int:
        return self._memory.max_tokens

    def reset(self) -> None:
        """Forgets all tokens. The memory goes back to the pool, still mapped, and the next use adopts it."""
        if self.growth is not None:
            torch_stream(self._memory.pool)
        self._memory.frontier = 0
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        if self.growth is None or tokens_to_remove > 0:
            super().crop(tokens_to_remove)
        elif tokens_to_remove < 0:
            torch_stream(self._memory.pool)
            length = max(0, self.length + tokens_to_remove)
            # The growth was not told of tokens written within the limit, which end in the same page.
            self._allow(self.growth.truncate(min(length, self.growth.frontier)))
            # What autograd has saved will be overwritten.
            increment_version((self._key_space, self._value_space))
            self._memory.frontier = length
            self._show(length)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders rows in place, for beam search: new ``keys`` would leave our memory in the old order."""
        if self.growth is None:
            super().reorder_cache(beam_idx)
        elif self.length and len(beam_idx) != len(self.keys):
            self.become(self.rebatched(beam_idx))
        elif self.length:
            self.keys.copy_(self.keys.index_select(0, beam_idx))
            self.values.copy_(self.values.index_select(0, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.growth is None:
            super().batch_repeat_interleave(repeats)
        elif self.length:
            self.become(self.rebatched(torch.arange(self.keys.shape[0]).repeat_interleave(repeats)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.growth is None:
            super().batch_select_indices(indices)
        elif self.length:
            self.become(self.rebatched(torch.arange(self.keys.shape[0])[indices.cpu()]))
