"""Driving a vmm._core.Pool that was made without a pager thread."""


def settle(pool):
    """Polls until nothing is due and nothing waits for a fence."""
    for _ in range(100):
        if not pool.poll() and not pool.stats()["retirements_waiting"]:
            return
    raise AssertionError("the pager does not come to rest")
