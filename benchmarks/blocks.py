"""What a paged engine's calls of ``Blocks`` cost from Python, where nothing needs to be mapped.

64 stretches (K and V of 32 layers) of 4,096 blocks of 1 KiB each in pages of 64 KiB, so that a page holds 64
blocks of a stretch: as blocks of 32 KiB in pages of 2 MiB do, in 256 MiB instead of 8 GiB.

Metrics, medians of microseconds of wall time: ``keep_us_N`` and ``drop_us_N`` of N consecutive blocks, whose
pages are there; every round keeps them and drops them again, while others keep a block of each page.
``keep_block_us`` and ``drop_block_us`` are the slope from 1 to 4,096 blocks, ``keep_call_us`` and
``drop_call_us`` what a call of one block takes beside it. ``…_first_us_N``: the same where nobody keeps the
pages, so that they are told to the pool, 64 for a block; ``keep_first_us_256_scattered`` of blocks that lie
all over, the worst case. ``ready_us_256``. ``announce_call_us``: of one block that the pager has to map,
waking it included; ``announce_us_256``.

The peer in the same run: a ``Lease.map`` for each block, of the same pages, as one would without Blocks.
``lease_map_block_us`` is what it takes for one, and ``lease_map_over_keep_256`` how much more for 256.
"""

from __future__ import annotations

import random
import statistics
from array import array
from collections.abc import Callable
from functools import partial
from time import sleep

import vmm
from vmm.benchmarks.report import Report, environment, rounded, time_once

DEVICES = ("cpu",)

STRETCHES, BLOCKS, BLOCK_BYTES, PAGE_BYTES = 64, 4096, 1024, 65536
BLOCKS_A_PAGE = PAGE_BYTES // BLOCK_BYTES
PAGES_A_STRETCH = BLOCKS // BLOCKS_A_PAGE
SIZES = (1, 256, 4096)
ROUNDS = {1: 20_000, 256: 2_000, 4096: 200}


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("blocks", device, environment=environment())
    size = STRETCHES * BLOCKS * BLOCK_BYTES
    with vmm.Pool(size + 2**26, device=device) as pool, pool.range(size, PAGE_BYTES) as made:
        starts = [stretch * BLOCKS * BLOCK_BYTES for stretch in range(STRETCHES)]
        blocks = made.blocks(starts, BLOCK_BYTES, BLOCKS)
        progress("mapping all blocks")
        blocks.keep(range(BLOCKS))
        blocks.drop(range(BLOCKS))
        for first in ("first_", ""):
            if not first:  # another block keeps each page; those at hand begin one after it
                blocks.keep(array("i", range(0, BLOCKS, BLOCKS_A_PAGE)))
            for count in SIZES:
                progress(f"{count} blocks, {'first' if first else 'not first'} on their pages")
                _measure(report, blocks, f"{first}us_{count}", _neighbours(count, bool(first)))
        blocks.drop(range(BLOCKS))
        scattered = array("i", random.Random(0).sample(range(BLOCKS), 256))
        _measure(report, blocks, "first_us_256_scattered", scattered)
        _fit(report)
        progress("a Lease.map for each block")
        _compare(report, made)
        progress("announcing")
        _announce(report, blocks)
    report.metrics = rounded(report.metrics.items())
    return report


def _neighbours(count: int, first: bool) -> array[int]:
    """Consecutive ids, of which none is the first on its page unless ``first``."""
    ids = range(BLOCKS) if first else (i for i in range(BLOCKS) if i % BLOCKS_A_PAGE)
    return array("i", list(ids)[:count])


def _measure(report: Report, blocks: vmm.Blocks, name: str, ids: array[int]) -> None:
    keeps, drops = [], []
    for _ in range(ROUNDS[min(ROUNDS, key=lambda size: abs(size - len(ids)))]):
        keeps.append(time_once(lambda: blocks.keep(ids)))
        drops.append(time_once(lambda: blocks.drop(ids)))
    nothing = statistics.median(time_once(lambda: None) for _ in range(1000))
    report.metrics[f"keep_{name}"] = 1e6 * (statistics.median(keeps) - nothing)
    report.metrics[f"drop_{name}"] = 1e6 * (statistics.median(drops) - nothing)
    if name == "us_256":
        ready = statistics.median(time_once(lambda: blocks.ready(ids)) for _ in range(1000))
        report.metrics["ready_us_256"] = 1e6 * (ready - nothing)


def _fit(report: Report) -> None:
    most = len(_neighbours(SIZES[-1], False))
    for call in ("keep", "drop"):
        one, all_ = report.metrics[f"{call}_us_1"], report.metrics[f"{call}_us_{SIZES[-1]}"]
        report.metrics[f"{call}_block_us"] = (all_ - one) / (most - 1)
        report.metrics[f"{call}_call_us"] = one - report.metrics[f"{call}_block_us"]


def _compare(report: Report, made: vmm.Range) -> None:
    lease = made._core.lease
    places = [[(page + s * PAGES_A_STRETCH, 1) for s in range(STRETCHES)] for page in range(4)]

    def map_256() -> None:
        for block in range(256):
            lease.map(places[block // BLOCKS_A_PAGE])

    seconds = statistics.median(time_once(map_256) for _ in range(50))
    lease.unkeep([(0, STRETCHES * PAGES_A_STRETCH)])
    report.peers = {
        "peer": "Lease.map from Python, for one block at a time",
        "lease_map_block_us": round(1e6 * seconds / 256, 3),
        "lease_map_over_keep_256": round(1e6 * seconds / report.metrics["keep_us_256"], 1),
    }


def _announce(report: Report, blocks: vmm.Blocks) -> None:
    for name, count in (("announce_call_us", 1), ("announce_us_256", 256)):
        seconds = []
        ids = array("i", range(BLOCKS - count, BLOCKS))
        work = partial(blocks.announce, ids)
        for _ in range(200):
            blocks.drop(ids, unmap=True)
            while any(blocks.ready(ids[:1])):
                sleep(0.0002)
            sleep(0.002)  # the pager has gone to sleep
            seconds.append(time_once(work))
        report.metrics[name] = 1e6 * statistics.median(seconds)
