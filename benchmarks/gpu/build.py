"""Items of the GPU script: the extension, built with this Python into build/gpu/site, from what is here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.crew import BUILD, ROOT, SITE

# What --no-index cannot fetch. cmake and ninja may come from packages or from the system.
_NEEDED = {"pip": "pip", "scikit_build_core": "scikit-build-core", "pybind11": "pybind11"}


def items() -> dict[str, Callable[[], Any]]:
    return {"extension": extension}


def extension() -> dict[str, Any]:
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RuntimeError(f"to build the extension this Python lacks: {', '.join(missing)}")
    command = [
        sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation",
        "--no-cache-dir", "--verbose", "--disable-pip-version-check", "--upgrade", "--target", str(SITE),
        f"--config-settings=build-dir={BUILD / 'cmake'}", str(ROOT),
    ]  # fmt: skip
    parallel = {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0)))}
    code, said = _shown(command, {**os.environ, **parallel})
    if code != 0:
        raise RuntimeError(f"pip ended with {code}:\n{said}")
    check = "import vmm; vmm.Pool('4MiB').check(); print(vmm.__file__)"
    imported = subprocess.run(
        [sys.executable, "-P", "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    if imported.stdout.startswith(str(ROOT / "vmm")):
        raise RuntimeError("this Python's editable vmm hides the one built here: uninstall it, or --no-build")
    if imported.returncode != 0 or not imported.stdout.startswith(str(SITE)):
        raise RuntimeError(f"built, but not usable: {imported.stdout}{imported.stderr[-2000:]}")
    return {"imported_from": imported.stdout.strip()}


def _shown(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Its exit code, and the end of what it printed; all is printed here as it comes, so that a build that is
    cut short says how far it was."""
    said = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as built:
        for line in built.stdout or ():
            print(line, end="", flush=True)
            said = (said + line)[-3000:]
    return built.returncode, said
