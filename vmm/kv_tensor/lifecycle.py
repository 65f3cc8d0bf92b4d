"""How a KVTensor grows, shrinks and ends."""

from __future__ import annotations

from typing import Any

import torch

from vmm.arguments import checked_number
from vmm.closing import Closing
from vmm.errors import InvalidArgument
from vmm.kv_tensor.arguments import kind_of
from vmm.kv_tensor.memory import KVMemory
from vmm.stream import handle_of, release_after


class Lifecycle(Closing):
    """The methods of KVTensor that torch.Tensor has not. Every method is safe from any thread."""

    _memory: KVMemory
    _raw: torch.Tensor

    def _is_whole(self) -> bool:
        return self._raw is self._memory.guarded

    def _whole_memory(self, method: str) -> KVMemory:
        if not self._is_whole():
            raise InvalidArgument(f"{method}: expected the KVTensor itself, this is a view of it")
        self._memory.require_open()
        return self._memory

    @property
    def length(self) -> int:
        """Tokens up to the last one written through this tensor, in any row: where ``append`` goes on."""
        return self._memory.length

    @property
    def mapped_bytes(self) -> int:
        """Physical memory now mapped for the whole tensor, look-ahead included."""
        return self._memory.rows.mapped_bytes

    def append(self, x: torch.Tensor) -> None:
        """Writes ``x``, shaped as this tensor but for its tokens, at ``length`` in every row, and raises
        ``length``. Raises InvalidArgument for another shape, dtype or device, or past the end; OutOfPages;
        Closed. Then nothing has changed. Appends from several threads do not overlap."""
        memory = self._whole_memory("append")
        dim = memory.grow_dim
        if not isinstance(x, torch.Tensor) or (x.dtype, x.device, x.layout) != (
            memory.dtype,
            memory.raw.device,
            torch.strided,
        ):
            expected = f"a tensor of {memory.dtype} on {memory.raw.device}"
            raise InvalidArgument(f"x is {kind_of(x)}; expected {expected}")
        shape = (*memory.shape[:dim], x.shape[dim] if x.dim() > dim else -1, *memory.shape[dim + 1 :])
        if x.shape != shape:
            raise InvalidArgument(
                f"x has shape {tuple(x.shape)}; expected {memory.shape}, but any number of tokens in"
                f" dimension {dim}"
            )
        with memory.lock:
            start, end = memory.length, memory.length + x.shape[dim]
            if end > memory.tokens:
                raise InvalidArgument(f"x has {x.shape[dim]} tokens; only {memory.tokens - start} more fit")
            target = memory.raw.narrow(dim, start, end - start)
            memory.touch(target)
            if memory.tracks_gradients or (x.requires_grad and torch.is_grad_enabled()):
                self[(slice(None),) * dim + (slice(start, end),)] = x  # type: ignore[index]
            else:
                target.copy_(x)
            memory.length = end

    def reserve(self, n: int) -> None:
        """Maps tokens [0, n) of every row, so that writing them can neither stall nor run out of memory.
        Raises InvalidArgument or OutOfPages."""
        memory = self._whole_memory("reserve")
        memory.rows.reserve(checked_number("n", n, 0, memory.tokens))

    def truncate(self, n: int, stream: Any = None) -> None:
        """Forgets tokens from ``n`` on, in every row, and lowers ``length`` to ``n``; see ``release``."""
        memory = self._whole_memory("truncate")
        checked_number("n", n, 0, memory.tokens)
        with memory.lock:
            self.release(n, memory.tokens, stream)
            memory.length = min(memory.length, n)

    def release(self, start: int, end: int, stream: Any = None) -> None:
        """Ends the use of tokens [start, end) in every row. Pages that hold no other token in use go back to
        the pool once no slice over them lives and the work that may touch them is over: what was on
        ``stream`` until now (a vmm.Stream, a CUDA stream, or its handle), and the pool's open epochs. Until
        they are written again, the tokens read as what they were or as zeros. Raises InvalidArgument."""
        memory = self._whole_memory("release")
        checked_number("start", start, 0, memory.tokens)
        checked_number("end", end, 0, memory.tokens)
        release_after(memory.pool, stream)
        memory.release(start, end)

    def record_stream(self, s: Any) -> None:
        """Tells the pool that work on ``s``, another stream than the current one, uses this memory. What is
        released from here on waits for what is on ``s`` (named as for ``release``) by then. torch's own
        method does the same, and so does that of slices, of their views and of what caches show. The stream
        must outlive the pool."""
        self._memory.require_open()
        self._memory.pool._core.watch(handle_of(s))

    def close(self, stream: Any = None) -> None:
        """Gives all memory back, as ``release`` does. Slices taken before stay valid; everything else raises
        Closed. Closing twice does nothing."""
        memory = self._memory
        if memory.rows.ended:
            return
        memory.require_open()
        release_after(memory.pool, stream)
        memory.end()
