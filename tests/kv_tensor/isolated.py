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


def each(check: Callable[[Any], str], cases: list[Any]) -> list[str]:
    """What ``check`` says of each case: in one forked child, and after a signal in another from there on."""
    said: list[str] = []
    while len(said) < len(cases):
        read, write = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _say_of_each(check, cases[len(said) :], write)
        os.close(write)
        with os.fdopen(read) as pipe:
            said += pipe.read().split("\0")[:-1]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0 and len(said) < len(cases):
            said.append(f"ended by {signal.Signals(-status).name}")
    return said


def _say_of_each(check: Callable[[Any], str], cases: list[Any], write: int) -> None:
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        for case in cases:
            try:
                said = check(case)
            except BaseException:
                said = traceback.format_exc()
            os.write(write, said.encode() + b"\0")
    finally:
        os._exit(0)


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
