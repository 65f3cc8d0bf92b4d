"""How fast memory passes from process to process: two pools of one share, on the host driver.

Metrics: ``pressure_to_pages_ms_{p50,p99}``: from the moment at which one process asks for pages until it
has them mapped, while another holds all other memory mapped and needs none of it, 2 MiB of 64 each time;
``after_kill_ms_{p50,p99}``: from the ``kill -9`` of a process that holds three quarters of the memory, in
use, until the survivor, who holds the rest, has 2 MiB more mapped (nobody rings for the dead, but whoever
lacks memory looks);
``take_within_grant_ns``: taking a page and giving it back while the grant has room, mean, without Python;
``raise_us``: a new maximum written to the table, from Python, mean; ``minimum_violations``: how often a
process that asked for no more than its minimum was refused (0).

Peer: ``local_take_ns``, the same calls of a budget of one process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmm import _core
from vmm.benchmarks.report import Report, environment, rounded, time_once
from vmm.benchmarks.share_process import Process

DEVICES = ("cpu",)

MIB = 2**20
BUDGET = 64 * MIB
ROUNDS, KILLS, TAKES, RAISES = 100, 20, 1_000_000, 5_000


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("share", device, environment=environment())
    with _own_folder() as folder:
        progress("pages of an idle process")
        _pressure(report)
        progress("pages of a killed process")
        _kills(report)
        progress("single calls")
        _calls(report, folder)
    report.metrics = rounded(report.metrics.items())
    report.peers = dict(rounded(report.peers.items()))
    return report


@contextmanager
def _own_folder() -> Iterator[str]:
    """Shares of this benchmark's own."""
    before = os.environ.get("VMM_SHARE_DIR")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.environ["VMM_SHARE_DIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("VMM_SHARE_DIR")
            if before is not None:
                os.environ["VMM_SHARE_DIR"] = before


def _note(report: Report, name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    for percent in (50, 99):
        index = min(len(ordered) - 1, len(ordered) * percent // 100)
        report.metrics[f"{name}_ms_p{percent}"] = 1e3 * ordered[index]


def _pressure(report: Report) -> None:
    violations, waits = 0, []
    with Process("idle", BUDGET) as idle, Process("idle", BUDGET, 4 * MIB) as needy:
        for _ in range(ROUNDS):
            needy.ask("unkeep")
            needy.ask("trim")
            idle.ask("map", BUDGET - 4 * MIB)
            idle.ask("unkeep")
            violations += needy.ask("map", 4 * MIB, 0) < 0
            waits.append(needy.ask("map", 6 * MIB))
    if min(waits) < 0:
        raise RuntimeError("the needy process never had its pages")
    _note(report, "pressure_to_pages", waits)
    report.metrics["minimum_violations"] = violations


def _kills(report: Report) -> None:
    waits = []
    with Process("killed", BUDGET) as survivor:
        for _ in range(KILLS):
            survivor.ask("unkeep")
            survivor.ask("trim")
            survivor.ask("map", BUDGET // 4)
            with Process("killed", BUDGET) as holder:
                holder.ask("map", BUDGET * 3 // 4)
                holder.popen.kill()
                waits.append(survivor.ask("map", BUDGET // 4 + 2 * MIB))
    if min(waits) < 0:
        raise RuntimeError("the survivor never had the memory")
    _note(report, "after_kill", waits)


def _calls(report: Report, folder: str) -> None:
    part = _core.SharedBudget(f"{folder}/calls", BUDGET, BUDGET, 0)
    report.metrics["take_within_grant_ns"] = _core.time_takes(part, TAKES) / TAKES
    report.peers["local_take_ns"] = _core.time_takes(_core.Budget(BUDGET), TAKES) / TAKES
    part.detach()
    part = _core.SharedBudget(f"{folder}/raises", BUDGET, 0, 0)
    limits = [MIB * (1 + i % 64) for i in range(RAISES)]
    report.metrics["raise_us"] = 1e6 * time_once(lambda: [part.set_limit(limit) for limit in limits]) / RAISES
    part.detach()
