"""Replays as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vmm.errors import InvalidArgument
from vmm.simulate.allocators import ALLOCATORS
from vmm.simulate.replay import Replayed
from vmm.simulate.settings import Settings
from vmm.units import format_bytes

_COLUMNS = {  # of the table: metric, format
    "tokens/s": ("throughput_tokens_per_s", "{:,.0f}"),
    "TTFT ms": ("ttft_p50_ms", "{:,.0f}"),
    "p99": ("ttft_p99_ms", "{:,.0f}"),
    "peak": ("peak_sequences", "{:,}"),
    "preempted": ("preempted", "{:,}"),
    "rejected": ("rejected", "{:,}"),
    "stalls": ("stall_ms_per_1000_iterations", "{:,.2f}"),
    "hidden": ("hide_ratio", "{:.2%}"),
    "waste": ("fragmentation", "{:.1%}"),
}


def table(results: Sequence[Replayed]) -> Table:
    """One row for each allocator: generated tokens a second; time to the first token, median and p99;
    sequences at once; milliseconds of stalls in 1,000 iterations; of the mappings that were used, those that
    were complete when a step needed them; of the memory of running sequences, what holds no token."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("allocator", no_wrap=True, min_width=max(len(name) for name in ALLOCATORS))
    for title in _COLUMNS:
        shown.add_column(title, justify="right", no_wrap=True)
    for result in results:
        cells = [
            form.format(result.metrics[metric]) if metric in result.metrics else "—"
            for metric, form in _COLUMNS.values()
        ]
        shown.add_row(result.allocator, *cells)
    return shown


def plot(results: Sequence[Replayed], settings: Settings, title: str, path: Path) -> None:
    """Plots memory and stalls over time, a column for each allocator, into a file whose name says of what
    kind. Raises InvalidArgument where matplotlib is missing or cannot write such a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("plot: matplotlib is not installed; pip install 'kvmm[plot]'") from error
    figure = Figure(figsize=(4.5 * len(results), 6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (memory, stalls), result in zip(axes.T, results, strict=True):
        at = [sample.at_ms / 1e3 for sample in result.samples]
        for name in ("mapped", "held", "live"):
            gib = [getattr(sample, f"{name}_bytes") / 2**30 for sample in result.samples]
            memory.fill_between(at, gib, label=name, alpha=0.6, linewidth=0)
        gib = [sample.reclaimable_bytes / 2**30 for sample in result.samples]
        memory.plot(at, gib, label="reclaimable", color="black", linewidth=0.8)
        memory.axhline(settings.kv_bytes / 2**30, label="budget", color="red", linewidth=0.8)
        memory.set_title(result.allocator)
        stalls.plot(at, [sample.stalled_ms for sample in result.samples], color="black", linewidth=0.8)
        stalls.set_xlabel("s")
    axes[0][0].set_ylabel("GiB")
    axes[1][0].set_ylabel("stalled so far, ms")
    axes[0][0].legend(loc="upper right")
    figure.suptitle(f"{title}: {format_bytes(settings.kv_bytes)} for K and V")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"plot: {error}") from error
