"""What every benchmark returns, and how it is shown.

A benchmark is a module with ``DEVICES`` (kinds it runs on, the default first), ``run(progress, device) ->
Report`` and, where it needs variables that are set before Python starts, ``ENVIRONMENT``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter

from vmm import _core
from vmm.devices import parsed_device


@dataclass
class Report:
    """``metrics`` are the numbers an issue defines; ``peers`` the versions and times compared with."""

    bench: str
    device: str
    metrics: dict[str, float] = field(default_factory=dict)
    peers: dict[str, float | str] = field(default_factory=dict)
    environment: dict[str, str | int] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def environment(*packages: str) -> dict[str, str | int]:
    """Machine, versions and commit, so that a number can be traced to what made it."""
    found: dict[str, str | int] = {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "commit": _commit(),
    }
    if (loaded := Path("/proc/driver/nvidia/version")).exists():
        found["nvidia_driver"] = loaded.read_text().splitlines()[0]
    for package in ("kvmm", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: str) -> str:
    """``cpu``, or what CUDA calls the GPU. The tests' stand-in says that it is one."""
    if device == "cpu":
        return "cpu"
    return _core.cuda_name(ordinal(device))


def ordinal(device: str) -> int:
    """1 of ``cuda:1``, 0 of ``cuda``. Raises InvalidArgument for what is no device."""
    return parsed_device(device)[1]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VMM_COMMIT", "unknown")


def time_once(work: Callable[[], object]) -> float:
    """Seconds of wall time."""
    start = perf_counter()
    work()
    return perf_counter() - start


def interleaved(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each arm, one run of each per round, so that a noisy minute hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, work in arms.items():
            times[name].append(time_once(work))
    return {name: statistics.median(values) for name, values in times.items()}


def milliseconds(seconds: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}_{suffix}_ms": 1e3 * value for name, value in seconds.items()}


def rounded(numbers: Iterable[tuple[str, float]], digits: int = 4) -> dict[str, float]:
    return {name: float(f"{value:.{digits}g}") for name, value in numbers}
