"""Pools whose memory other GPUs, network cards and other processes may use. On the stand-in."""

import ctypes
import os
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import cuda_standin
import pytest
from core_pool import settle
from cuda_calls import SUCCESS, Location, access

import vmm
from vmm import DriverError, InvalidArgument, _core, sharing

PAGE = 2**21
INVALID_VALUE = 1

pytestmark = pytest.mark.host_only  # real device names; see conftest.py


@pytest.fixture
def standin():
    found = cuda_standin.configured(granularity=PAGE)
    found.set(devices=4)
    yield found
    found.set(devices=2, no_peer=-1, peer_granularity=0, rdma=1, posix_fd=1, compute_capability=90)


@pytest.fixture
def cuda(standin):
    with cuda_standin.own_calls() as made:
        yield made


def open_core(**special):
    return _core.Pool(
        16 * PAGE,
        arena_bytes=1 << 30,
        pager_thread=False,
        cuda_device=0,
        cuda_host_accessible=True,
        **special,
    )


@pytest.fixture
def mapped(cuda):
    """A function that maps two pages of a pool made so."""
    made = []

    def make(**special):
        pool = open_core(**special)
        lease = pool.reserve(page_bytes=pool.granularity, extent_bytes=4 * pool.granularity)
        lease.map([(0, 2)])
        made.append(SimpleNamespace(pool=pool, lease=lease, address=lease.address))
        return made[-1]

    yield make
    for one in made:
        one.pool.check()
        one.lease.retire([(0, 2)])
        settle(one.pool)
        del one.lease
        one.pool.close()
        assert one.pool.stats()["created_bytes"] == 0


def access_of(cuda, device, address):
    flags = ctypes.c_uint64(9)
    cuda.do("cuMemGetAccess", ctypes.byref(flags), ctypes.byref(Location(1, device)), address)
    return flags.value


def fill_on(cuda, device, address):
    """The CUresult of a memset by ``device``."""
    context = cuda.get_number("cuDevicePrimaryCtxRetain", device)
    cuda.do("cuCtxPushCurrent", context)
    result = cuda.cuMemsetD8(address, 7, 64)
    cuda.do("cuCtxPopCurrent", ctypes.byref(ctypes.c_uint64()))
    cuda.do("cuDevicePrimaryCtxRelease", device)
    return result


# Peers


def test_memory_is_its_own_device_s_unless_peers_are_named(mapped, cuda):
    core = mapped()
    assert [access_of(cuda, device, core.address) for device in range(3)] == [3, 0, 0]
    assert fill_on(cuda, 1, core.address) == INVALID_VALUE


def test_peers_read_and_write_it(mapped, cuda, standin):
    core = mapped(peers=(2, 1))
    calls = standin.count("cuMemSetAccess")
    core.lease.map([(2, 2)])
    assert standin.count("cuMemSetAccess") == calls + 1  # one for all devices
    for at in range(4):
        address = core.address + at * PAGE
        assert [access_of(cuda, device, address) for device in range(4)] == [3, 3, 3, 0]
    assert fill_on(cuda, 2, core.address + PAGE) == SUCCESS
    assert ctypes.string_at(core.address + PAGE, 64) == b"\7" * 64
    assert fill_on(cuda, 3, core.address) == INVALID_VALUE
    core.lease.retire([(2, 2)])


def test_pages_are_as_large_as_the_coarsest_device_wants(mapped, standin):
    standin.set(peer_granularity=4 * PAGE)
    assert mapped().pool.granularity == PAGE
    core = mapped(peers=(1,))
    assert core.pool.granularity == core.pool.default_page_bytes == 4 * PAGE


