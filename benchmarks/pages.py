"""Page sizes and layouts on real traces, in simulated time: where each wins.

The three traces of ``replay`` at their own rate, Llama-3.1-8B on an A100 with 80 and with 24 GiB; pages of
2, 4 and 16 MiB; 1, 4 and all 32 layers side by side in a token's record (G), so that a sequence has 32, 8 or
1 extents and grows by that many pages at once; and as many as `KVCache` itself takes for slots of the model's
longest sequences. Creating a page is taken to cost in proportion to its size, the other calls the same for
every size, as those published do.

Metrics, as ``{trace}_{memory}gib_{page}mib_g{layers or "default"}_{metric}``: ``throughput_vs_paged16`` (1:
as many tokens a second as with 16-token blocks at no cost), ``fragmentation``, ``peak_sequences``,
``stall_ms_per_1000_iterations``, ``hide_ratio`` and ``pages_mapped_per_1000_tokens``, all as in ``replay``.

``python -m vmm.benchmarks.pages FILE.svg`` draws them, and prints a table for the docs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vmm.benchmarks.replay import MEMORIES_GIB, TRACES, read_traces, settings_with
from vmm.benchmarks.report import Report, environment, rounded
from vmm.simulate import Settings, Trace, replay

DEVICES = ("simulation",)

PAGES_MIB = (2, 4, 16)
LAYERS = (1, 4, 0, 32)  # 0: KVCache's own choice
COLORS = ("tab:red", "tab:orange", "tab:green", "tab:blue")
SHOWN = (
    "throughput_vs_paged16",
    "fragmentation",
    "peak_sequences",
    "stall_ms_per_1000_iterations",
    "hide_ratio",
    "pages_mapped_per_1000_tokens",
)


def run(progress: Callable[[str], None], device: str) -> Report:
    report = Report("pages", "simulation", environment=environment())
    report.peers = {"paged16": "simulated bookkeeping"}
    for name, trace in read_traces().items():
        for gib in MEMORIES_GIB:
            progress(f"{name}, {gib} GiB")
            paged = replay(trace, _settings(gib, 2, 32), "paged16").metrics
            combinations = [(mib, layers) for mib in PAGES_MIB for layers in LAYERS]
            with ThreadPoolExecutor(os.cpu_count()) as workers:
                results = workers.map(partial(_replay, trace, gib), combinations)
                for (mib, layers), metrics in zip(combinations, results, strict=True):
                    of_paged = paged["throughput_tokens_per_s"]
                    metrics["throughput_vs_paged16"] = metrics["throughput_tokens_per_s"] / of_paged
                    for metric in SHOWN:
                        report.metrics[_name(name, gib, mib, layers) + metric] = metrics[metric]
    report.metrics = rounded(report.metrics.items())
    return report


def _name(trace: str, gib: int, page_mib: int, layers: int) -> str:
    return f"{trace}_{gib}gib_{page_mib}mib_g{layers or 'default'}_"


def _replay(trace: Trace, gib: int, combination: tuple[int, int]) -> dict[str, float]:
    return replay(trace, _settings(gib, *combination), "vmm").metrics


def _settings(gib: int, page_mib: int, layers: int) -> Settings:
    return settings_with(gib, page_bytes=page_mib * 2**20, layers_per_extent=layers)


def table(metrics: dict[str, float]) -> str:
    """As Markdown, 24 GiB: throughput ÷ paged16's, fragmentation, peak of sequences, stalls, by trace."""
    lines = ["| page, G | " + " | ".join(TRACES) + " |", "|---" * (len(TRACES) + 1) + "|"]
    for mib in PAGES_MIB:
        for layers in reversed(LAYERS):
            cells = []
            for trace in TRACES:
                of = {metric: metrics[_name(trace, 24, mib, layers) + metric] for metric in SHOWN}
                cells.append(
                    f"{of['throughput_vs_paged16']:.3f}, {of['fragmentation']:.1%}, "
                    f"{of['peak_sequences']:.0f}, {of['stall_ms_per_1000_iterations']:.2f}"
                )
            lines.append(f"| {mib} MiB, {layers or 'default'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(metrics: dict[str, float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, len(TRACES), sharex=True, sharey="row")
    for column, trace in zip(axes.T, TRACES, strict=True):
        for gib, dashes in zip(MEMORIES_GIB, ("--", "-"), strict=True):
            for layers, color in zip(LAYERS, COLORS, strict=False):
                names = [_name(trace, gib, mib, layers) for mib in PAGES_MIB]
                style = {
                    "color": color,
                    "linestyle": dashes,
                    "marker": "o",
                    "label": f"G={layers or 'default'}, {gib} GiB",
                }
                for axis, metric in zip(column, ("throughput_vs_paged16", "fragmentation"), strict=True):
                    axis.plot(PAGES_MIB, [metrics[name + metric] for name in names], **style)
        column[0].set_title(trace)
        column[1].set_xlabel("page, MiB")
        column[1].set_xscale("log", base=2)
        column[1].set_xticks(PAGES_MIB, map(str, PAGES_MIB))
    axes[0][0].set_ylabel("throughput ÷ paged16's")
    axes[1][0].set_ylabel("held memory without a token")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    found = run(lambda what: print(what, file=sys.stderr), "simulation").metrics
    plot(found, Path(sys.argv[1]))
    print(table(found))
