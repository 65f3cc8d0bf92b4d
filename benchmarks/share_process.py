"""A process in a share, for the benchmark and the tests: takes orders on stdin, answers on stdout.

``python -m vmm.benchmarks.share_process SHARE BUDGET [MINIMUM [PRIORITY]]``, sizes in bytes.
"""

from __future__ import annotations

import subprocess
import sys
import time

import vmm

PAGE_BYTES = 2**16
EXTENT_BYTES = 2**30
POLL_S = 0.0005


class Holder:
    """Keeps pages of one reservation, from its start."""

    def __init__(self, share: str, budget: str, minimum: str = "0", priority: str = "0") -> None:
        self.pool = vmm.Pool(
            int(budget), share=share, minimum=int(minimum), priority=int(priority), idle_seconds=None
        )
        self.lease = self.pool._core.reserve(page_bytes=PAGE_BYTES, extent_bytes=EXTENT_BYTES)

    def map(self, size: str, patience: str = "30") -> float:
        """Maps and keeps so many bytes; answers the seconds until it had them, or -1."""
        start = time.monotonic()
        while True:
            try:
                self.lease.map([(0, int(size) // PAGE_BYTES)])
                return time.monotonic() - start
            except vmm.OutOfPages:
                if time.monotonic() - start >= float(patience):
                    return -1.0
                time.sleep(POLL_S)

    def unkeep(self) -> int:
        """Nobody needs any of it from here on, and it stays mapped."""
        self.lease.unkeep([(0, EXTENT_BYTES // PAGE_BYTES)])
        return 0

    def trim(self) -> int:
        return self.pool.trim()

    def await_pressure(self, seconds: str) -> int:
        return self.pool.await_pressure(float(seconds))

    def created(self) -> int:
        return self.pool.stats().created_bytes

    def end(self) -> int:
        del self.lease
        self.pool.close()
        return 0


class Process:
    """Such a process, seen from outside."""

    def __init__(self, share: str, *sizes: int) -> None:
        command = [sys.executable, "-m", __name__, share, *map(str, sizes)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def tell(self, *order: object) -> None:
        assert self.popen.stdin is not None
        print(*order, file=self.popen.stdin, flush=True)

    def _answer(self) -> float:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: {self.popen.wait()}")
        return float(line)

    def ask(self, *order: object) -> float:
        self.tell(*order)
        return self._answer()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()


def main() -> None:
    holder = Holder(*sys.argv[1:])
    print(0, flush=True)
    for line in sys.stdin:
        order, *arguments = line.split()
        print(getattr(holder, order)(*arguments), flush=True)


if __name__ == "__main__":
    main()
