"""What KVTensor costs where torch.empty stood, and what it saves, on the CPU.

A token is 8 KV heads x 128 in bf16, 2 KiB. The peer is torch.empty of the same shape, its pages touched
before; arms are interleaved call by call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter, sleep

import torch

from vmm.benchmarks.report import Report, environment, interleaved, rounded, time_once
from vmm.kv_tensor import KVTensor
from vmm.pool import Pool
from vmm.testing import kernel_account, settle

DEVICES = ("cpu",)

HEADS, DIM = 8, 128
TOKEN_BYTES = HEADS * DIM * 2
CALLS = 10_000


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("tensor", "cpu", environment=environment("torch"))
    for name, work in (
        ("indexing", _index),
        ("append", _append),
        ("one append a millisecond, pager on", _stalls),
        ("append, nothing mapped ahead", _unprepared),
        ("memory", _memory),
    ):
        progress(name)
        work(report)
    report.metrics = rounded(report.metrics.items())
    report.peers = {**rounded(report.peers.items()), "peer": "torch.empty"}
    return report


def _median_us(arms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of CALLS calls of each, one of each per round."""
    seconds = interleaved(arms, CALLS)
    nothing = statistics.median(time_once(lambda: None) for _ in range(CALLS))
    return {name: 1e6 * (median - nothing) for name, median in seconds.items()}


def _pair(rows: int, tokens: int, pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (rows, tokens, HEADS, DIM)
    return torch.zeros(shape, dtype=torch.bfloat16), KVTensor(*shape, dtype=torch.bfloat16, pool=pool)


def _index(report: Report) -> None:
    """A bounded slice of what is mapped, of several rows and of one, less the same on torch.empty."""
    stock, ours = _pair(4, 4096, Pool("256MiB"))
    ours[:, :2048] = 1
    forms: dict[str, Callable[[torch.Tensor], object]] = {
        "index": lambda t: t[:4, 100:200],
        "index_of_a_row": lambda t: t[0, :200],
    }
    for name, form in forms.items():
        us = _median_us({"stock": lambda f=form: f(stock), "ours": lambda f=form: f(ours)})
        report.metrics[f"{name}_overhead_us"] = us["ours"] - us["stock"]
        report.peers[f"{name}_us"] = us["stock"]


def _append(report: Report) -> None:
    """One token, its page mapped; the peer assigns a slice of torch.empty, as reference models do."""
    stock, ours = _pair(1, CALLS, Pool("256MiB"))
    ours.reserve(CALLS)
    token = torch.randn(1, 1, HEADS, DIM, dtype=torch.bfloat16)
    end = 0

    def assign() -> None:
        nonlocal end
        stock[:, end : end + 1] = token
        end += 1

    us = _median_us({"stock": assign, "ours": lambda: ours.append(token)})
    report.metrics["append_us"] = us["ours"]
    report.metrics["append_over_assignment"] = us["ours"] / us["stock"]
    report.peers["assignment_us"] = us["stock"]


def _stalls(report: Report) -> None:
    """One append a millisecond for ten seconds: how often it had to wait for a page."""
    pool = Pool("256MiB")
    ours = KVTensor(1, CALLS, HEADS, DIM, dtype=torch.bfloat16, pool=pool)
    token = torch.randn(1, 1, HEADS, DIM, dtype=torch.bfloat16)
    due = perf_counter()
    for _ in range(CALLS):
        ours.append(token)
        due += 1e-3
        sleep(max(0.0, due - perf_counter()))
    report.metrics["stalls_per_1000_appends"] = 1000 * pool.stats().stalls / CALLS


def _unprepared(report: Report) -> None:
    """Time in appends that had to map their page, fresh from the system: what the pager else does."""
    pool = Pool("256MiB", lookahead_pages=0)
    ours = KVTensor(1, 4 * CALLS, HEADS, DIM, dtype=torch.bfloat16, pool=pool)
    token = torch.randn(1, 1, HEADS, DIM, dtype=torch.bfloat16)
    tokens_per_page = pool.default_page_bytes // TOKEN_BYTES
    waited = []
    for at in range(4 * CALLS):
        seconds = time_once(lambda: ours.append(token))
        if at % tokens_per_page == 0:
            waited.append(1e6 * seconds)
    if pool.stats().stalls != len(waited):
        raise AssertionError(f"{pool.stats().stalls} stalls; expected {len(waited)}")
    report.metrics["stall_us_p99"] = statistics.quantiles(waited, n=100)[-1]
    report.metrics["stall_us_p50"] = statistics.median(waited)


def _memory(report: Report) -> None:
    """32 rows of 131,072 tokens with one in a hundred live, by the kernel's account.

    Linux backs torch.empty on the CPU lazily, too: ``empty_memory_vs_empty`` is what it takes there. On a GPU
    it would take all 8 GiB.
    """
    rows, tokens = 32, 131_072
    live = tokens // 100
    states = torch.randn(rows, live, HEADS, DIM, dtype=torch.bfloat16)
    live_bytes = rows * live * TOKEN_BYTES
    pool = Pool("1GiB")
    ours = KVTensor(rows, tokens, HEADS, DIM, dtype=torch.bfloat16, pool=pool)
    ours[:, :live] = states
    settle(pool)
    kernel = kernel_account(pool)
    if kernel.resident_bytes != ours.mapped_bytes:
        raise AssertionError(f"kernel: {kernel}; tensor: {ours.mapped_bytes}")
    report.metrics["memory_vs_empty"] = kernel.resident_bytes / live_bytes
    report.metrics["mappings"] = kernel.mappings
    before = _resident_bytes()
    stock = torch.empty(rows, tokens, HEADS, DIM, dtype=torch.bfloat16)
    stock[:, :live] = states
    report.peers["empty_memory_vs_empty"] = (_resident_bytes() - before) / live_bytes
    report.peers["empty_reserved_over_live"] = stock.numel() * 2 / live_bytes


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
