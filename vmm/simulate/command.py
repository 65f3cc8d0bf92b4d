"""``vmm simulate``: its options made into settings, its results shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from vmm.errors import InvalidArgument
from vmm.simulate.allocators import ALLOCATORS, SHARING_PREFIXES
from vmm.simulate.gpus import find_gpu, read_call_times
from vmm.simulate.models import find_model, read_config
from vmm.simulate.replay import Replayed, replay
from vmm.simulate.report import plot, table
from vmm.simulate.settings import Settings
from vmm.simulate.traces import SESSION_GAP_S, Trace, read_trace
from vmm.units import format_bytes, parse_bytes


@dataclass(frozen=True)
class Options:
    """The options of the command line; None where one was not given."""

    trace: Path
    model: str = "llama-3.1-8b"
    config: Path | None = None
    gpu: str = "a100-80gb"
    gpu_memory: str | None = None
    call_times: Path | None = None
    max_tokens: int | None = None
    max_sequences: int = 256
    batch_tokens: int = 2048
    page: str = "2MiB"
    layers_per_extent: int = 0
    load: float = 1.0
    allocators: Sequence[str] | None = None
    seed: int = 0
    session_gap_s: float = SESSION_GAP_S
    plot: Path | None = None
    as_json: bool = False


def run(options: Options) -> None:
    """Replays as the options say, and shows the results. Raises InvalidArgument, also for a file that cannot
    be read or written."""
    if not options.load > 0:
        raise InvalidArgument(f"load is {options.load}; expected more than 0")
    try:
        _run(options)
    except OSError as error:
        raise InvalidArgument(str(error)) from error


def _run(options: Options) -> None:
    names = options.allocators or list(ALLOCATORS)
    known = ALLOCATORS | SHARING_PREFIXES
    for name in names:
        if name not in known:
            raise InvalidArgument(f"allocator is {name!r}; expected one of: {'; '.join(known)}")
    settings = settings_of(options)
    trace = read_trace(options.trace, seed=options.seed, session_gap_s=options.session_gap_s)
    trace = trace.at_load(options.load)
    results = replay_all(trace, settings, names)
    if options.plot is not None:
        plot(results, settings, f"{trace.name}, {settings.model.name}, {settings.gpu.name}", options.plot)
    if options.as_json:
        print(json.dumps(as_json(trace, settings, results)))
        return
    console = Console(width=max(Console().width, 100))
    console.print(_heading(trace, settings), highlight=False)
    console.print(table(results))


def settings_of(options: Options) -> Settings:
    model = find_model(options.model) if options.config is None else read_config(options.config)
    gpu = find_gpu(options.gpu)
    memory = options.gpu_memory
    return Settings(
        model=model,
        gpu=gpu,
        memory_bytes=gpu.memory_bytes if memory is None else parse_bytes(memory, "gpu-memory"),
        max_tokens=options.max_tokens if options.max_tokens is not None else model.max_tokens,
        call_times=gpu.call_times if options.call_times is None else read_call_times(options.call_times),
        max_sequences=options.max_sequences,
        batch_tokens=options.batch_tokens,
        page_bytes=parse_bytes(options.page, "page"),
        layers_per_extent=options.layers_per_extent,
    )


def replay_all(trace: Trace, settings: Settings, allocators: Sequence[str]) -> list[Replayed]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        results = []
        for name in allocators:
            task = bar.add_task(name, total=len(trace.requests))
            results.append(replay(trace, settings, name, partial(_show, bar, task)))
    return results


def _show(bar: Progress, task: TaskID, over: int) -> None:
    bar.update(task, completed=over)


def _heading(trace: Trace, settings: Settings) -> str:
    note = f" ({trace.note})" if trace.note else ""
    return (
        f"{trace.name}: {len(trace.requests):,} requests in {trace.duration_s:,.0f} s{note}\n"
        f"{settings.model.name} on {settings.gpu.name}, {format_bytes(settings.memory_bytes)}: "
        f"{format_bytes(settings.kv_bytes)} for K and V of at most {settings.max_sequences} sequences of "
        f"{settings.max_tokens:,} tokens\n"
    )


def as_json(trace: Trace, settings: Settings, results: Sequence[Replayed]) -> dict[str, object]:
    return {
        "trace": {"name": trace.name, "requests": len(trace.requests), "note": trace.note},
        "model": settings.model.name,
        "gpu": settings.gpu.name,
        "call_times": settings.call_times.source,
        "memory_bytes": settings.memory_bytes,
        "kv_bytes": settings.kv_bytes,
        "max_tokens": settings.max_tokens,
        "max_sequences": settings.max_sequences,
        "batch_tokens": settings.batch_tokens,
        "page_bytes": settings.page_bytes,
        "layers_of_extents": settings.layers,
        "allocators": {result.allocator: result.metrics for result in results},
    }
