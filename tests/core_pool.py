"""Driving a vmm._core.Pool that was made without a pager thread."""

import time


def settle(pool):
    """Polls until nothing is due, and nothing waits for a fence or for the next attempt at what was refused."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if pool.poll():
            continue
        if not pool.stats()["retirements_waiting"]:
            return
        time.sleep(0.0005)
    raise AssertionError("the pager does not come to rest")
