"""What is refused of CUDA's devices, page sizes, streams and contexts: a clear exception, and afterwards
everything works. On the stand-in."""

import contextlib
import ctypes
from types import SimpleNamespace

import cuda_standin
import pytest
import torch
from core_pool import settle
from cuda_calls import GLOBAL, NON_BLOCKING, SUCCESS

import vmm
from child import run_child
from vmm import DriverError, InvalidArgument, KVTensor, _core

PAGE = 2**21
NO_DEVICE = 100


@pytest.fixture
def standin():
    found = cuda_standin.configured(granularity=PAGE)
    yield found
    found.set(devices=2)


@pytest.fixture
def cuda(standin):
    with cuda_standin.own_calls() as made:
        yield made


@pytest.fixture
def core(cuda):
    """A pool with a mapped lease: whatever is refused leaves both as they were."""
    pool = _core.Pool(
        16 * PAGE, arena_bytes=1 << 30, pager_thread=False, cuda_device=0, cuda_host_accessible=True
    )
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 2)])
    before = pool.stats()
    made = SimpleNamespace(pool=pool, lease=lease)
    yield made
    assert pool.stats() == before
    pool.check()
    lease.retire([(0, 2)])
    settle(pool)
    lease.map([(0, 4)])  # nobody holds anything back for good
    pool.check()
    del lease, made.lease
    pool.close()
    assert pool.stats()["created_bytes"] == 0


@pytest.fixture
def tensor(core, monkeypatch):
    """A KVTensor of a pool on device 0 that torch takes for the CPU's."""
    cuda_standin.shown_as_cpu(monkeypatch.setattr)
    with vmm.Pool("32MiB", lookahead_pages=0) as pool:
        made = KVTensor(1, 2048, 1024, pool=pool)  # four pages
        made.append(torch.ones(1, 600, 1024))
        yield made
        assert made.length == 600
        assert made[0, :600].eq(1).all()
        made.append(torch.ones(1, 100, 1024))
        made.close()
        pool.check()


@pytest.fixture
def foreign(cuda):
    """A stream of device 1."""
    other = cuda.get_number("cuDevicePrimaryCtxRetain", 1)
    cuda.do("cuCtxPushCurrent", other)
    stream = cuda.get_number("cuStreamCreate", NON_BLOCKING)
    cuda.do("cuCtxPopCurrent", ctypes.byref(ctypes.c_uint64()))
    yield stream
    cuda.do("cuStreamDestroy", stream)
    cuda.do("cuDevicePrimaryCtxRelease", 1)


@contextlib.contextmanager
def captured(cuda, flags):
    """A stream of device 0 that is being captured; in the end nobody has broken the capture."""
    stream, graph = cuda.get_number("cuStreamCreate", flags), ctypes.c_void_p()
    cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    try:
        yield stream
    finally:
        result = cuda.cuStreamEndCapture(stream, ctypes.byref(graph))
        cuda.do("cuStreamDestroy", stream)
    assert result == SUCCESS
    cuda.do("cuGraphDestroy", graph)


CORE_CALLS = {
    "mark": lambda core, stream: core.pool.mark(stream),
    "step": lambda core, stream: core.pool.step(stream),
    "end": lambda core, stream: core.pool.end(stream),
    "copy": lambda core, stream: core.pool.copy(core.lease.address, core.lease.address + PAGE, PAGE, stream),
    "synchronize": lambda core, stream: core.pool.synchronize(stream),
}
RELEASES = {
    "release": lambda t, stream: t.release(0, 600, stream=stream),
    "truncate": lambda t, stream: t.truncate(0, stream=stream),
    "close": lambda t, stream: t.close(stream=stream),
}


@pytest.mark.parametrize("name", [*CORE_CALLS, "watch"])
def test_a_stream_of_another_device(core, foreign, name):
    calls = CORE_CALLS | {"watch": lambda core, stream: core.pool.watch(stream)}
    with pytest.raises(InvalidArgument, match=r"stream: of another device than cuda:0"):
        calls[name](core, foreign)


