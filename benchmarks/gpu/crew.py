"""Running a module's items in worker processes, whatever they do: crash, hang, or poison their context."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.worker import PIPE, SECONDS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "gpu"
SITE = BUILD / "site"  # where build.py installs the extension
_TAIL = 1500  # characters of a dead worker's output
_CHUNK = 2**16
_MOST_LINE = 2**24  # bytes
_MOST_LOG_BYTES = 2**22  # of one module
_MOST_VALUES = 2000  # of one item
_MOST_DEAD_STARTS = 3  # processes in a row that begin nothing: the device is gone
UNDER_WAY = "under way"

Item = dict[str, Any]
"""``status``: ok, skipped, error (it raised), died, timed out, cut short by the section's budget, or under
way where the whole script was stopped; with ``result``, ``values`` (yielded), ``error``, ``seconds``."""


@dataclass
class Crew:
    """How to run the items of ``module``: each in at most ``each_s`` seconds, and, where ``separate``, in a
    process of its own. A process may take ``start_s`` to import what it needs: torch, from a cold disk."""

    module: str
    each_s: float
    start_s: float = 90
    only: str | None = None
    separate: bool = False
    built: bool = True  # the extension is in SITE
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, deadline: Deadline, items: dict[str, Item], changed: Callable[[], object] = lambda: None
    ) -> None:
        """Fills ``items`` and calls ``changed`` whenever there is something new in it. Every item of the
        module is in it at the end, whatever happened; only one that never says what it has is "starting"."""
        names: list[str] = []
        last: str | None = None
        dead_starts = 0
        while True:
            arguments = ["--only", self.only] if self.only else ["--one"] * self.separate
            arguments += ["--after", last] if last is not None else []
            coming = self.only or (names[names.index(last) + 1] if last is not None else None)
            told = self._one_process(arguments, coming, items, deadline, changed)
            changed()
            names = told.names or names
            if self.only or not names:
                return
            dead_starts = dead_starts + 1 if told.last is None else 0
            last = told.last or coming or names[0]
            rest = names[names.index(last) + 1 :]
            if rest and not deadline.over and dead_starts < _MOST_DEAD_STARTS:
                continue
            why = "no time was left" if deadline.over else "no process begins an item any more"
            for name in rest:
                items[name] = {"status": "cut short", "error": why, "seconds": 0}
            return

    def _one_process(
        self,
        arguments: list[str],
        coming: str | None,
        items: dict[str, Item],
        deadline: Deadline,
        changed: Callable[[], object],
    ) -> _Told:
        """``coming`` is the item that it should begin with, where that is known."""
        output = _Output(self.module)
        told = _Told(items)
        process, reading, printed = self._start(arguments, deadline)
        ended = "stopped"
        try:
            lines = _Lines(reading, printed, output, deadline.within(self.start_s))
            for line in lines:
                if line is None:
                    ended = "cut short" if deadline.over else "timed out"
                    break
                if told.take(line):
                    lines.limit = deadline.within(self.each_s)
                    changed()
            else:
                ended = "died"
        finally:  # also where this process is told to stop
            os.close(reading)
            code = _end(process, grace_s=min(15, deadline.left) if ended == "died" else 0)
            output.drain(printed)
            output.close()
            shutil.rmtree(_own_folder(), ignore_errors=True)  # what it left there must not fill the disk
        how = f"{ended} (exit {code})" if ended == "died" else ended
        if told.running is not None or told.last is None:
            lost = told.running or coming or next(iter(told.names), "starting")
            items.setdefault(lost, {"values": {}}).update(status=ended, error=how, said=output.tail())
        elif ended == "timed out" or (ended == "died" and code != 0):
            items[f"exit after {told.last}"] = {"status": ended, "error": how, "said": output.tail()}
        return told

    def _start(self, arguments: list[str], deadline: Deadline) -> tuple[subprocess.Popen, int, int]:
        """The process, what it tells, and what it prints."""
        environment = self._environment()
        (reading, writing), (printed, printing) = os.pipe(), os.pipe()
        os.set_blocking(printed, False)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.gpu.worker", self.module, *arguments],
                cwd=_own_folder(),  # not where a vmm without its extension lies
                env={**environment, PIPE: str(writing), SECONDS: f"{deadline.left:.0f}"},
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=printing,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children end with it
            )
        finally:
            os.close(writing)
            os.close(printing)
        return process, reading, printed

    def _environment(self) -> dict[str, str]:
        """Paths, and caches that stay inside the repository."""
        caches = {
            "TMPDIR": _own_folder(),
            "TRITON_CACHE_DIR": BUILD / "triton",
            "TORCHINDUCTOR_CACHE_DIR": BUILD / "inductor",
            "CUDA_CACHE_PATH": BUILD / "nv",
            "XDG_CACHE_HOME": BUILD / "cache",
        }
        caches["TMPDIR"].mkdir(parents=True, exist_ok=True)
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # there may be no network: do not wait for it
        first = [str(SITE)] if self.built else []
        paths = [*first, str(ROOT), str(ROOT / "tests/standin"), str(ROOT / "tests/gpu")]
        given = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            **{name: str(path) for name, path in caches.items()},
            "PYTHONPATH": os.pathsep.join([*paths, given] if given else paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **dict.fromkeys(offline, "1"),
            **self.environment,
        }


def _own_folder() -> Path:
    """Of the workers of this process: another script may run in the same checkout."""
    return BUILD / "tmp" / str(os.getpid())


class _Output:
    """What the workers of a module print: the end of it, and as much in a file as fills no disk."""

    def __init__(self, module: str) -> None:
        self._kept = b""
        self._file: BinaryIO | None = None
        with suppress(OSError):
            folder = BUILD / "log"
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{module.rpartition('.')[2]}.txt").open("ab")

    def take(self, chunk: bytes) -> None:
        self._kept = (self._kept + chunk)[-2 * _TAIL :]
        with suppress(OSError, ValueError):
            if self._file is not None and self._file.tell() < _MOST_LOG_BYTES:
                self._file.write(chunk)

    def drain(self, printed: int) -> None:
        """What is there, without waiting for more; then nothing is read any longer."""
        with suppress(BlockingIOError):
            for _ in range(_MOST_LOG_BYTES // _CHUNK):
                if not (chunk := os.read(printed, _CHUNK)):
                    break
                self.take(chunk)
        os.close(printed)

    def close(self) -> None:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.close()

    def tail(self) -> str:
        return self._kept.decode(errors="replace")[-_TAIL:]


class _Told:
    """What one worker has said so far."""

    def __init__(self, items: dict[str, Item]) -> None:
        self._items = items
        self.names: list[str] = []
        self.running: str | None = None
        self.last: str | None = None

    def take(self, line: Any) -> bool:
        """Whether the next item's time begins. What is no line of a worker's is kept as ``garbage``."""
        if isinstance(line, dict) and isinstance(line.get("items"), list):
            self.names = [str(name) for name in line["items"]]
            return True
        if not isinstance(line, dict) or line.get("name") not in {*self.names, self.running} - {None}:
            if self.running is not None:
                self._items[self.running].setdefault("garbage", repr(line)[:200])
            return False
        item = self._items.setdefault(line["name"], {"values": {}})
        if "begins" in line:
            self.running = self.last = line["name"]
            item["status"] = UNDER_WAY
        elif "key" in line:
            if len(item["values"]) < _MOST_VALUES:
                item["values"][str(line["key"])] = line.get("value")
            return False
        elif "status" in line:
            item.update({key: value for key, value in line.items() if key != "name"})
            self.running = None
        return True


class _Lines:
    """The worker's lines; None when ``limit`` has passed, and an end when the worker has closed the pipe."""

    def __init__(self, reading: int, printed: int, output: _Output, limit: Deadline) -> None:
        self._reading, self._printed, self._output = reading, printed, output
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        rest = b""
        watched = [self._reading, self._printed]
        while not self.limit.over:
            ready, _, _ = select.select(watched, [], [], self.limit.left)
            if self._printed in ready and not self._printed_more():
                watched.remove(self._printed)
            if self._reading not in ready:
                continue
            chunk = os.read(self._reading, _CHUNK)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            rest = rest[-_MOST_LINE:]
            for line in whole:
                yield _parsed(line)
        yield None

    def _printed_more(self) -> bool:
        chunk = os.read(self._printed, _CHUNK)
        self._output.take(chunk)
        return bool(chunk)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace")


def _end(process: subprocess.Popen, grace_s: float) -> int | None:
    """Its exit code, after ``grace_s`` by force, and of what it started nothing is left; None for one that is
    stuck inside the kernel."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_s)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    return process.poll()
