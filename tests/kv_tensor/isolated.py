"""Properties whose examples run in processes of their own, so that a signal is a failure that can be shrunk.

A property runs in a fresh interpreter (``run``), which forks for each example: torch must not have started
threads before a fork."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run(module: str, function: str, argument: object, timeout: float = 1500) -> None:
    """Calls ``module.function(argument)`` in a child process and shows what it says if it fails."""
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{str(HERE)!r}]
import torch
torch.set_num_threads(1)
import {module}
{module}.{function}({argument})
"""
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert child.returncode == 0, (
        f"returncode {child.returncode}\n{child.stdout[-8000:]}{child.stderr[-12000:]}"
    )


def example(check: Callable[[Any], None], case: Any) -> None:
    """``check(case)`` in a forked child. Raises AssertionError with what went wrong there."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _answer(check, case, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        told += f"ended by {signal.Signals(-status).name}"
    assert status == 0, told


def _answer(check: Callable[[Any], None], case: Any, write: int) -> None:
    os.dup2(write, 2)  # faulthandler writes there
    status = 1
    try:
        check(case)
        status = 0
    except BaseException:
        os.write(write, traceback.format_exc().encode())
    finally:
        os._exit(status)
