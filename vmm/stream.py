"""Work beside the caller, in order: the host's counterpart of a CUDA stream."""

from __future__ import annotations

from contextlib import suppress
from sys import is_finalizing
from typing import TYPE_CHECKING, Any

from vmm.closing import Closing
from vmm.errors import Closed, InvalidArgument

if TYPE_CHECKING:
    import torch

    from vmm.pool import Pool


class Stream(Closing):
    """An ordered queue of copies on ``pool``'s device, with a worker of its own.

    What is released while a copy is under way waits for it. A stream that is dropped is not waited for: it
    ends when its work is over. Safe from any thread. Raises DriverError when the system has no thread left;
    after its own or the pool's ``close`` methods raise Closed.
    """

    _handle: int | None = None

    def __init__(self, pool: Pool) -> None:
        if pool.closed:
            raise Closed("this pool is closed")
        self._pool = pool
        self._handle = pool._core.create_stream()

    @property
    def handle(self) -> int:
        """The driver's handle of this stream."""
        if self._handle is None:
            raise Closed("this stream is closed")
        if self._pool.closed:
            raise Closed("the pool of this stream is closed")
        return self._handle

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Copies ``source`` to ``to`` and returns at once. Both are contiguous slices of this pool's tensors,
        of one shape and dtype, and must not be written before the copy is over. Raises InvalidArgument."""
        if to.shape != source.shape or to.dtype != source.dtype:
            raise InvalidArgument(
                f"source is {tuple(source.shape)} of {source.dtype}; expected {tuple(to.shape)} of {to.dtype}"
            )
        if not (to.is_contiguous() and source.is_contiguous()):
            raise InvalidArgument("to, source: expected contiguous tensors")
        self._pool._core.copy(to.data_ptr(), source.data_ptr(), to.numel() * to.itemsize, self.handle)

    def synchronize(self) -> None:
        """Waits for everything on the stream."""
        self._pool._core.synchronize(self.handle)

    def close(self) -> None:
        """Waits for everything on the stream, however long that takes, and ends it. A second call does
        nothing."""
        handle, self._handle = self._handle, None
        if handle is not None and not self._pool._core.in_child:
            self._pool._core.destroy_stream(handle)

    def __del__(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None and not is_finalizing() and not self._pool._core.in_child:
            self._pool._core.end_stream(handle)  # does not wait for what is on it


def handle_of(stream: Any) -> int:
    """The driver's handle of ``stream``: a Stream, a torch.cuda.Stream, anything with ``__cuda_stream__``
    (https://nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html), or the handle itself."""
    if isinstance(stream, Stream):
        return stream.handle
    handle = getattr(stream, "cuda_stream", stream)
    if hasattr(type(stream), "native_handle"):  # torch.Stream, of any device
        with suppress(RuntimeError):  # where the device has no handles
            handle = stream.native_handle
    if hasattr(stream, "__cuda_stream__"):
        version, handle = stream.__cuda_stream__()
        if version != 0:
            raise InvalidArgument(f"stream: speaks version {version} of __cuda_stream__; expected 0")
    if not isinstance(handle, int) or isinstance(handle, bool) or not 0 <= handle < 2**64:
        raise InvalidArgument(f"stream is {stream!r}; expected a vmm.Stream, a CUDA stream or its handle")
    return handle


def torch_stream(pool: Pool) -> int:
    """The handle of torch's current stream on ``pool``'s device; 0 on the host, where work is over when the
    call that does it returns. From here on the pool watches the stream: memory that is given back waits for
    what is on the stream by then. So the stream must live as long as the pool, as torch's own do."""
    if not pool._runs_late:
        return 0
    handle = _current_stream(pool._ordinal) or _LEGACY_STREAM
    if (ended := pool._core.streams_ended) != pool._streams_ended:  # other streams may have their handles now
        pool._watched_streams.clear()
        pool._streams_ended = ended
    if handle not in pool._watched_streams:
        from vmm import recording  # imports torch

        recording.install()  # here, because whoever makes a tensor or shows a slice asks for the stream first
        pool._core.watch(handle)
        pool._watched_streams.add(handle)
    return handle


# CU_STREAM_LEGACY, the default stream. 0 is a stream of our driver's own.
_LEGACY_STREAM = 1


def _current_stream(ordinal: int) -> int:
    import torch

    # Every index asks this. It is ten times as fast as torch.cuda.current_stream, and compiled code asks it,
    # too.
    handle: int = torch._C._cuda_getCurrentRawStream(ordinal)
    return handle


def release_after(pool: Pool, stream: Any, *, named: bool = False) -> None:
    """Makes what is released on ``pool`` from here on wait for what is on ``stream`` now, but not for work
    that is put on it later; None is no stream. After this the stream's owner may destroy it, unless the pool
    watches it, too, or a KVCache steps it. With ``named`` only what the caller releases, naming the stream,
    waits for it."""
    if stream is None:
        return
    if isinstance(stream, Stream):
        if stream._pool is not pool:
            raise InvalidArgument("stream: belongs to another pool")
        if pool.closed:
            return  # the pool has ended its streams, and waits for what did not end in time
    (pool._core.cover if named else pool._core.mark)(handle_of(stream))