def test_a_stream_that_somebody_else_made_is_not_destroyed(core, cuda, foreign):
    with captured(cuda, NON_BLOCKING) as stream:
        for other in (0, 1, foreign, stream):
            with pytest.raises(InvalidArgument, match="stream: not one that this pool has made"):
                core.pool.destroy_stream(other)


@pytest.mark.parametrize("captures", [False, True])
def test_a_stream_of_ours_that_is_being_captured_is_held(core, cuda, standin, captures):
    """Until the capture ends, which neither a dropped stream nor the pool's end can wait for."""
    pool = _core.Pool(16 * PAGE, pager_thread=False, cuda_device=0, cuda_host_accessible=True)
    stream, graph = pool.create_stream(), ctypes.c_void_p()
    if captures:
        cuda.do("cuStreamBeginCapture", stream, GLOBAL)
        with pytest.raises(InvalidArgument, match=r"stream: .* captured"):
            pool.destroy_stream(stream)
    pool.end_stream(stream)
    with pytest.raises(vmm.Closed, match="stream"):
        pool.synchronize(stream)
    pool.close()
    there = {each["id"] for each in standin.live()["streams"]}
    assert (stream in there) == captures
    if captures:
        cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
        cuda.do("cuGraphDestroy", graph)
        pool.close()
        assert stream not in {each["id"] for each in standin.live()["streams"]}


@pytest.mark.parametrize("name", RELEASES)
def test_a_tensor_s_stream_of_another_device(tensor, foreign, name):
    for stream in (foreign, SimpleNamespace(cuda_stream=foreign)):
        with pytest.raises(InvalidArgument, match=r"stream: of another device than cuda:0"):
            RELEASES[name](tensor, stream)


@pytest.mark.parametrize("name", CORE_CALLS)
def test_a_stream_that_is_being_captured(core, cuda, name):
    with captured(cuda, NON_BLOCKING) as stream, pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        CORE_CALLS[name](core, stream)


@pytest.mark.parametrize("name", ["mark", "step", "end", "synchronize"])
def test_the_default_stream_while_one_that_it_waits_for_is_captured(core, cuda, name):
    with captured(cuda, 0), pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        CORE_CALLS[name](core, 0)


@pytest.mark.parametrize("name", RELEASES)
def test_a_tensor_s_stream_that_is_being_captured(tensor, cuda, name):
    with captured(cuda, NON_BLOCKING) as stream, pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        RELEASES[name](tensor, stream)


def test_a_step_in_an_open_epoch_of_a_stream_that_is_captured_meanwhile(core, cuda):
    """The epoch is still open, and closed later."""
    stream = cuda.get_number("cuStreamCreate", NON_BLOCKING)
    core.pool.step(stream)
    cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    for call in (core.pool.step, core.pool.end):
        with pytest.raises(InvalidArgument, match=r"stream: .* captured"):
            call(stream)
    graph = ctypes.c_void_p()
    cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
    cuda.do("cuGraphDestroy", graph)
    core.pool.end(stream)
    core.pool.synchronize(stream)
    settle(core.pool)
    cuda.do("cuStreamDestroy", stream)


@pytest.mark.host_only
@pytest.mark.parametrize("device", ["cuda:7", "cuda:2"])
def test_a_device_that_is_not_there(standin, device):
    words = rf"device is {device}; this machine has 2 CUDA device\(s\)"
    before = standin.live()
    for make in (
        lambda: vmm.Pool("1MiB", device=device),
        lambda: vmm.Pool(device=torch.device(device)),
        lambda: vmm.configure(budget="1MiB", device=device),
        lambda: vmm.default_pool(device),
        lambda: KVTensor(2, 8, device=device),
        lambda: _core.CudaDriver(int(device[-1])),
    ):
        with pytest.raises(InvalidArgument, match=words):
            make()
    assert standin.live() == before
    with vmm.Pool("4MiB", device="cuda:1") as pool:
        assert pool.device == "cuda:1"


@pytest.mark.host_only
def test_a_machine_without_devices(standin):
    standin.set(devices=0)
    with pytest.raises(DriverError, match=r"cuInit\(0\) .*CUDA_ERROR_NO_DEVICE"):
        vmm.Pool("1MiB", device="cuda")


