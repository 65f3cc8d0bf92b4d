"""How many calls to libcuda a step makes, where they are exact: on the stand-in."""

import pytest
from late_kernels import TOKENS, Kernel, make, step

STEPS = 64


@pytest.mark.parametrize("named", [False, True])
def test_calls_in_a_step_with_nothing_due(standin, gpu_pool, streams, named, capsys):
    stream = streams[0] if named else 0
    cache = make(gpu_pool)
    sequence = cache.open(0, stream=stream)
    step(cache, stream, (sequence, 3 * TOKENS))
    calls = 0
    for _ in range(STEPS):
        Kernel(standin, stream, sequence, late=0)
        standin.sync_all()
        before = standin.count()
        step(cache, stream, (sequence, 3 * TOKENS))
        calls += standin.count() - before
    with capsys.disabled():
        print(f"libcuda calls: {calls / STEPS:.2f} in a step with nothing due")
    assert 0 < calls / STEPS <= 3
    cache.close()