def test_one_way_is_not_the_other(standin):
    """What counts is that the peer reaches the pool's device."""
    standin.set(no_peer=0 * 16 + 1)
    vmm.Pool("8MiB", device="cuda", peers=(1,)).close()
    standin.set(no_peer=2 * 16 + 0)
    words = r"peers: cuda:2 \(vmm stand-in\) cannot access the memory of cuda:0 \(vmm stand-in\)"
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda", peers=(1, 2))


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ((0,), "peers: cuda:0 is the pool's own device"),
        ((1, 2, 1), "peers: cuda:1 is named twice"),
        ((1, 4), r"peers: there is no cuda:4; this machine has 4 CUDA device\(s\)"),
        ((-1,), "peers has -1; expected numbers"),
        ((2**31,), f"peers has {2**31}; expected"),
        (("cuda:1",), "peers has 'cuda:1'; expected numbers"),
        ((True,), "peers has True"),
        ("12", "peers is '12'; expected numbers"),
        (1, "peers is 1; expected numbers"),
        (None, "peers is None"),
    ],
)
def test_peers_that_are_none(standin, peers, words):
    before = standin.live()
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda:0", peers=peers)
    assert standin.live() == before


def test_peers_on_a_machine_with_one_gpu(standin):
    standin.set(devices=1)
    words = r"peers: there is no cuda:1; this machine has 1 CUDA device\(s\)"
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda", peers=(1,))


@pytest.mark.parametrize(
    ("special", "words"),
    [
        ({"peers": (1,)}, r"peers is \(1,\); expected none: the pool is on the CPU"),
        ({"rdma": True}, "rdma is True; expected False for a pool on the CPU"),
        ({"shareable": True}, "shareable is True; expected False for a pool on the CPU"),
        ({"rdma": 1}, "rdma is 1; expected True or False"),
        ({"shareable": "yes"}, "shareable is 'yes'; expected True or False"),
    ],
)
def test_the_cpu_has_none_of_it(special, words):
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cpu", **special)


# RDMA


def test_pages_for_network_cards(mapped, standin):
    before = standin.count("cuMemCreate")
    mapped(rdma=True)
    assert standin.count("cuMemCreate") == before + 3  # one to try, two for the lease


def test_a_device_without_rdma(standin):
    standin.set(rdma=0)
    words = r"rdma is True; cuda:0 \(vmm stand-in\) does not support GPUDirect RDMA"
    before = standin.live()
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda", rdma=True)
    assert standin.live() == before
    vmm.Pool("8MiB", device="cuda").close()


def test_a_device_that_says_it_has_rdma_and_has_not(standin):
    """As on WSL2: the page is created and mapped, and cannot be opened."""
    standin.set(rdma=2)
    before = standin.live()
    words = r"rdma=True: cuda:0 is said to support it, but .*cuMemSetAccess.*CUDA_ERROR_UNKNOWN \(999\)"
    with pytest.raises(DriverError, match=words):
        vmm.Pool("8MiB", device="cuda", rdma=True)
    assert standin.live() == before
    vmm.Pool("8MiB", device="cuda").close()


# Other processes

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


def test_a_page_as_python_gets_it(standin, monkeypatch):
    monkeypatch.setattr(vmm.pool, "_cuda_host_accessible", True)
    with vmm.Pool("16MiB", device="cuda", shareable=True) as pool:
        lease = pool.reserve(page_bytes=PAGE, extent_bytes=PAGE, extents=1)
        lease.map([(0, 1)])
        page = pool.export(lease.address + 5)
        assert isinstance(page, vmm.ExportedPage)
        assert (page.offset_bytes, page.page_bytes) == (5, PAGE)
        assert not os.get_inheritable(page.file_descriptor)
        os.close(page.file_descriptor)
        del lease


def test_a_forked_child_has_the_descriptor_and_an_executed_program_has_not(standin, monkeypatch):
    monkeypatch.setattr(vmm.pool, "_cuda_host_accessible", True)
    with vmm.Pool("16MiB", device="cuda", shareable=True) as pool:
        lease = pool.reserve(page_bytes=PAGE, extent_bytes=PAGE, extents=1)
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


