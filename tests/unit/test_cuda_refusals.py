"""What is refused of CUDA's devices, page sizes and contexts: a clear exception, and afterwards everything
works. On the stand-in."""

import cuda_standin
import pytest
import torch
from unchanged_gpu import PAGE

import vmm
from child import run_child
from vmm import DriverError, InvalidArgument, KVTensor, _core


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
    standin.set(devices=2)


@pytest.mark.parametrize("page_bytes", [65536, PAGE // 2, 3 * PAGE, PAGE + 1])
def test_pages_that_are_no_multiple_of_the_granularity(unchanged_core, page_bytes):
    words = rf"page_bytes is {page_bytes}; expected a power of two of at least {PAGE}, .*cuda driver"
    with pytest.raises(InvalidArgument, match=words):
        unchanged_core.pool.reserve(page_bytes=page_bytes, extent_bytes=12 * page_bytes)


@pytest.mark.parametrize("page_bytes", [65536, PAGE // 2, 3 * PAGE])
def test_a_tensor_with_such_pages(unchanged_tensor, page_bytes):
    with pytest.raises(InvalidArgument, match=rf"page_bytes is {page_bytes}; expected .* {PAGE}"):
        KVTensor(1, 1024, 1024, pool=unchanged_tensor._memory.pool, page_bytes=page_bytes)


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
