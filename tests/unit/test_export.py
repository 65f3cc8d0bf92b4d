"""Pages for other processes. On the stand-in."""

import ctypes
import os
import subprocess
import sys
import textwrap

import cuda_standin
import pytest
from core_pool import settle
from cuda_calls import access
from four_gpus import PAGE, open_core

import vmm
from vmm import InvalidArgument, devices

pytestmark = pytest.mark.host_only  # real device names; see conftest.py

IMPORT = """
    import ctypes, sys
    sys.path.insert(0, {standin!r})
    import standin as control
    from cuda_calls import POSIX_FD, Cuda, access
    found = control.load({library!r})
    found.set(granularity={page})
    cuda = Cuda(found.library)
    cuda.do("cuInit", 0)
    cuda.do("cuCtxSetCurrent", cuda.get_number("cuDevicePrimaryCtxRetain", 0))
    page = cuda.get_number("cuMemImportFromShareableHandle", {fd}, POSIX_FD)
    base = cuda.get_number("cuMemAddressReserve", {page}, {page}, 0, 0)
    cuda.do("cuMemMap", base, {page}, 0, page, 0)
    cuda.do("cuMemRelease", page)
    cuda.do("cuMemSetAccess", base, {page}, ctypes.byref(access()), 1)
    there = ctypes.create_string_buffer(4)
    cuda.do("cuMemcpyDtoH", there, base + {offset}, 4)
    cuda.do("cuMemsetD8", base + {offset}, 0x41, 4)
    cuda.do("cuCtxSynchronize")
    cuda.do("cuMemUnmap", base, {page})
    cuda.do("cuMemAddressFree", base, {page})
    assert not found.leaks(), found.leaks()
    print(there.raw.decode())
"""


def test_another_process_sees_the_page_and_writes_to_it(mapped):
    core = mapped(shareable=True)
    address = core.address + PAGE + 4096
    ctypes.memmove(address, b"here", 4)
    fd, offset, size = core.pool.export_page(address)
    assert (offset, size) == (4096, PAGE)
    code = IMPORT.format(
        standin=str(cuda_standin.HERE), library=cuda_standin.library(), page=size, fd=fd, offset=offset
    )
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=(fd,),
    )
    os.close(fd)
    assert (child.stdout, child.stderr) == ("here\n", "")
    assert ctypes.string_at(address, 4) == b"AAAA"


def test_a_page_as_python_gets_it(four_gpus, monkeypatch):
    monkeypatch.setattr(devices, "cuda_host_accessible", True)
    with vmm.Pool("16MiB", device="cuda", shareable=True) as pool:
        lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=PAGE)
        lease.map([(0, 1)])
        page = pool.export(lease.address + 5)
        assert isinstance(page, vmm.ExportedPage)
        assert (page.offset_bytes, page.page_bytes) == (5, PAGE)
        assert not os.get_inheritable(page.file_descriptor)
        os.close(page.file_descriptor)
        del lease


def test_a_forked_child_has_the_descriptor_and_an_executed_program_has_not(four_gpus, monkeypatch):
    monkeypatch.setattr(devices, "cuda_host_accessible", True)
    with vmm.Pool("16MiB", device="cuda", shareable=True) as pool:
        lease = pool._core.reserve(page_bytes=PAGE, extent_bytes=PAGE)
        lease.map([(0, 1)])
        fd = pool.export(lease.address).file_descriptor
        code = f"import os; os.fstat({fd})"
        executed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, close_fds=False, check=False
        )
        assert "Bad file descriptor" in executed.stderr
        if (child := os.fork()) == 0:
            try:
                os.fstat(fd)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        os.close(fd)
        del lease


