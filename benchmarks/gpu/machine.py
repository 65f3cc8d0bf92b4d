"""What the results were made on. Starts no CUDA in this process."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.crew import ROOT

_PROBE = ROOT / "vmm/doctor/cuda_probe.py"  # isolated, and a process of its own: a broken driver may hang
_PACKAGES = (
    "torch", "transformers", "triton", "cuda-bindings", "pytest", "hypothesis", "pybind11",
    "scikit-build-core", "cmake", "ninja", "numpy", "nvidia-cudnn-cu13", "typer", "rich",
)  # fmt: skip
_ASKED = "name,driver_version,memory.total,memory.free,power.limit,clocks.sm,clocks.mem,temperature.gpu"


def cuda_devices(seconds: float = 60) -> tuple[list[dict[str, Any]], str]:
    """The GPUs that libcuda.so.1 has, or none and why."""
    asked = bounded([sys.executable, "-I", "-S", str(_PROBE), "libcuda.so.1"], seconds)
    if asked is None:
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
    return [], asked.stderr.strip()[-300:] or "libcuda has no device"


def description() -> dict[str, Any]:
    """Versions and commit; packages that are not here as None. ``sources`` is a digest of what was run, by
    ``sources`` below: a lent machine may have the files and no git."""
    return {
        "commit": _output("git", "-c", "safe.directory=*", "describe", "--always", "--dirty")
        or os.environ.get("VMM_COMMIT")
        or "unknown",
        "sources": sources(),
        "driver": _driver(),
        "gpu": _output("nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"),
        "nvcc": (_output("nvcc", "--version") or "").rpartition("\n")[2] or None,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def sources() -> str:
    """The same in any checkout of one commit."""
    digest = hashlib.sha256()
    for folder in ("csrc", "vmm", "integrations", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".sh") and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    ran = bounded(list(command), 10)
    return (ran.stdout.strip() or None) if ran is not None and ran.returncode == 0 else None


def bounded(command: list[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[str] | None:
    """None where it does not end, or there is no such command. One that is stuck inside the kernel is left
    there: subprocess.run would wait for it for ever."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options
            )
            code = process.wait(timeout=seconds)
        except OSError:
            return None
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        out.seek(0)
        err.seek(0)
        said = [each.read().decode(errors="replace") for each in (out, err)]
        return subprocess.CompletedProcess(command, code, *said)
