"""What the results were made on. Starts no CUDA in this process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PROBE = ROOT / "vmm/doctor/cuda_probe.py"  # isolated, and a process of its own: a broken driver may hang
_PACKAGES = (
    "torch", "transformers", "triton", "cuda-bindings", "pytest", "hypothesis", "pybind11",
    "scikit-build-core", "typer", "rich",
)  # fmt: skip


def cuda_devices(seconds: float = 60) -> tuple[list[dict[str, Any]], str]:
    """The GPUs that libcuda.so.1 has, or none and why."""
    try:
        asked = subprocess.run(
            [sys.executable, "-I", "-S", str(_PROBE), "libcuda.so.1"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"libcuda does not answer within {seconds:g} s"
    said: dict[str, Any] = {}
    for line in asked.stdout.splitlines():
        if line.startswith("{"):
            said.update(json.loads(line))
    if said.get("devices"):
        return said["devices"], ""
    if "load_error" in said:
        return [], said["load_error"]
    if "failed" in said:
        return [], f"{said['failed']}: {said['error']}"
    return [], asked.stderr.strip() or "libcuda has no device"


def description() -> dict[str, Any]:
    """Versions and commit; packages that are not here as None."""
    return {
        "commit": _output("git", "describe", "--always", "--dirty")
        or os.environ.get("VMM_COMMIT")
        or "unknown",
        "driver": _driver(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _driver() -> str | None:
    loaded = Path("/proc/driver/nvidia/version")
    if loaded.exists():
        return loaded.read_text().splitlines()[0]
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip() or None
