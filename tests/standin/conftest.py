"""The stand-in, built on demand and loaded once into the test process."""

import cuda_standin
import pytest


@pytest.fixture(scope="session")
def standin_path() -> str:
    return cuda_standin.library()


@pytest.fixture(scope="session")
def loaded():
    return cuda_standin.loaded()


@pytest.fixture
def standin(loaded):
    """The stand-in, fresh; a test that leaves something behind fails."""
    settings = {
        "capacity": 1 << 30,
        "granularity": 2 << 20,
        "version": 13000,
        "low_alignment": 0,
        "others": 0,
    }
    loaded.set(**settings, devices=2, undefined_counts=0, queue_limit=1024, missing_result=500)
    loaded.fail_at(0)
    loaded.fail_only("")
    loaded.reset(1)
    yield loaded
    loaded.poison(0)
    loaded.fail_at(0)
    loaded.set(**settings, undefined_counts=0)
    left = loaded.live()
    loaded.abandon()
    loaded.reset(1)  # what was reported on purpose is not for the suites that follow
    assert not any(left.values()), left


@pytest.fixture
def cuda(standin):
    from cuda_calls import Cuda

    return Cuda(standin.library)


@pytest.fixture
def bench(cuda):
    from conformance import Bench

    made = Bench(cuda)
    yield made
    made.close()


@pytest.fixture
def memory(bench):
    """Four accessible pages."""
    base = bench.reserve(4)
    for at in range(4):
        bench.map(base + at * bench.page, bench.create())
    bench.allow(base, 4)
    return base