def test_an_export_outlives_the_pool(four_gpus, own_cuda):
    pool = open_core(shareable=True)
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=PAGE)
    lease.map([(0, 1)])
    ctypes.memmove(lease.address, b"left", 4)
    fd, _, _ = pool.export_page(lease.address)
    lease.retire([(0, 1)])
    settle(pool)
    del lease
    pool.close()
    with pytest.raises(vmm.Closed):
        pool.export_page(0)
    page = own_cuda.get_number("cuMemImportFromShareableHandle", fd, 1)
    os.close(fd)
    base = own_cuda.get_number("cuMemAddressReserve", PAGE, PAGE, 0, 0)
    own_cuda.do("cuMemMap", base, PAGE, 0, page, 0)
    own_cuda.do("cuMemSetAccess", base, PAGE, ctypes.byref(access()), 1)
    there = ctypes.create_string_buffer(4)
    own_cuda.do("cuMemcpyDtoH", there, base, 4)
    assert there.raw == b"left"
    own_cuda.do("cuMemUnmap", base, PAGE)
    own_cuda.do("cuMemRelease", page)
    own_cuda.do("cuMemAddressFree", base, PAGE)


def test_exported_memory_gets_no_other_owner(four_gpus, own_cuda):
    """Neither by the free list, nor with a reservation that is adopted."""
    pool = open_core(shareable=True)
    lease = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    lease.map([(0, 4)])
    files = [pool.export_page(lease.address + at * PAGE)[0] for at in (0, 2)]
    ctypes.memset(lease.address, 1, 4 * PAGE)
    lease.retire([(0, 1)])
    settle(pool)
    pool.check()
    assert pool.stats()["created_bytes"] == 3 * PAGE  # what was not exported would be free, and kept
    lease.map([(0, 1)])
    ctypes.memset(lease.address, 2, PAGE)
    address = lease.address
    del lease
    other = pool.reserve(page_bytes=PAGE, extent_bytes=4 * PAGE)
    assert other.address != address
    other.map([(0, 4)])
    ctypes.memset(other.address, 3, 4 * PAGE)
    pool.trim(1 << 40)
    other.map([(0, 4)])
    for fd in files:
        page = own_cuda.get_number("cuMemImportFromShareableHandle", fd, 1)
        os.close(fd)
        base = own_cuda.get_number("cuMemAddressReserve", PAGE, PAGE, 0, 0)
        own_cuda.do("cuMemMap", base, PAGE, 0, page, 0)
        own_cuda.do("cuMemSetAccess", base, PAGE, ctypes.byref(access()), 1)
        there = ctypes.create_string_buffer(PAGE)
        own_cuda.do("cuMemcpyDtoH", there, base, PAGE)
        assert set(there.raw) == {1}
        own_cuda.do("cuMemUnmap", base, PAGE)
        own_cuda.do("cuMemRelease", page)
        own_cuda.do("cuMemAddressFree", base, PAGE)
    pool.check()
    other.retire([(0, 4)])
    settle(pool)
    del other
    pool.close()
    assert pool.stats()["created_bytes"] == 0


def test_a_pool_that_is_not_shareable(mapped):
    core = mapped()
    with pytest.raises(InvalidArgument, match="made without shareable=True"):
        core.pool.export_page(core.address)
    with vmm.Pool("8MiB") as pool, pytest.raises(InvalidArgument, match="without shareable=True"):
        pool.export(1)


@pytest.mark.parametrize("at", [2 * PAGE, -1, 4 * PAGE])
def test_an_address_where_nothing_is_mapped(mapped, at):
    core = mapped(shareable=True)
    with pytest.raises(InvalidArgument, match="address: nothing of this pool is mapped there"):
        core.pool.export_page(core.address + at)


@pytest.mark.parametrize("address", ["0", None, -1, 2**64, 1.5])
def test_what_is_no_address(four_gpus, address):
    with vmm.Pool("8MiB", device="cuda", shareable=True) as pool:
        with pytest.raises(InvalidArgument, match=r"address is .*; expected one of a mapped page"):
            pool.export(address)
        with pytest.raises(InvalidArgument, match="address: nothing of this pool is mapped"):
            pool.export(0)


def test_a_device_that_cannot_export(four_gpus):
    four_gpus.set(posix_fd=0)
    with pytest.raises(InvalidArgument, match=r"shareable is True; cuda:0 .* does not support exporting"):
        vmm.Pool("8MiB", device="cuda", shareable=True)
