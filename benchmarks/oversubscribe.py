"""Sessions with ten times as much K and V as the device has memory for, which take turns.

The sessions of the agentic trace, ``COPIES`` of each, somewhere in the midst of their turns, with one
``DIVISOR``-th of their tokens and ``THINK_SCALE`` of the times in which a tool runs or a human thinks (at
most five minutes of the trace). Every token's K and V in each layer say whose they are: session, token,
layer, K or V, head. When a session comes back, every byte that it had is compared. Nobody tells the engine
when a session will come back: it is parked, with what it waits for (a tool or a human), and prefetched when
its request has arrived. The pool's budget is a tenth of what the sessions have on average.

A server (oversubscribe_server.py) runs ``PLACES`` sessions at a time and computes attention over all their K
and V for each token: that is what loads can hide behind. The attention stands for a device's work. So in
every arm, the peer's included, it has one core less than there are, where there are several: beside a device
the CPU has time for the pager, too. (On all cores OpenMP's threads spin at the end of each operation while
the pager has one of these, which measures OpenMP.) ``torch_threads`` in the environment says how many. Each
arm serves the same sessions for as many turns, in two rounds of other seeds, interleaved:

- ``all_resident``, the peer: a pool with memory for all. Nobody is parked.
- (no prefix) ``predictive``: memory for a tenth; the host tier holds the rest. Who is ready is admitted.
- ``lru``: the same with another policy.
- ``alone``: predictive, and whoever arrives is stepped at once, without prefetch and without ``ready``.
- ``small_host``: predictive; the host tier has half the budget, and a file the rest.

``verified_pages`` were compared, ``moved_pages`` went to a tier or came back, ``lost_pages`` could not be
brought back, and of ``wrong_pages`` a byte was not what was written: sums over all arms but the peer. Of each
arm:

- ``loads_hidden_fraction``: 1 − the time for which callers waited in ``step`` ÷ the time that loads took. Of
  ``alone`` it is called ``hidden_by_prediction_alone``. Where nobody runs and nobody who has arrived is
  ready, the first of them is stepped all the same, so that the server never idles unnoticed.
- ``throughput_over_all_resident``: output tokens a second ÷ the peer's.
- ``resume_delay_ms_p50``, ``_p99``: from when a session that came back had a place to run until its first
  step had returned. It has a place when it has arrived, fewer than ``PLACES`` run, there is room for its
  turn, and nobody who came before it waits for either. Queueing for that is not part of it; being passed by
  because it was not ready is.
- ``missing_fraction``: loads ÷ returns: how many came back to something that was away.
- ``live_over_budget``: the sessions' K and V ÷ the budget, mean over the iterations.
- ``busy_places``: of the places, how many were taken, mean over the iterations.
- ``preempted``: running sessions that had to give their memory up.

``--turns N`` serves so many in each arm. The folder of the file is ``VMM_SWAP_FOLDER``, or the one for
temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch

from vmm import KVCache, Pool
from vmm.benchmarks.oversubscribe_server import Counts, Rules, Server
from vmm.benchmarks.oversubscribe_sessions import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    PAGE_BYTES,
    TOKEN_BYTES,
    Crowd,
    SmallTurn,
    crowd,
    small_turns,
)
from vmm.benchmarks.policies_turns import read_turns
from vmm.benchmarks.report import Report, environment, rounded
from vmm.benchmarks.trace_files import given_files, read_files
from vmm.errors import InvalidArgument
from vmm.pool_stats import TierStats

DEVICES = ("cpu",)

TRACES = {"agentic": "agentic_coding_sessions.jsonl.gz"}
TURNS = 6_000
ROUNDS = 2
COPIES = 4
DIVISOR = 32
THINK_SCALE = 1 / 12
PLACES = 4
OVERSUBSCRIBED = 10
_ROOM = 0.6  # of the budget is for what runs; the rest for what is loaded meanwhile


@dataclass(frozen=True)
class Arm:
    eviction: str = "predictive"
    ahead: bool = True
    resident: bool = False
    small_host: bool = False


PEER = "all_resident"
ARMS = {
    PEER: Arm(resident=True),
    "predictive": Arm(),
    "lru": Arm(eviction="lru"),
    "alone": Arm(ahead=False),
    "small_host": Arm(small_host=True),
}


@dataclass
class Sums:
    """Of an arm, over the rounds."""

    counts: Counts = field(default_factory=Counts)
    cleaned: int = 0
    loaded: int = 0
    lost: int = 0
    loads: int = 0
    loading_ms: float = 0.0
    waited_ms: float = 0.0
    live_over_budget: list[float] = field(default_factory=list)

    def add(self, counts: Counts, before: TierStats | None, after: TierStats | None) -> None:
        for each in fields(Counts):
            name = each.name
            setattr(self.counts, name, getattr(self.counts, name) + getattr(counts, name))
        if before is None or after is None:
            return
        self.cleaned += after.cleaned_pages
        self.loaded += after.loaded_pages
        self.lost += after.lost_pages
        self.loads += after.loads - before.loads
        self.loading_ms += after.loading_ms - before.loading_ms
        self.waited_ms += after.waited_ms - before.waited_ms

    @property
    def throughput(self) -> float:
        return self.counts.output_tokens / self.counts.seconds

    @property
    def hidden(self) -> float:
        return 1 - min(1.0, self.waited_ms / self.loading_ms) if self.loading_ms else 1.0


def run(progress: Callable[[str], None], device: str, turns: int = TURNS) -> Report:
    report = Report("oversubscribe", device, environment=environment("torch"))
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    report.environment["torch_threads"] = max(1, cores - 1)
    torch.set_num_threads(max(1, cores - 1))
    try:
        return _measured(report, progress, turns)
    finally:
        torch.set_num_threads(threads)


def _measured(report: Report, progress: Callable[[str], None], turns: int) -> Report:
    trace = read_small_turns()
    sums = {name: Sums() for name in ARMS}
    each = max(1, turns // ROUNDS)
    for seed in range(1, ROUNDS + 1):
        for name, arm in ARMS.items():
            progress(f"{name.replace('_', ' ')}, round {seed} of {ROUNDS}, {each:,} turns")
            serve(sums[name], arm, crowd(trace, COPIES, seed), each)
    report.metrics = rounded(metrics(sums).items(), digits=6)
    peer = sums[PEER]
    speed = [("all_resident_output_tokens_per_s", peer.throughput)]
    report.peers = {
        "all_resident": "the same sessions in a pool with memory for all",
        **rounded([*speed, *delays("all_resident_", peer).items()]),
    }
    return report


def read_small_turns() -> list[list[SmallTurn]]:
    """Raises InvalidArgument where there are no agentic sessions."""
    files = given_files(TRACES)
    for name, trace in read_files(files).items():
        if trace.format == "agentic":
            return small_turns(read_turns(files[name]), DIVISOR, THINK_SCALE)
    raise InvalidArgument("traces: none is of agentic sessions; VMM_TRACES may name a folder, or files")


def serve(sums: Sums, arm: Arm, sessions: Crowd, turns: int) -> None:
    """One round of an arm, in a pool of its own."""
    budget = -(-sessions.mean_tokens * TOKEN_BYTES // OVERSUBSCRIBED // PAGE_BYTES) * PAGE_BYTES
    # Each session may have a page that is not full, and free slots some that are ready.
    everything = sessions.most_tokens * TOKEN_BYTES + 3 * len(sessions.sessions) * PAGE_BYTES
    with pool_of(arm, budget, everything) as pool:
        longest = max(turn.tokens for session in sessions.sessions for turn in session.turns)
        cache = cache_in(pool, len(sessions.sessions) + PLACES, longest)
        rules = Rules(PLACES, int(_ROOM * budget) // TOKEN_BYTES, parks=not arm.resident, ahead=arm.ahead)
        server = Server(cache, sessions, rules)
        server.settle()
        before = pool.stats().tiers
        server.run(turns)
        sums.add(server.counts, before, pool.stats().tiers)
        live = server.counts.live_tokens / server.counts.iterations
        sums.live_over_budget.append(live * TOKEN_BYTES / budget)
        cache.close()


def cache_in(pool: Pool, sequences: int, max_tokens: int) -> KVCache:
    return KVCache(
        LAYERS,
        HEADS,
        HEAD_DIM,
        dtype=torch.float32,
        max_tokens=max_tokens,
        max_sequences=sequences,
        pool=pool,
        layout="token-major",
        layers_per_extent=LAYERS,
        page_bytes=PAGE_BYTES,
    )


def pool_of(arm: Arm, budget: int, everything: int) -> Pool:
    if arm.resident:
        return Pool(budget + everything)
    if not arm.small_host:
        return Pool(budget, host=everything, eviction=arm.eviction)
    folder = os.environ.get("VMM_SWAP_FOLDER", tempfile.gettempdir())
    return Pool(budget, host=budget // 2, nvme=f"{folder}:{everything}", eviction=arm.eviction)


def metrics(sums: dict[str, Sums]) -> dict[str, float]:
    ours = {name: each for name, each in sums.items() if name != PEER}
    out: dict[str, float] = {
        "verified_pages": sum(each.counts.verified_pages for each in ours.values()),
        "moved_pages": sum(each.cleaned + each.loaded for each in ours.values()),
        "lost_pages": sum(each.lost for each in ours.values()),
        "wrong_pages": sum(each.counts.wrong_pages for each in ours.values()),
    }
    for name, each in ours.items():
        prefix = "" if name == "predictive" else f"{name}_"
        hidden = "hidden_by_prediction_alone" if name == "alone" else f"{prefix}loads_hidden_fraction"
        counts = each.counts
        out[hidden] = each.hidden
        out[f"{prefix}throughput_over_all_resident"] = each.throughput / sums[PEER].throughput
        out |= delays(prefix, each)
        out[f"{prefix}missing_fraction"] = each.loads / max(1, len(counts.delays_s))
        out[f"{prefix}moved_mib_per_s"] = each.loaded * PAGE_BYTES / 2**20 / counts.seconds
        out[f"{prefix}live_over_budget"] = sum(each.live_over_budget) / len(each.live_over_budget)
        out[f"{prefix}busy_places"] = counts.running / counts.iterations
        out[f"{prefix}preempted"] = counts.preempted
        out[f"{prefix}seconds"] = counts.seconds
    return out


def delays(prefix: str, sums: Sums) -> dict[str, float]:
    """The smallest delays that half, and 99 in a hundred, do not exceed."""
    found = sorted(sums.counts.delays_s)
    if not found:
        return {}
    return {
        f"{prefix}resume_delay_ms_p{part}": 1e3 * found[-(-len(found) * part // 100) - 1] for part in (50, 99)
    }