@pytest.mark.parametrize("page_bytes", [65536, PAGE // 2, 3 * PAGE, PAGE + 1])
def test_pages_that_are_no_multiple_of_the_granularity(core, page_bytes):
    words = rf"page_bytes is {page_bytes}; expected a power of two of at least {PAGE}, .*cuda driver"
    with pytest.raises(InvalidArgument, match=words):
        core.pool.reserve(page_bytes=page_bytes, extent_bytes=12 * page_bytes)


@pytest.mark.parametrize("page_bytes", [65536, PAGE // 2, 3 * PAGE])
def test_a_tensor_with_such_pages(tensor, page_bytes):
    with pytest.raises(InvalidArgument, match=rf"page_bytes is {page_bytes}; expected .* {PAGE}"):
        KVTensor(1, 1024, 1024, pool=tensor._memory.pool, page_bytes=page_bytes)


@pytest.mark.parametrize("size", [65536, PAGE + 1])
def test_a_driver_s_pages_and_reservations(cuda, size):
    driver = _core.CheckedDriver(_core.CudaDriver(0, host_accessible=True))
    with pytest.raises(InvalidArgument, match="page_bytes"):
        driver.create(size, 0)
    for arguments in ((size, PAGE), (PAGE, size)):
        with pytest.raises(InvalidArgument, match=r"size|alignment"):
            driver.reserve(*arguments)
    driver.release(driver.create(PAGE, 0))


def in_a_child(code):
    """Over the stand-in, in a process of its own; `t` is a KVTensor of `pool`."""
    result = run_child(f"""
        import contextlib, ctypes, os, sys
        standin = ctypes.CDLL({cuda_standin.library()!r})
        standin.standin_set(b"granularity", ctypes.c_int64({PAGE}))
        import torch, vmm, vmm.devices
        vmm.devices.parsed_device = lambda device: ("cpu", 0)
        vmm.devices.cuda_host_accessible = True
        pool = vmm.Pool("32MiB")
        t = vmm.KVTensor(1, 4096, 1024, pool=pool)
        t.append(torch.ones(1, 600, 1024))
        stream = pool._core.create_stream()

        def told(use, kind):
            try:
                use()
            except kind as error:
                print(type(error).__name__, error)
            else:
                print("accepted")

        DRIVEN = [
            lambda: t.reserve(4096), lambda: t.release(0, 1, stream=stream), lambda: vmm.Stream(pool),
            lambda: pool._core.mark(stream), lambda: pool._core.step(stream),
            lambda: pool._core.watch(stream), lambda: pool._core.synchronize(stream),
        ]
        TABLES = [
            lambda: t.append(torch.ones(1, 1, 1024)), lambda: pool.stats(), lambda: pool.trim(),
            lambda: pool._core.reserve(page_bytes={PAGE}, extent_bytes={PAGE}),
        ]
        {code}
    """)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_forked_child():
    """It is told so, also where it would make a pool of its own: CUDA cannot be used there at all."""
    lines = in_a_child("""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for use in DRIVEN + TABLES:
                told(use, vmm.Forked)
            told(lambda: vmm.Pool("4MiB"), vmm.Forked)
            repr(t), repr(pool)
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        t.append(torch.ones(1, 100, 1024))
        assert t[0, :700].eq(1).all()
        t.close(stream=stream)
        pool.check()
        pool._core.destroy_stream(stream)
        print("the parent goes on")
    """)
    assert lines.pop() == "the parent goes on"
    assert len(lines) == 12
    assert all(line.startswith("Forked ") and "fork" in line.removeprefix("Forked ") for line in lines)


def test_a_context_that_is_lost():
    """Everything says so from then on, and nothing ends the process."""
    lines = in_a_child("""
        standin.standin_poison(700)
        told(DRIVEN[0], vmm.DriverError)
        standin.standin_poison(0)  # it does not come back
        for use in DRIVEN:
            told(use, vmm.DriverError)
        for use in TABLES:
            with contextlib.suppress(vmm.DriverError):
                use()
        with contextlib.suppress(vmm.DriverError):
            pool.close()
        del t
        print("over")
    """)
    assert lines.pop() == "over"
    assert len(lines) == 8
    for line in lines:
        assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in line
        assert "restart the process" in line
