"""How many calls to libcuda a step and a page cost, where they are exact: on the stand-in."""

import pytest
from late_kernels import TOKENS, Kernel, make, step

SLOTS, PAGES = 16, 4  # that each grows by: 64 in all


def calls_of(standin, cache, stream, batches):
    """Of the steps, not of the kernels that the engine runs between."""
    calls = 0
    for batch in batches:
        Kernel(standin, stream, batch[0][0], late=0)
        standin.sync_all()
        before = standin.count()
        step(cache, stream, *batch)
        calls += standin.count() - before
    return calls


@pytest.mark.parametrize("gpu_pool", [256], indirect=True)
def test_calls_to_libcuda(standin, gpu_pool, capsys):
    """On the default stream; a step on a named one costs the same. Beside a GPU that keeps up: where it is
    behind, each step asks once more for the events of those before."""
    cache = make(gpu_pool, SLOTS, pages=2 * PAGES)
    sequences = [cache.open(0) for _ in range(SLOTS)]
    step(cache, 0, *((sequence, TOKENS // 2) for sequence in sequences))
    same = [[(sequence, TOKENS // 2) for sequence in sequences]] * 64
    idle = calls_of(standin, cache, 0, same) / len(same)
    growing = [
        [(sequence, TOKENS // 2 + pages * TOKENS) for sequence in sequences] for pages in range(1, PAGES + 1)
    ]
    created = gpu_pool._core.stats()["pages_created"]
    calls = calls_of(standin, cache, 0, growing)  # with what the four steps cost besides
    created = gpu_pool._core.stats()["pages_created"] - created
    assert created >= SLOTS * PAGES
    with capsys.disabled():
        print(f"libcuda calls: {idle:.2f} in a step with nothing due, {calls / created:.2f} per page grown")
    assert 0 < idle <= 3
    assert 0 < calls / created <= 5
    standin.sync_all()
    cache.close()
    gpu_pool._core.end(0)
