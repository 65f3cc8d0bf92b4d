"""One process of the GPU script: runs the items of a module in turn and says of each how it ended.

``python -m benchmarks.gpu.worker MODULE [--after NAME | --only NAME] [--one]``. The module has ``items()``:
functions by name. What one returns or, as a generator, yields as (key, value), goes out as a line of JSON on
the file descriptor in VMM_GPU_PIPE the moment it is known, so that a crash or a hang loses nothing before it.
A result that says ``dirty`` ends the process: what follows wants a fresh one.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import inspect
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any
from unittest import SkipTest

PIPE = "VMM_GPU_PIPE"
SECONDS = "VMM_GPU_SECONDS"  # how long the process may take
_PR_SET_PDEATHSIG = 1


def _say(**line: Any) -> None:
    try:
        text = json.dumps(line, default=str)
    except (TypeError, ValueError, RecursionError):  # a key that JSON has not, say
        text = json.dumps(
            {key: value if isinstance(value, str | int) else repr(value) for key, value in line.items()}
        )
    os.write(int(os.environ[PIPE]), text.encode() + b"\n")


def _die_with_the_script() -> None:
    """And leave no core: of a process with CUDA it has gigabytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _chosen(names: list[str], options: argparse.Namespace) -> list[str]:
    if options.only is not None:
        return [options.only]
    first = 0 if options.after is None else names.index(options.after) + 1
    return names[first : first + 1] if options.one else names[first:]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--only")
    parser.add_argument("--after")
    parser.add_argument("--one", action="store_true")
    return parser.parse_args()


def _result_of(name: str, work: Callable[[], Any]) -> Any:
    result = work()
    if not inspect.isgenerator(result):
        return result
    while True:
        try:
            key, value = next(result)
        except StopIteration as end:
            return end.value
        _say(name=name, key=key, value=value)


def _report(name: str, work: Callable[[], Any]) -> bool:
    """Whether this process is still as good as new."""
    _say(name=name, begins=True)
    start = monotonic()
    dirty = False
    try:
        result = _result_of(name, work)
        dirty = isinstance(result, dict) and bool(result.get("dirty"))
        ended: dict[str, Any] = {"status": "ok", "result": result}
    except SkipTest as reason:
        ended = {"status": "skipped", "error": str(reason)}
    except BaseException as error:
        dirty = True
        ended = {
            "status": "error",
            "kind": type(error).__name__,
            "error": f"{type(error).__name__}: {error}",
            "trace": "".join(traceback.format_exception(error)[-6:])[-3000:],
        }
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    finally:
        _say(name=name, seconds=round(monotonic() - start, 3), **ended)
    return not dirty


def main() -> None:
    _die_with_the_script()
    options = _options()
    items = importlib.import_module(options.module).items()
    _say(items=list(items))
    for name in _chosen(list(items), options):
        if not _report(name, items[name]):
            return


if __name__ == "__main__":
    main()
