"""VMM_TEST_DRIVER=cuda runs the suites of pools, tensors and caches over the CUDA driver, on the stand-in."""

import gc
import inspect
import sys
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for child.py

import cuda_standin
from cuda_standin import ON_CUDA

import vmm

settings.register_profile("vmm", deadline=None)  # no test asserts a time
settings.load_profile("vmm")

collect_ignore = ["vllm"]  # they run in vLLM's environment: tests/vllm/run

if ON_CUDA:
    import vmm.testing

    cuda_standin.configured(granularity=4096, capacity=2**33)
    cuda_standin.shown_as_cpu()

    def _skip(pool):
        pytest.skip("the kernel's account is one of host memory")

    vmm.testing.kernel_account = _skip


def pytest_configure(config):
    """What the stand-in says before it ends the process would be lost with pytest's captured output."""
    if ON_CUDA:
        cuda_standin.loaded().set(report_fd=config.stash.get(fault_handler_stderr_fd_key, 2))


def pytest_collection_modifyitems(items):
    """The stand-in's own tests go first, while nobody else has anything in it. Child processes, and what is
    the host driver's own, are not for the CUDA driver."""
    items.sort(key=lambda item: item.path.parent.name != "standin")
    for item in items if ON_CUDA else ():
        source = inspect.getsource(getattr(item, "function", item.module))
        if "host_only" in item.keywords or "run_child(" in source:
            item.add_marker(pytest.mark.skip(reason="of the host driver"))


def pytest_collection_finish():
    """What is there now, modules most of all, stays. Many tests collect garbage, which took 0.3 s each time
    while it looked at all that, too."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def pool():
    with vmm.Pool("64MiB") as pool:
        yield pool
        pool.check()
