"""How fast pages go to a tier's store and come back, every one of them checked, beside plain copies and
plain calls.

First the stores by themselves. In each of ``PAIRS`` rounds the store moves
256 MiB and its peer moves as much, in turn; a ratio is the median over the rounds of the store's speed ÷ the
peer's in the same round, so 1 is as fast. Pages of 2 MiB, and, with ``_64kib``, of 64 KiB. All memory and the
files have been written before.

- ``host_out_ratio``, ``host_in_ratio``: to host memory and back ÷ ``memcpy``, one call for each page.
- ``host_out_whole_ratio``, ``host_in_whole_ratio``: the same ÷ one ``memcpy`` of everything.
- ``nvme_out_ratio``, ``nvme_in_ratio``: to a file and back ÷ four threads with ``pwritev`` and ``preadv`` of
  2 MiB each (32 pages of 64 KiB), into a file as large in the same folder, both past the page cache. Nobody
  computes a checksum there.
- ``nvme_direct``: 1 where the store's calls go past the page cache; if they do not, neither do the peer's.
- ``verified_pages``: pages that came back, each of which was what had gone; a run in which one was not ends.

What the engine makes of it, and what that costs those that run, is in swap_engine.py.

The peers' own speeds are ``peers``, in GB/s. The folder is ``VMM_SWAP_FOLDER``, or the one for temporary
files.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from vmm import _core
from vmm.benchmarks import swap_engine
from vmm.benchmarks.report import Report, environment, rounded, time_once

DEVICES = ("cpu",)

TOTAL_BYTES = 256 << 20
PAGES = {"": 2 << 20, "_64kib": 64 << 10}
PAIRS = 9
THREADS = 4
CALL_BYTES = 2 << 20

STORE = "store"

Arms = dict[str, Callable[[], object]]


@dataclass
class Comparison:
    """A store that moves ``count`` pages from and to ``address``, and its peers each way, by the names that
    the metrics have between the way and ``_ratio``."""

    name: str
    suffix: str
    store: _core.TierStore
    count: int
    address: int
    out: Arms
    back: Arms


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("swap", device, environment=environment())
    folder = os.environ.get("VMM_SWAP_FOLDER", tempfile.gettempdir())
    verified = 0
    for suffix, page in PAGES.items():
        progress(f"host memory, pages of {page >> 10} KiB")
        verified += _host(report, suffix, page)
        progress(f"a file in {folder}, pages of {page >> 10} KiB")
        verified += _file(report, suffix, page, folder)
    report.metrics = {**rounded(report.metrics.items()), "verified_pages": verified}
    progress("parked sequences beside running ones")
    swap_engine.measure(report)
    return report


class Memory:
    """Memory of our own, aligned to a page of the system, that has been written."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, TOTAL_BYTES)
        self.map.madvise(mmap.MADV_HUGEPAGE)  # as the store's slabs
        pattern = os.urandom(1 << 20)
        for at in range(0, TOTAL_BYTES, len(pattern)):
            self.map[at : at + len(pattern)] = pattern[: TOTAL_BYTES - at]
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def _host(report: Report, suffix: str, page: int) -> int:
    ours, theirs = Memory(), Memory()
    count = TOTAL_BYTES // page

    def arms(to: int, source: int) -> Arms:
        copy = partial(_core.memcpy_pages, to, source)
        return {
            "": partial(copy, page=page, count=count),
            "_whole": partial(copy, page=TOTAL_BYTES, count=1),
        }

    store = _core.TierStore.host(capacity=TOTAL_BYTES, slot=page)
    out, back = arms(theirs.address, ours.address), arms(ours.address, theirs.address)
    return _compare(report, Comparison("host", suffix, store, count, ours.address, out, back))


def _file(report: Report, suffix: str, page: int, folder: str) -> int:
    memory = Memory()
    store = _core.TierStore.file(folder, capacity=TOTAL_BYTES, slot=page, threads=THREADS)
    direct = store.alignment > 1
    report.metrics["nvme_direct"] = int(direct)
    with _plain_file(folder, direct) as file, ThreadPoolExecutor(THREADS) as threads:
        view = memoryview(memory.map)
        calls = [
            ([view[at : at + page] for at in range(start, start + CALL_BYTES, page)], start)
            for start in range(0, TOTAL_BYTES, CALL_BYTES)
        ]

        def all_by(call: Callable[[int, list[memoryview], int], int]) -> Callable[[], object]:
            def once(parts: list[memoryview], at: int) -> None:
                if call(file, parts, at) != CALL_BYTES:
                    raise OSError("a call of the peer's moved less than was asked")

            return lambda: list(threads.map(once, *zip(*calls, strict=True)))

        count = TOTAL_BYTES // page
        out, back = {"": all_by(os.pwritev)}, {"": all_by(os.preadv)}
        return _compare(report, Comparison("nvme", suffix, store, count, memory.address, out, back))


@contextmanager
def _plain_file(folder: str, direct: bool) -> Iterator[int]:
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    file = os.open(name, os.O_RDWR | (os.O_DIRECT if direct else 0))
    os.unlink(name)
    try:
        os.posix_fallocate(file, 0, TOTAL_BYTES)
        yield file
    finally:
        os.close(file)


def _compare(report: Report, one: Comparison) -> int:
    """Adds the ratios to every peer. Returns how many pages were verified."""
    seconds: dict[tuple[str, str], list[float]] = {}

    def timed(way: str, arms: Arms, turn: int) -> None:
        order = list(arms)
        for arm in order[turn % len(order) :] + order[: turn % len(order)]:  # nobody is always the first
            took = time_once(arms[arm])
            if turn > 0:  # the first round touches what is new
                seconds.setdefault((way, arm), []).append(took)

    store, address = one.store, one.address
    for turn in range(PAIRS + 1):
        slots = store.take(one.count)
        timed("out", {STORE: partial(store.write, slots, address), **one.out}, turn)
        timed("in", {STORE: partial(store.read, slots, address), **one.back}, turn)
        store.give_back(slots)
    peer = {"host": "memcpy", "nvme": "calls"}[one.name]
    for (way, arm), times in seconds.items():
        if arm == STORE:
            continue
        pairs = zip(times, seconds[way, STORE], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        report.metrics[f"{one.name}_{way}{arm}_ratio{one.suffix}"] = ratio
        speed = TOTAL_BYTES / statistics.median(times) / 1e9
        report.peers |= rounded([(f"{peer}_{way}{arm}_gb_s{one.suffix}", speed)])
    verified = store.figures()["verified"]
    if verified != one.count * (PAIRS + 1):
        raise AssertionError(f"{one.name}: {verified} of {one.count * (PAIRS + 1)} pages were verified")
    store.close()
    return verified
