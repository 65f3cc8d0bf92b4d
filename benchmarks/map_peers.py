"""What ``vmm bench map`` compares with: the other ways memory comes on the same device.

A peer is a context manager that gives a function. Each call of it gets BLOCK_BYTES of usable memory, gives
them back, and answers the seconds that the getting took. LeftOut says why there is no such peer here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from time import perf_counter
from types import ModuleType

from vmm.benchmarks.map_bindings import Bindings
from vmm.benchmarks.report import ordinal

BLOCK_BYTES = 2**21

Once = Callable[[], float]


class LeftOut(Exception):
    """Why a peer cannot be measured here."""


def _torch(device: str) -> ModuleType:
    if find_spec("torch") is None:
        raise LeftOut("torch is not installed")
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise LeftOut("this torch cannot use CUDA")
    return torch


@contextmanager
def torch_empty(device: str) -> Iterator[Once]:
    """``torch.empty``; what torch, or glibc under it, keeps of freed memory is given back before each.

    On a GPU that is usable memory. On the CPU it is a promise, so one byte of each system page is written.
    """
    torch = _torch(device)
    on_cpu = device == "cpu"
    if on_cpu and not hasattr(ctypes.CDLL(None), "malloc_trim"):
        raise LeftOut("this C library cannot be told to give freed memory back")

    def once() -> float:
        if on_cpu:
            ctypes.CDLL(None).malloc_trim(0)
        else:
            torch.cuda.empty_cache()
        start = perf_counter()
        made = torch.empty(BLOCK_BYTES, dtype=torch.uint8, device=device)
        if on_cpu:
            made[:: mmap.PAGESIZE] = 1
        return perf_counter() - start

    once()  # the first also starts CUDA
    yield once


@contextmanager
def expandable_segments(device: str) -> Iterator[Once]:
    """``torch_empty`` with expandable segments, in a process of its own: torch reads the setting once.

    It answers one number for each line it is sent, so that its turns alternate with everybody else's.
    """
    _torch(device)
    setting = dict.fromkeys(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments:True")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, device],
        env={**os.environ, **setting},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def once() -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    try:
        if (said := process.stdout.readline().strip()) != "ready":
            raise LeftOut(said or "its process ended early")
        yield once
    finally:
        process.kill()
        process.communicate()


def serve(device: str) -> None:
    """The other side of ``expandable_segments``: says "ready", or why it cannot serve."""
    try:
        with torch_empty(device) as once:
            _require_expandable(device)
            print("ready", flush=True)
            for _ in sys.stdin:
                print(once(), flush=True)
    except LeftOut as reason:
        print(reason, flush=True)


def _require_expandable(device: str) -> None:
    segments = [] if device == "cpu" else _torch(device).cuda.memory_snapshot()
    if not any(segment.get("is_expandable") for segment in segments):
        raise LeftOut("torch did not make its segments expandable")


@contextmanager
def mmap_fresh(_device: str) -> Iterator[Once]:
    """An anonymous private mapping with its memory present (MAP_POPULATE)."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE

    def once() -> float:
        start = perf_counter()
        made = mmap.mmap(-1, BLOCK_BYTES, flags=flags)
        seconds = perf_counter() - start
        made.close()
        return seconds

    yield once


@contextmanager
def cu_mem_alloc(device: str) -> Iterator[Once]:
    """cuMemAlloc and cuCtxSynchronize, through cuda-bindings."""
    with bindings(device) as calls:

        def once() -> float:
            with calls.context():
                start = perf_counter()
                with calls.allocated(BLOCK_BYTES):
                    calls.synchronize()
                    return perf_counter() - start

        yield once


@contextmanager
def bindings(device: str) -> Iterator[Bindings]:
    """The driver's calls through cuda-bindings: no peer of its own, but a second caller of libcuda."""
    try:
        calls = Bindings(ordinal(device))
    except ModuleNotFoundError:
        raise LeftOut("cuda-bindings is not installed") from None
    with calls:
        yield calls


PEERS: dict[str, dict[str, Callable[[str], AbstractContextManager[Once]]]] = {
    "cpu": {"torch_empty": torch_empty, "mmap_fresh": mmap_fresh},
    "cuda": {
        "torch_empty": torch_empty,
        "cu_mem_alloc": cu_mem_alloc,
        "expandable_segments": expandable_segments,
    },
}

if __name__ == "__main__":
    serve(sys.argv[1])
