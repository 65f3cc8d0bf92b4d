"""Two engines of one share, both busy, one of them with its worker in a process of its own; then one is
killed in the middle of its work, while a child that it has forked lives on."""

import contextlib
import os
import signal
import threading
import time

import engine

import vmm

WORK = ["generate", 0, 48, 100]
TOTAL, MINIMUM = 8 << 20, 3 << 20


class Samples(threading.Thread):
    """What the share's file says, again and again, for as long as the context lasts."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen = []
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(0.005):
            self.seen.append({lease.pid: lease for lease in vmm.leases("both")})

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()


def wait_for(path, child):
    until = time.monotonic() + engine.LIMIT_S
    while not path.exists():
        assert child.poll() is None, engine.finish(child).get("error", "it is over")[-6000:]
        assert time.monotonic() < until, f"no {path.name} after {engine.LIMIT_S} s"
        time.sleep(0.05)


def test_both_work_and_the_survivor_has_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "LIMIT_S", 400)
    [reference] = engine.run({"steps": [WORK]})["tokens"]
    options = engine.connector(budget=str(TOTAL >> 20) + "MiB", share="both", minimum="3MiB", idle="600s")
    files = {name: str(tmp_path / name) for name in ("ready", "full", "first", "second", "killed")}
    first = engine.start(
        {
            "steps": [
                WORK, ["fork"], ["touch", files["full"]], ["wait", files["ready"]], WORK,
                ["touch", files["first"]], *[["generate", 0, 48, 600]] * 100,
            ],
            "connector": options,
        }
    )  # fmt: skip
    second = engine.start(
        {
            "steps": [
                ["touch", files["ready"]], ["wait", files["full"]], WORK, ["touch", files["second"]],
                ["wait", files["killed"]], WORK,
            ],
            "connector": options,
        },
        processes=True,
    )  # fmt: skip
    try:
        with Samples() as samples:
            for name, child in (("full", first), ("second", second), ("first", first)):
                wait_for(tmp_path / name, child)
            assert first.poll() is None
            os.kill(first.pid, signal.SIGKILL)  # and not what it has forked
            first.wait()
            killed = len(samples.seen)
            (tmp_path / "killed").touch()
            ours = engine.finish(second)
    finally:
        for child in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    assert "error" not in ours, ours["error"][-6000:]
    assert ours["tokens"] == [reference] * 2, ours["log"][-3000:]
    together = [seen for seen in samples.seen if len(seen) == 2]
    assert together, "they were never in the share at once"
    for seen in samples.seen:
        assert sum(lease.grant for lease in seen.values()) <= TOTAL, seen
    assert any(all(lease.grant > MINIMUM // 2 for lease in seen.values()) for seen in together)
    left = [seen for seen in samples.seen[killed:] if seen and first.pid not in seen]
    assert left, "the lease outlived its process, perhaps in the one that was forked"
    most = max(lease.grant for seen in left for lease in seen.values())
    assert most > TOTAL - MINIMUM, "it could have had no more while the first lived"
