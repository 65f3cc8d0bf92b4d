"""Two vLLM engines that share 12 MiB, of which 3 are promised to each, take turns in needing everything.

``pressure_to_pages_ms``, p99 over announcements of blocks that had no memory at first, because the other
engine had it and was idle: until the memory was there. ``after_kill_ms``: from the kill -9 of the engine
that has the most until the other, which works meanwhile, has more than it could have beside it.
``minimum_violations``: how often an engine that wanted memory had less than its minimum for two seconds.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import vmm
from vmm.benchmarks import vllm_environment
from vmm.errors import Error

MIB = 2**20
TOTAL_BYTES, MINIMUM_BYTES = 12 * MIB, 3 * MIB
TURNS = 6
TURN = [26, 100]  # requests and tokens of each: they fit into what an idle engine can leave to the other
MORE_THAN_ALL = [48, 600]
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
    engines: list[_Engine] = []
    watch = _Watch()
    try:
        progress("two engines of one share")
        engines = [_Engine(model), _Engine(model)]
        for engine in engines:
            engine.answer()  # it is ready
        watch.start()
        pressed: list[float] = []
        for turn in range(TURNS):
            engine = engines[turn % 2]
            engine.ask(TURN)
            found = engine.answer()["pressed_ms"]
            pressed += found if turn else []  # the first finds an empty share
        progress("kill -9 of one of them")
        survivor, killed = engines  # the second had the last turn
        survivor.ask(MORE_THAN_ALL)
        after_kill_ms = _after_kill_ms(killed, survivor)
    finally:
        watch.over.set()
        for engine in engines:
            engine.end()
    pressed.sort()
    return {
        "pressure_to_pages_ms": pressed[math.ceil(0.99 * len(pressed)) - 1],
        "after_kill_ms": after_kill_ms,
        "minimum_violations": watch.violations,
    }


def _after_kill_ms(killed: _Engine, survivor: _Engine) -> float:
    """Kills while the survivor wants more than it has."""
    until = monotonic() + vllm_environment.LIMIT_S
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


def _lease_of(engine: _Engine) -> vmm.Lease | None:
    return next((lease for lease in vmm.leases(SHARE) if lease.pid == engine.process.pid), None)


class _Engine:
    """A process that serves one question after the other (vllm_worker.attend)."""

    def __init__(self, model: str) -> None:
        self.process: subprocess.Popen[str] = vllm_environment.start(
            "attend",
            model=model,
            engine={"kv_cache_memory_bytes": 2 * TOTAL_BYTES},
            connector={
                "budget": f"{TOTAL_BYTES // MIB}MiB",
                "share": SHARE,
                "minimum": f"{MINIMUM_BYTES // MIB}MiB",
                "idle": "600s",
            },
        )
        self._limit = threading.Timer(vllm_environment.LIMIT_S, self.process.kill)
        self._limit.daemon = True
        self._limit.start()
        self._log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()

    def ask(self, load: list[int]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(load) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("DONE "):
                found: dict[str, Any] = json.loads(line.removeprefix("DONE "))
                return found
        raise Error(f"an engine of the share ended: {''.join(self._log)[-3000:]}")

    def end(self) -> None:
        self._limit.cancel()
        vllm_environment.end(self.process)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log = [*self._log[-100:], line]


class _Watch(threading.Thread):
    """Counts the times that an engine wants memory and has less than its minimum for too long."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.violations = 0
        self.over = threading.Event()

    def run(self) -> None:
        since: dict[int, float] = {}
        while not self.over.wait(0.01):
            now = monotonic()
            lacking = {
                lease.pid for lease in vmm.leases(SHARE) if lease.grant < min(lease.minimum, lease.wanted)
            }
            since = {pid: since.get(pid, now) for pid in lacking}
            for pid in [pid for pid, start in since.items() if now - start > LONGEST_WITHOUT_MINIMUM_S]:
                self.violations += 1
                since[pid] = math.inf  # once for each time