def test_an_export_outlives_the_pool(standin, cuda):
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
    page = cuda.get_number("cuMemImportFromShareableHandle", fd, 1)
    os.close(fd)
    base = cuda.get_number("cuMemAddressReserve", PAGE, PAGE, 0, 0)
    cuda.do("cuMemMap", base, PAGE, 0, page, 0)
    cuda.do("cuMemSetAccess", base, PAGE, ctypes.byref(access()), 1)
    there = ctypes.create_string_buffer(4)
    cuda.do("cuMemcpyDtoH", there, base, 4)
    assert there.raw == b"left"
    cuda.do("cuMemUnmap", base, PAGE)
    cuda.do("cuMemRelease", page)
    cuda.do("cuMemAddressFree", base, PAGE)


def test_exported_memory_gets_no_other_owner(standin, cuda):
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
        page = cuda.get_number("cuMemImportFromShareableHandle", fd, 1)
        os.close(fd)
        base = cuda.get_number("cuMemAddressReserve", PAGE, PAGE, 0, 0)
        cuda.do("cuMemMap", base, PAGE, 0, page, 0)
        cuda.do("cuMemSetAccess", base, PAGE, ctypes.byref(access()), 1)
        there = ctypes.create_string_buffer(PAGE)
        cuda.do("cuMemcpyDtoH", there, base, PAGE)
        assert set(there.raw) == {1}
        cuda.do("cuMemUnmap", base, PAGE)
        cuda.do("cuMemRelease", page)
        cuda.do("cuMemAddressFree", base, PAGE)
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
def test_what_is_no_address(standin, address):
    with vmm.Pool("8MiB", device="cuda", shareable=True) as pool:
        with pytest.raises(InvalidArgument, match=r"address is .*; expected one of a mapped page"):
            pool.export(address)
        with pytest.raises(InvalidArgument, match="address: nothing of this pool is mapped"):
            pool.export(0)


def test_a_device_that_cannot_export(standin):
    standin.set(posix_fd=0)
    with pytest.raises(InvalidArgument, match=r"shareable is True; cuda:0 .* does not support exporting"):
        vmm.Pool("8MiB", device="cuda", shareable=True)


# Windows, and old devices


def test_the_arena_under_wsl2_is_twice_the_budget(standin, monkeypatch):
    monkeypatch.setattr(sharing, "on_wsl2", lambda: True)
    with vmm.Pool("700MiB", device="cuda") as pool:
        assert pool._core.arena_bytes == 2 * 2**30
    with vmm.Pool("4MiB", device="cuda") as pool:
        assert pool._core.arena_bytes == 2**30
    with vmm.Pool("4MiB") as pool:
        assert pool._core.arena_bytes > 2**40


def test_an_arena_elsewhere_is_large(standin):
    with vmm.Pool("4MiB", device="cuda") as pool:
        assert pool._core.arena_bytes == 2**41


def test_what_wsl2_is(tmp_path):
    none = str(tmp_path / "none")
    (tmp_path / "version").write_text("Linux version 5.15.153.1-microsoft-standard-WSL2 (root@...)")
    (tmp_path / "plain").write_text("Linux version 6.18.0 (builder@host)")
    assert sharing.on_wsl2(version=str(tmp_path / "version"), device=none)
    assert sharing.on_wsl2(version=none, device=str(tmp_path / "plain"))
    assert not sharing.on_wsl2(version=str(tmp_path / "plain"), device=none)
    assert not sharing.on_wsl2(version=none, device=none)


def test_a_device_before_ampere_is_warned_of_once(standin, monkeypatch):
    monkeypatch.setattr(sharing, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vmm.Pool("4MiB", device="cuda").close()
        vmm.Pool("4MiB").close()
        assert not caught
        standin.set(compute_capability=70)
        for _ in range(2):
            vmm.Pool("4MiB", device="cuda").close()
    [warning] = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert "cuda:0 has compute capability 7.0; vmm needs 8.0" in str(warning.message)
    assert warning.filename == __file__
