"""The stand-in libcuda.so.1 from Python: its control functions, and queued "kernels".

``load(path)`` loads it under its soname: every later ``dlopen("libcuda.so.1")`` of the process gets it.
"""

import contextlib
import ctypes
import json
from collections.abc import Callable, Sequence

Range = tuple[int, int]
"""Start and size."""

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("size", ctypes.c_uint64))


_SIGNATURES = {
    "standin_reset": (ctypes.c_int, [ctypes.c_uint64]),
    "standin_abandon": (None, []),
    "standin_set": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_int64]),
    "standin_fail_at": (None, [ctypes.c_int64, ctypes.c_int, ctypes.c_int64]),
    "standin_fail_only": (None, [ctypes.c_char_p]),
    "standin_calls": (ctypes.c_int64, []),
    "standin_failed": (ctypes.c_int64, []),
    "standin_last_failed": (ctypes.c_char_p, []),
    "standin_poison": (None, [ctypes.c_int]),
    "standin_before": (None, [ctypes.c_char_p, KERNEL, ctypes.c_void_p]),
    "standin_count": (ctypes.c_int64, [ctypes.c_char_p]),
    "standin_reports": (ctypes.c_int64, []),
    "standin_last_report": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_log": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_live": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_sites": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_green_stream": (ctypes.c_int, [ctypes.c_int, ctypes.POINTER(ctypes.c_void_p)]),
    "standin_launch": (
        ctypes.c_int,
        [
            ctypes.c_void_p,
            KERNEL,
            ctypes.c_void_p,
            ctypes.POINTER(_Range),
            ctypes.c_size_t,
            ctypes.POINTER(_Range),
            ctypes.c_size_t,
        ],
    ),
    "standin_sync_all": (None, []),
    "standin_queued": (ctypes.c_int64, []),
}


def _ranges(ranges: Sequence[Range]):
    return (_Range * max(len(ranges), 1))(*(_Range(start, size) for start, size in ranges))


class Standin:
    """One loaded stand-in."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.library = ctypes.CDLL(path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self._kernels: list[object] = []  # ctypes callbacks must outlive their run

    def _text(self, name: str) -> str:
        function = getattr(self.library, name)
        size = function(None, 0)
        while True:
            buffer = ctypes.create_string_buffer(size + 4096)
            size = function(buffer, len(buffer))
            if size <= len(buffer):
                return buffer.value.decode()

    def reset(self, seed: int = 1) -> None:
        """Afresh, with another order of work. Raises where something is still live."""
        left = self.library.standin_reset(seed)
        if left:
            raise AssertionError(f"{left} CUDA resources are still live: {json.dumps(self.live(), indent=1)}")
        self._kernels.clear()

    def abandon(self) -> None:
        """End everything that is live, so that one test's leak is not the next one's."""
        self.library.standin_abandon()

    def set(self, **settings: int) -> None:
        """capacity, others (bytes of each device that other processes have), granularity, version,
        low_alignment, devices, undefined_counts, report_fd (where misuse that aborts is told, too),
        site_depth, queue_limit, missing_result, fill, reuse_handles,
        hang (1: kernels launched from now on do not end before it is 0), no_peer (device *
        16 + peer; -1: all reach all again), peer_granularity, rdma, posix_fd, compute_capability."""
        for name, value in settings.items():
            if self.library.standin_set(name.encode(), value) != 0:
                raise ValueError(f"the stand-in has no setting {name!r}")

    def fail_at(self, n: int, code: int = 999, times: int = 1) -> None:
        """Make the n-th call from now fail (1 is the next), and the ``times`` - 1 after it. 0: none."""
        self.library.standin_fail_at(n, code, times)

    def fail_only(self, module: str = "") -> None:
        """Only calls from a file whose name contains this can fail, and count."""
        self.library.standin_fail_only(module.encode())

    @property
    def calls(self) -> int:
        """Calls that could have been made to fail, since the last reset."""
        return self.library.standin_calls()

    def failed(self) -> int:
        """Calls made to fail since the last time this was asked."""
        return self.library.standin_failed()

    @property
    def last_failed(self) -> str:
        return self.library.standin_last_failed().decode()

    def poison(self, code: int = 700) -> None:
        """From now on every call returns this; 0 ends it."""
        self.library.standin_poison(code)

    def before(self, function: str, act: Callable[[], object]) -> None:
        """The next call of ``function`` first calls ``act()``, which may call CUDA: what another thread might
        do just then."""
        callback = KERNEL(lambda _: act())
        self._kernels.append(callback)
        self.library.standin_before(function.encode(), callback, None)

    def count(self, function: str | None = None) -> int:
        return self.library.standin_count(None if function is None else function.encode())

    @property
    def log(self) -> dict[str, int]:
        """How often each function was called."""
        return json.loads(self._text("standin_log"))

    @property
    def reports(self) -> int:
        """Misuses seen in count mode."""
        return self.library.standin_reports()

    @property
    def last_report(self) -> str:
        return self._text("standin_last_report")

    def live(self) -> dict:
        return json.loads(self._text("standin_live"))

    def leaks(self) -> dict:
        """What is live, without what is none and without retained contexts."""
        return {name: what for name, what in self.live().items() if what and name != "contexts"}

    def sites(self) -> list[dict]:
        """Every (function, call site): how often it was reached, and made to fail."""
        return json.loads(self._text("standin_sites"))

    @property
    def queued(self) -> int:
        return self.library.standin_queued()

    def sync_all(self) -> None:
        self.library.standin_sync_all()

    def green_stream(self, device: int) -> int:
        """A stream of a green context of the device, whose primary context must be retained."""
        stream = ctypes.c_void_p()
        if result := self.library.standin_green_stream(device, ctypes.byref(stream)):
            raise RuntimeError(f"standin_green_stream: {result}")
        return stream.value

    def launch(
        self,
        stream: int,
        kernel: Callable[[], object] | None = None,
        reads: Sequence[Range] = (),
        writes: Sequence[Range] = (),
    ) -> int:
        """Queue a kernel. The CUresult."""
        callback = KERNEL(lambda _: kernel()) if kernel is not None else KERNEL()
        self._kernels.append(callback)
        return self.library.standin_launch(
            stream or None, callback, None, _ranges(reads), len(reads), _ranges(writes), len(writes)
        )

    @contextlib.contextmanager
    def counting(self):
        """Misuse is counted instead of ending the process."""
        self.set(undefined_counts=1)
        try:
            yield self
        finally:
            self.set(undefined_counts=0)


def load(path: str) -> Standin:
    return Standin(path)
