"""An example serving engine: continuous batching over a Transformers causal model on the CPU.

Requests arrive, are prefilled in chunks, decode together, finish, and are preempted by recomputation when
pages run out. ``Slots`` is all it has to do with vmm; ``Tensors``, its peer, gives each request a
DynamicCache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from vmm.errors import OutOfPages
from vmm.kv_cache import KVCache

CHUNK = 64  # tokens of a prompt that one iteration computes

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(eq=False)
class Request:
    """``tokens`` begins as the prompt, and grows by ``new_tokens``."""

    tokens: list[int]
    new_tokens: int
    computed: int = 0  # tokens whose K and V are kept
    place: Any = None  # where: the store's own
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def finished(self) -> bool:
        return len(self.tokens) == self.prompt_tokens + self.new_tokens

    @property
    def due(self) -> int:
        """Tokens of the next iteration."""
        return min(CHUNK, len(self.tokens) - self.computed)


class Store(Protocol):
    """Where K and V are kept: ``[heads, tokens, dim]`` of one request and layer."""

    def open(self, request: Request) -> None: ...
    def step(self, running: list[Request]) -> None: ...
    def write(self, request: Request, layer: int, states: Pair) -> Pair: ...
    def close(self, request: Request) -> None: ...


class Slots:
    """In a KVCache."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def open(self, request: Request) -> None:
        request.place = self.cache.open(len(request.tokens), announce=request.due)

    def step(self, running: list[Request]) -> None:
        slots = torch.tensor([r.place.slot for r in running], dtype=torch.int32)
        lengths = torch.tensor([r.computed + r.due for r in running], dtype=torch.int32)
        self.cache.step(slots, lengths)
        for request in running:
            if request.due > 1:  # the next chunk is prepared while this one is computed
                request.place.announce(min(request.computed + 2 * CHUNK, len(request.tokens)))

    def write(self, request: Request, layer: int, states: Pair) -> Pair:
        spaces = [space[request.place.slot].transpose(0, 1) for space in self.cache.kv(layer)]
        end = request.computed + states[0].shape[1]
        for space, new in zip(spaces, states, strict=True):
            space[:, request.computed : end] = new
        return spaces[0][:, :end], spaces[1][:, :end]

    def close(self, request: Request) -> None:
        request.place.close()


class Tensors:
    """In a DynamicCache for each request."""

    def open(self, request: Request) -> None:
        request.place = DynamicCache()

    def step(self, running: list[Request]) -> None:
        pass

    def write(self, request: Request, layer: int, states: Pair) -> Pair:
        keys, values = request.place.update(*(new.unsqueeze(0) for new in states), layer)
        return keys[0], values[0]

    def close(self, request: Request) -> None:
        request.place = None


class _Call(DynamicCache):
    """The cache that the model is given for one call, of ``requests`` with as many new tokens each."""

    def __init__(self, store: Store, requests: list[Request]) -> None:
        super().__init__()
        self.store, self.requests = store, requests
        self.kept: list[Pair] = []  # of the layer under way, by request

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Pair:
        self.kept = [
            self.store.write(request, layer, (keys[row], values[row]))
            for row, request in enumerate(self.requests)
        ]
        _calls[:] = [self]
        return keys, values

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0


_calls: list[_Call] = []  # the one under way: an attention function is given no cache


def _attention(module: Any, query: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    """``query`` is [requests, heads, tokens, dim]; K and V are each request's own."""
    rows = []
    for q, kept in zip(query, _calls[0].kept, strict=True):
        k, v = (each.unsqueeze(0) for each in kept)
        tokens, end = q.shape[1], k.shape[2]
        mask = None if tokens == 1 else torch.ones(tokens, end, dtype=torch.bool).tril(end - tokens)
        options = {"attn_mask": mask, "scale": module.scaling, "enable_gqa": True}
        rows.append(scaled_dot_product_attention(q.unsqueeze(0), k, v, **options))
    return torch.cat(rows).transpose(1, 2), None


ATTENTION = "vmm_example"  # what the model's attention implementation must be set to
AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


class Engine:
    """Serves requests with ``model``, at most ``most`` at a time. ``after_step`` is called in each
    iteration."""

    def __init__(self, model: Any, store: Store, most: int, after_step: Any = lambda: None) -> None:
        self.model, self.store, self.most, self.after_step = model, store, most, after_step
        self.running: list[Request] = []
        self.preempted = 0
        self._full = False  # until one finishes

    def serve(self, requests: list[Request]) -> None:
        waiting = deque(requests)
        with torch.inference_mode():
            while waiting or self.running:
                while waiting and len(self.running) < self.most and not self._full:
                    self.running.append(waiting.popleft())
                    self.store.open(self.running[-1])
                self._have_memory(waiting)
                self.after_step()
                self._compute()

    def _have_memory(self, waiting: deque[Request]) -> None:
        """For the next iteration, at the price of the youngest requests if need be: they are computed
        again."""
        while True:
            try:
                return self.store.step(self.running)
            except OutOfPages:
                if len(self.running) == 1:
                    raise
            victim = self.running.pop()
            self.store.close(victim)
            victim.computed = 0
            waiting.appendleft(victim)
            self.preempted += 1
            self._full = True

    def _compute(self) -> None:
        decoding = [request for request in self.running if request.due == 1]
        prefills = [[request] for request in self.running if request.due > 1]
        for requests in [*prefills, decoding] if decoding else prefills:
            self._forward(requests, requests[0].due)
        for request in [request for request in self.running if request.finished]:
            self.store.close(request)
            self.running.remove(request)
            self._full = False

    def _forward(self, requests: list[Request], count: int) -> None:
        spans = [range(request.computed, request.computed + count) for request in requests]
        ids = torch.tensor([request.tokens[request.computed :][:count] for request in requests])
        call = _Call(self.store, requests)
        logits = self.model(input_ids=ids, position_ids=torch.tensor(spans), past_key_values=call).logits
        for request, token in zip(requests, logits[:, -1].argmax(-1).tolist(), strict=True):
            request.computed += count
            if request.computed == len(request.tokens):
                request.tokens.append(token)
