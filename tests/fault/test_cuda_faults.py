"""Every call to libcuda that our driver makes, made to fail in turn, on the stand-in.

As tests/fault/test_faults.py, a layer below: here the CUDA driver's own undoing is put to the test, and each
(function, place in our code) that a scenario reaches must have been failed.
"""

import ctypes
import gc
import re
from pathlib import Path

import cuda_standin
import pytest
import tally
from core_pool import settle
from cuda_calls import GLOBAL, OUT_OF_MEMORY, Cuda
from cuda_scenarios import PAGE, SCENARIOS, UNKNOWN, open_pool

from vmm import DriverError, Error, _core

API = Path(__file__).parents[2] / "csrc" / "driver" / "cuda_api.h"
KINDS = ("mappings", "reservations", "handles", "events", "streams")
CANNOT_FAIL = {"cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"}  # but for wrong arguments


def _context_and_capture_mode(cuda):
    """What our calls must leave to this thread as it was. Its capture mode is GLOBAL from now on."""
    mode = ctypes.c_int(GLOBAL)
    cuda.do("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    return cuda.get_number("cuCtxGetCurrent"), mode.value


def _sites(standin):
    return {(site["function"], site["site"]): site for site in standin.sites() if "_core" in site["site"]}


@pytest.fixture(scope="module")
def sites_before(request):
    """Of our code, reached by other tests."""
    found = cuda_standin.loaded()
    found.set(site_depth=1)
    # Whoever releases the context last must not be blamed for what a failed undoing leaves behind in it.
    cuda = Cuda(found.library)
    cuda.do("cuInit", 0)
    cuda.get_number("cuDevicePrimaryCtxRetain", 0)
    yield _sites(found)
    if not request.session.testsfailed:  # a failed test is shown with all that it held
        cuda.do("cuDevicePrimaryCtxRelease", 0)


@pytest.fixture
def standin(sites_before):
    found = cuda_standin.configured(granularity=PAGE)
    found.fail_only("_core")
    found.set(site_depth=1)
    yield found
    found.set(site_depth=2)
    found.fail_at(0)
    found.fail_only("")


def _give_back(cuda, left):
    """What a driver had to leave when it ended."""
    for thing in left["mappings"]:
        cuda.do("cuMemUnmap", thing["start"], thing["size"])
    for thing in left["reservations"]:
        cuda.do("cuMemAddressFree", thing["start"], thing["size"])
    for thing in left["handles"]:
        for _ in range(thing["references"]):  # none where only the mapping was left
            cuda.do("cuMemRelease", thing["id"])
    for thing in left["events"]:
        cuda.do("cuEventDestroy", thing["id"])
    for thing in left["streams"]:
        cuda.do("cuStreamDestroy", thing["id"])
    for _ in range(left["contexts"]):
        cuda.do("cuDevicePrimaryCtxRelease", 0)


def _left(before, now):
    """What is live now and was not before."""
    left = {kind: [thing for thing in now[kind] if thing not in before[kind]] for kind in KINDS}
    return left | {"contexts": now["contexts"]["0"] - before["contexts"]["0"]}


def _attempt(standin, scenario, n, code, times):
    """Acts with the n-th call failing. The pool, the state, and how many calls failed."""
    cuda = Cuda(standin.library)
    pool = open_pool()
    state = scenario.prepare(pool, standin)
    before = _context_and_capture_mode(cuda)
    standin.failed()
    standin.fail_at(n, code, times)
    try:
        scenario.act(pool, state)
    except Error as error:
        assert any(word in str(error).lower() for word in ("cuda", "pages", "copy of a shared page"))
    failures = standin.failed()
    standin.fail_at(0)
    after = _context_and_capture_mode(cuda)
    if times == 1:
        assert after == before, f"{standin.last_failed} left its mark on this thread"
    cuda.do("cuCtxSetCurrent", None)
    return pool, state, failures


@pytest.mark.parametrize("times", [1, 2, 4], ids=["once", "twice", "four-times"])  # the undoing fails, too
@pytest.mark.parametrize("code", [UNKNOWN, OUT_OF_MEMORY], ids=["error", "out-of-memory"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_failure_is_survived(standin, name, code, times):
    gc.collect()
    scenario = SCENARIOS[name]
    before = standin.live()
    for n in range(1, 500):
        pool, state, failures = _attempt(standin, scenario, n, code, times)
        pool.check()
        pool.end()  # an epoch whose end failed is still open
        settle(pool)
        scenario.act(pool, state)  # the next attempt succeeds
        del state
        standin.sync_all()
        settle(pool)
        pool.check()
        for _ in range(20):  # what the last poll has recorded
            pool.poll()
        if in_use := pool.events_in_use():
            tally.leaked((standin.last_failed, f"{in_use} events in use"))
        tally.end(pool)
        del pool
        left = _left(before, standin.live())
        if any(left.values()) and (times == 1 or not scenario.ends_drivers):
            tally.leaked((standin.last_failed, left))
        _give_back(Cuda(standin.library), left)
        if not failures:
            assert n > 1
            return
        tally.injected["cuda"] += failures
    raise AssertionError("the scenario does not end")


def test_an_error_that_cuda_has_no_words_for(standin):
    standin.fail_at(1, 31337)
    with pytest.raises(DriverError, match=r"cuInit\(0\) .*an unknown error \(31337\): no description"):
        _core.CudaDriver(0)


def test_every_call_site_was_failed(standin, sites_before):
    """Runs last in this file: what the scenarios reached of our code."""
    if not tally.injected["cuda"]:
        pytest.skip("run together with the scenarios")
    unreached, failed = [], set()
    for key, site in _sites(standin).items():
        before = sites_before.get(key, {"reached": 0, "failed": 0})
        if site["failed"] > before["failed"]:
            failed.add(site["function"])
        elif site["reached"] > before["reached"]:
            unreached.append(" at ".join(key))
    functions = set(re.findall(r"CALL\((\w+), \d", API.read_text()))
    assert functions > CANNOT_FAIL
    unreached += sorted(functions - CANNOT_FAIL - failed)
    tally.unreached["cuda"] = unreached
    assert not unreached
