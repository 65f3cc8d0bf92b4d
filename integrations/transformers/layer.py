"""One attention layer's K and V in vmm's memory."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch.autograd.graph import increment_version
from transformers.cache_utils import DynamicLayer

from vmm._core import Growth
from vmm.errors import InvalidArgument
from vmm.integrations.transformers.memory import CacheMemory
from vmm.integrations.transformers.rebatching import Rebatching
from vmm.integrations.transformers.rows import Place, alike, shared_tokens
from vmm.integrations.transformers.saved import SavedLayer
from vmm.integrations.transformers.views import CacheView
from vmm.stream import torch_stream

logger = logging.getLogger("vmm")


def _kind(states: torch.Tensor) -> tuple[int, int, int, torch.dtype]:
    rows, heads, _, dim = states.shape
    return rows, heads, dim, states.dtype


class VmmLayer(Rebatching, DynamicLayer):
    """A ``DynamicLayer`` that grows in place: it copies nothing of the past and reserves no memory ahead.

    Where gradients are recorded it becomes a ``DynamicLayer``: backward through two cached forwards needs the
    values that an in-place write would replace.
    """

    window = 0  # a token attends to all before it

    def __init__(self, memory: CacheMemory, **options: Any) -> None:
        super().__init__(**options)
        self._memory = memory
        self._forget()

    def _forget(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.growth: Growth | None = None  # None: nothing reserved
        self.length = 0
        self._first = 0  # the first token that is held
        self._limit = 0  # tokens that may be written without asking
        self._places: list[Place] = []  # of K and of V
        self._key_space: torch.Tensor | None = None
        self._value_space: torch.Tensor | None = None
        self._key_tail: torch.Tensor | None = None
        self._value_tail: torch.Tensor | None = None
        self._key_kind: tuple = ()  # what an update must look like
        self._value_kind: tuple = ()

    def park(self) -> None:
        """Its tokens are away, or will be. Whoever needs them asks for one of these first, and so gets them
        back: no forward has to ask whether the layer is parked."""
        del self.keys, self.values, self._limit

    def __getattr__(self, name: str) -> Any:
        if name in ("keys", "values", "_limit") and self._memory.wake():
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def unpark(self) -> None:
        """The tokens are there again."""
        self._allow(self.growth.limit)
        self._show(self.length)

    def _reserve(
        self, key_states: torch.Tensor, value_states: torch.Tensor, batch: int | None = None
    ) -> None:
        """Reserves addresses for states of these shapes (with another batch, if given); maps nothing."""
        spaces, places, kinds = [], [], []
        for states in (key_states, value_states):
            self._memory.require_device(states.device)
            rows, *row = _kind(states)
            kinds.append((rows if batch is None else batch, *row))
            space, place = self._memory.allocate(*kinds[-1])
            spaces.append(space)
            places.append(place)
        self.growth = Growth(self._memory.pool._core, [place.part for place in places], self.window)
        self._places = places
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
        like = None
        if end > self._limit:
            shared = shared_tokens(self._places, self._limit, end)
            if shared[0] < shared[1] and rows > 1:
                like = alike(key_states, value_states)
            self._allow(self._memory.grow(self, end, like))
        try:
            if like is None:
                self._key_tail.narrow(2, start, count).copy_(key_states)
                self._value_tail.narrow(2, start, count).copy_(value_states)
            else:
                self._write_alike(key_states, value_states, like, shared)
        except BaseException:
            self.growth.scrub(start, end, torch_stream(self._memory.pool))
            raise
        self._show(end)
        return self.keys, self.values

    def _write_alike(
        self, key_states: torch.Tensor, value_states: torch.Tensor, like: list[int], shared: tuple[int, int]
    ) -> None:
        """A row that is like another writes only what it does not share with that."""
        start, end = self.length, self.length + key_states.shape[2]
        for tail, states in ((self._key_tail, key_states), (self._value_tail, value_states)):
            for row, first in enumerate(like):
                pieces = [(start, end)] if first == row else [(start, shared[0]), (shared[1], end)]
                for begin, stop in pieces:
                    tail[row, :, begin:stop].copy_(states[row, :, begin - start : stop - start])

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
        self.keys = self._view(self._key_space, slice(0, length))
        self.values = self._view(self._value_space, slice(0, length))

    @staticmethod
    def _view(space: torch.Tensor, tokens: slice) -> torch.Tensor:
        return space.narrow(2, tokens.start, tokens.stop - tokens.start).as_subclass(CacheView)

    def _leave(self) -> None:
        """Becomes a DynamicLayer that holds the same states."""
        if self.growth is None:
            return
        logger.warning("gradients are recorded: a layer of VmmCache falls back to concatenation")
        keys, values = copy.deepcopy(self.keys), copy.deepcopy(self.values)
        self._forget()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def _grow_to(self, first: int, length: int) -> None:
        """Maps what tokens [first, length) of a layer without tokens need."""
        self._allow(self._memory.with_room(lambda: self.growth.advance(length)))

    def saved(self) -> SavedLayer:
        """What another layer, in any memory, needs to be as this one."""
        tokens = self.get_seq_length()
        states = tuple(each.detach().contiguous() for each in (self.keys, self.values)) if tokens else ()
        return SavedLayer(type(self), self._options(), tokens, states)

    def _options(self) -> dict[str, Any]:
        """Arguments of the class, besides the memory."""
        return {}

    @property
    def shown_tokens(self) -> int:
        return self.length - self._first

    @property
    def mapped_bytes(self) -> int:
        return sum(place.lease.mapped_bytes for place in self._places)

    # From here on: the rest of DynamicLayer's contract, in place.

    def get_seq_length(self) -> int:
        return self.length if self.growth is not None else super().get_seq_length()

    def get_max_length(self) -> int:
        return self._memory.max_tokens

    def reset(self) -> None:
        """Forgets all tokens. The memory goes back to the pool, still mapped, and the next use adopts it."""
        self._memory.wake()
        if self.growth is not None:
            torch_stream(self._memory.pool)
        self._memory.frontier = 0
        self._forget()

    def prepare_crop(self, tokens_to_remove: int) -> None:
        """Makes sure that the crop will not fail: what later tokens go to must be this layer's alone."""
        self._memory.wake()
        if self.growth is None or tokens_to_remove >= 0:
            return
        to = min(max(0, self.length + tokens_to_remove), self.growth.frontier)
        stream = torch_stream(self._memory.pool)
        try:
            self._memory.with_room(lambda: self.growth.make_private(to, stream))
        except BaseException:
            if self.growth.frontier == 0:  # the driver has lost the tokens
                self._allow(0)
                self._show(0)
            raise

    def crop(self, tokens_to_remove: int) -> None:
        if self.growth is None or tokens_to_remove > 0:
            super().crop(tokens_to_remove)
        elif tokens_to_remove < 0:
            self.prepare_crop(tokens_to_remove)
            length = max(0, self.length + tokens_to_remove)
            # The growth was not told of tokens written within the limit, which end in the same page.
            to = min(length, self.growth.frontier)
            self._allow(self.growth.truncate(to, torch_stream(self._memory.pool)))
            # What autograd has saved will be overwritten.
            increment_version((self._key_space, self._value_space))
            self._memory.frontier = length
            self._show(length)
