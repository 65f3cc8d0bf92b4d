"""Properties whose examples run in child processes, so that a signal is a failure that can be shrunk.

A property runs in a child of a process of its own (``run``): torch must not have started threads before a
fork. To import torch costs seconds, so that process is one for all; a fork costs 50 ms, so examples share a
child until one of them ends it."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@cache
def _warm() -> subprocess.Popen[str]:
    """Ends with this process, which holds its input open."""
    command = [sys.executable, "-X", "faulthandler", str(HERE / "warm.py")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(module: str, function: str, argument: object, timeout: float = 1500) -> None:
    """Calls ``module.function(argument)`` in a child process and shows what it says if it fails."""
    server = _warm()
    assert server.stdin
    assert server.stdout
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        server.stdin.write(json.dumps([module, function, str(argument), output.name]) + "\n")
        server.stdin.flush()
        answered = select.select([server.stdout], [], [], timeout)[0]
        status = server.stdout.readline() if answered else "none in time"
        if not status.strip().lstrip("-").isdigit():
            server.kill()
            _warm.cache_clear()
        told = output.read()
        assert status.strip() == "0", f"status {status}\n{told[:4000]}\n…\n{told[-12000:]}"


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


Tried = Callable[[Callable[[Any], None], Any], None]


def search(look: Callable[[Tried, int], None]) -> None:
    """``look(tried, seed)`` calls ``tried(check, case)`` with examples drawn from the seed. They share a
    child; if one fails, all is done again with a child for each, in which it can be shrunk."""
    seed = random.SystemRandom().randrange(2**32)
    try:
        example(lambda tried: look(tried, seed), lambda check, case: check(case))
    except AssertionError as error:
        look(example, seed)
        raise AssertionError(f"seed {seed}, only after others in one process\n{error}") from error


def every(check: Callable[[Any], None], cases: dict[str, Any]) -> None:
    """Raises AssertionError with what went wrong in ``check(case)`` of any of the cases."""
    said = each(lambda case: check(case) or "right", list(cases.values()))
    wrong = [f"{name}\n{text[-900:]}" for name, text in zip(cases, said, strict=True) if text != "right"]
    assert not wrong, "\n".join(wrong)


def each(check: Callable[[Any], str], cases: list[Any]) -> list[str]:
    """What ``check`` says of each case: in one forked child, and where a case ends that, in another from the
    next one on."""
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
        if len(said) < len(cases):
            said.append(f"ended by {signal.Signals(-status).name if status < 0 else f'exit({status})'}")
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
            with os.fdopen(os.dup(write), "w") as pipe:  # all of it, however long
                pipe.write(said.replace("\0", "") + "\0")
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
