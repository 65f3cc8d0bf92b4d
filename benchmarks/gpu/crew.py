"""Running a module's items in worker processes, whatever they do: crash, hang, or poison their context."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.worker import PIPE

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "gpu"
SITE = BUILD / "site"  # where build.py installs the extension
_TAIL = 1500  # characters of a dead worker's output

Item = dict[str, Any]
"""``status``: ok, skipped, error (it raised), died, timed out, or cut short by the section's budget; with
``result``, ``values`` (what it yielded), ``error``, ``seconds``."""


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

    def run(self, deadline: Deadline) -> dict[str, Item]:
        items: dict[str, Item] = {}
        arguments = ["--only", self.only] if self.only else ["--one"] * self.separate
        while True:
            names, last = self._one_process(arguments, items, deadline)
            if self.only or last is None or last == names[-1]:
                return items
            if deadline.over:
                for name in names[names.index(last) + 1 :]:
                    items[name] = {"status": "cut short", "error": "no time was left", "seconds": 0}
                return items
            arguments = ["--after", last, *["--one"] * self.separate]

    def _one_process(
        self, arguments: list[str], items: dict[str, Item], deadline: Deadline
    ) -> tuple[list[str], str | None]:
        """All that the module has, and the last item that was begun."""
        log = _Log(self.module)
        process, reading = self._start(arguments, log)
        told = _Told(items)
        ended = "died"
        lines = _Lines(reading, deadline.within(self.start_s))
        for line in lines:
            if line is None:
                ended = "cut short" if deadline.over else "timed out"
                break
            if told.take(line):
                lines.limit = deadline.within(self.each_s)
        os.close(reading)
        code = _end(process, grace_s=15 if ended == "died" else 0)
        if told.running is not None or not told.names:
            how = f"{ended} (exit {code})" if ended == "died" else ended
            lost = told.running or self.only or "starting"
            items.setdefault(lost, {"values": {}}).update(status=ended, error=how, said=log.tail())
        elif ended == "died" and code != 0:
            items[f"exit after {told.last}"] = {"status": "died", "error": f"exit {code}", "said": log.tail()}
        return told.names, told.last

    def _start(self, arguments: list[str], log: _Log) -> tuple[subprocess.Popen, int]:
        reading, writing = os.pipe()
        environment = self._environment()
        with log.path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.gpu.worker", self.module, *arguments],
                cwd=BUILD / "tmp",  # not where a vmm without its extension lies
                env={**environment, PIPE: str(writing)},
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children end with it
            )
        os.close(writing)
        return process, reading

    def _environment(self) -> dict[str, str]:
        """Paths, and caches that stay inside the repository."""
        caches = {
            "TMPDIR": BUILD / "tmp",
            "TRITON_CACHE_DIR": BUILD / "triton",
            "TORCHINDUCTOR_CACHE_DIR": BUILD / "inductor",
            "CUDA_CACHE_PATH": BUILD / "nv",
        }
        caches["TMPDIR"].mkdir(parents=True, exist_ok=True)
        first = [str(SITE)] if self.built else []
        paths = [*first, str(ROOT), str(ROOT / "tests/standin"), str(ROOT / "tests/gpu")]
        given = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            **{name: str(path) for name, path in caches.items()},
            "PYTHONPATH": os.pathsep.join([*paths, given] if given else paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **self.environment,
        }


class _Log:
    """What the workers of a module print."""

    def __init__(self, module: str) -> None:
        folder = BUILD / "log"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{module.rpartition('.')[2]}.txt"
        self._start = self.path.stat().st_size if self.path.exists() else 0

    def tail(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")[-_TAIL:]


class _Told:
    """What one worker has said so far."""

    def __init__(self, items: dict[str, Item]) -> None:
        self._items = items
        self.names: list[str] = []
        self.running: str | None = None
        self.last: str | None = None

    def take(self, line: dict[str, Any]) -> bool:
        """Whether the next item's time begins."""
        if "items" in line:
            self.names = line["items"]
            return True
        item = self._items.setdefault(line["name"], {"values": {}})
        if "begins" in line:
            self.running = self.last = line["name"]
        elif "key" in line:
            item["values"][line["key"]] = line["value"]
            return False
        else:
            item.update({key: value for key, value in line.items() if key != "name"})
            self.running = None
        return True


class _Lines:
    """The worker's lines; None when ``limit`` has passed, and an end when the worker has closed the pipe."""

    def __init__(self, reading: int, limit: Deadline) -> None:
        self._reading = reading
        self.limit = limit

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        rest = b""
        while True:
            ready, _, _ = select.select([self._reading], [], [], self.limit.left)
            if not ready:
                yield None
                return
            chunk = os.read(self._reading, 2**16)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield json.loads(line)


def _end(process: subprocess.Popen, grace_s: float) -> int | None:
    """Its exit code, after ``grace_s`` by force; None for one that is stuck inside the kernel."""
    try:
        return process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(timeout=5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        return process.poll()
