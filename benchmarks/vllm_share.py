"""Two vLLM engines that share 12 MiB, of which 3 are promised to each, take turns in needing everything.

``pressure_to_pages_ms``, p99 over announcements of blocks that had no memory at first, because the other
engine had it and was idle: until the memory was there. ``after_kill_ms``: from the kill -9 of the engine
that has the most until the other, which works meanwhile, has more than it could have beside it.
``minimum_violations``: how often an engine that wanted memory had less than its minimum for two seconds.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from time import monotonic, sleep

import vmm
from vmm.benchmarks.vllm_environment import LIMIT_S, Worker
from vmm.errors import Error

MIB = 2**20
TOTAL_BYTES, MINIMUM_BYTES = 12 * MIB, 3 * MIB
TURNS = 6
TURN = [26, 100, 0]  # see vllm_worker.serve; these fit into what an idle engine can leave to the other
MORE_THAN_ALL = [48, 600, 0]
LONGEST_WITHOUT_MINIMUM_S = 2.0
SHARE = "bench-vllm"


def measured(progress: Callable[[str], None], model: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("VMM_SHARE_DIR")
        os.environ["VMM_SHARE_DIR"] = folder  # for the engines, too
        try:
            return _measured(progress, model)
        finally:
            os.environ.pop("VMM_SHARE_DIR")
            if before is not None:
                os.environ["VMM_SHARE_DIR"] = before


def _measured(progress: Callable[[str], None], model: str) -> dict[str, float]:
    progress("two engines of one share")
    pressed: list[float] = []
    with _engine(model) as first, _engine(model) as second:
        for engine in (first, second):
            engine.answer()  # it is ready
        with _Watch() as watch:
            for turn in range(TURNS):
                engine = (first, second)[turn % 2]
                engine.ask(TURN)
                found = engine.answer()["pressed_ms"]
                pressed += found if turn else []  # the first finds an empty share
            progress("kill -9 of one of them")
            first.ask(MORE_THAN_ALL)  # the second had the last turn
            after_kill_ms = _after_kill_ms(killed=second, survivor=first)
    pressed.sort()
    return {
        "pressure_to_pages_ms": pressed[math.ceil(0.99 * len(pressed)) - 1],
        "after_kill_ms": after_kill_ms,
        "minimum_violations": watch.violations,
    }


def _engine(model: str) -> Worker:
    connector = {
        "budget": f"{TOTAL_BYTES // MIB}MiB",
        "share": SHARE,
        "minimum": f"{MINIMUM_BYTES // MIB}MiB",
        "idle": "600s",
    }
    engine = {"kv_cache_memory_bytes": 2 * TOTAL_BYTES}
    return Worker("serve", model=model, engine=engine, connector=connector, pressed=True)


def _after_kill_ms(killed: Worker, survivor: Worker) -> float:
    """Kills while the survivor wants more than it has."""
    until = monotonic() + LIMIT_S
    while (lease := _lease_of(survivor)) is None or lease.wanted <= lease.grant:
        if monotonic() > until:
            raise Error("the engine never wanted more than it had")
        sleep(0.001)
    start = monotonic()
    os.kill(killed.process.pid, signal.SIGKILL)
    while (lease := _lease_of(survivor)) is None or lease.grant <= TOTAL_BYTES - MINIMUM_BYTES:
        if monotonic() > until:
            raise Error("the engine did not get the memory of the one that was killed")
        sleep(0.001)
    return 1e3 * (monotonic() - start)


def _lease_of(engine: Worker) -> vmm.Lease | None:
    return next((lease for lease in vmm.leases(SHARE) if lease.pid == engine.process.pid), None)


class _Watch(threading.Thread):
    """Counts the times that an engine wants memory and has less than its minimum for too long."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.violations = 0
        self._over = threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._over.set()

    def run(self) -> None:
        since: dict[int, float] = {}
        while not self._over.wait(0.01):
            now = monotonic()
            lacking = {
                lease.pid for lease in vmm.leases(SHARE) if lease.grant < min(lease.minimum, lease.wanted)
            }
            since = {pid: since.get(pid, now) for pid in lacking}
            for pid in [pid for pid, start in since.items() if now - start > LONGEST_WITHOUT_MINIMUM_S]:
                self.violations += 1
                since[pid] = math.inf  # once for each time
