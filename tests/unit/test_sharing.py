"""Pools whose memory other GPUs and network cards may use. On the stand-in."""

import ctypes
import warnings

import pytest
from cuda_calls import SUCCESS, Location
from four_gpus import PAGE

import vmm
from vmm import DriverError, InvalidArgument, sharing

INVALID_VALUE = 1

pytestmark = pytest.mark.host_only  # real device names; see conftest.py


def access_of(own_cuda, device, address):
    flags = ctypes.c_uint64(9)
    own_cuda.do("cuMemGetAccess", ctypes.byref(flags), ctypes.byref(Location(1, device)), address)
    return flags.value


def fill_on(own_cuda, device, address):
    """The CUresult of a memset by ``device``."""
    context = own_cuda.get_number("cuDevicePrimaryCtxRetain", device)
    own_cuda.do("cuCtxPushCurrent", context)
    result = own_cuda.cuMemsetD8(address, 7, 64)
    own_cuda.do("cuCtxPopCurrent", ctypes.byref(ctypes.c_uint64()))
    own_cuda.do("cuDevicePrimaryCtxRelease", device)
    return result


# Peers


def test_memory_is_its_own_device_s_unless_peers_are_named(mapped, own_cuda):
    core = mapped()
    assert [access_of(own_cuda, device, core.address) for device in range(3)] == [3, 0, 0]
    assert fill_on(own_cuda, 1, core.address) == INVALID_VALUE


def test_peers_read_and_write_it(mapped, own_cuda, four_gpus):
    core = mapped(peers=(2, 1))
    calls = four_gpus.count("cuMemSetAccess")
    core.lease.map([(2, 2)])
    assert four_gpus.count("cuMemSetAccess") == calls + 1  # one for all devices
    for at in range(4):
        address = core.address + at * PAGE
        assert [access_of(own_cuda, device, address) for device in range(4)] == [3, 3, 3, 0]
    assert fill_on(own_cuda, 2, core.address + PAGE) == SUCCESS
    assert ctypes.string_at(core.address + PAGE, 64) == b"\7" * 64
    assert fill_on(own_cuda, 3, core.address) == INVALID_VALUE
    core.lease.retire([(2, 2)])


def test_pages_are_as_large_as_the_coarsest_device_wants(mapped, four_gpus):
    four_gpus.set(peer_granularity=4 * PAGE)
    assert mapped().pool.granularity == PAGE
    core = mapped(peers=(1,))
    assert core.pool.granularity == core.pool.default_page_bytes == 4 * PAGE


def test_one_way_is_not_the_other(four_gpus):
    """What counts is that the peer reaches the pool's device."""
    four_gpus.set(no_peer=0 * 16 + 1)
    vmm.Pool("8MiB", device="cuda", peers=(1,)).close()
    four_gpus.set(no_peer=2 * 16 + 0)
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
def test_peers_that_are_none(four_gpus, peers, words):
    before = four_gpus.live()
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda:0", peers=peers)
    assert four_gpus.live() == before


def test_peers_on_a_machine_with_one_gpu(four_gpus):
    four_gpus.set(devices=1)
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


def test_pages_for_network_cards(mapped, four_gpus):
    before = four_gpus.count("cuMemCreate")
    mapped(rdma=True)
    assert four_gpus.count("cuMemCreate") == before + 3  # one to try, two for the lease


def test_a_device_without_rdma(four_gpus):
    four_gpus.set(rdma=0)
    words = r"rdma is True; cuda:0 \(vmm stand-in\) does not support GPUDirect RDMA"
    before = four_gpus.live()
    with pytest.raises(InvalidArgument, match=words):
        vmm.Pool("8MiB", device="cuda", rdma=True)
    assert four_gpus.live() == before
    vmm.Pool("8MiB", device="cuda").close()


def test_a_device_that_says_it_has_rdma_and_has_not(four_gpus):
    """As on WSL2: the page is created and mapped, and cannot be opened."""
    four_gpus.set(rdma=2)
    before = four_gpus.live()
    words = r"rdma=True: cuda:0 is said to support it, but .*cuMemSetAccess.*CUDA_ERROR_UNKNOWN \(999\)"
    with pytest.raises(DriverError, match=words):
        vmm.Pool("8MiB", device="cuda", rdma=True)
    assert four_gpus.live() == before
    vmm.Pool("8MiB", device="cuda").close()


# Windows, and old devices


def test_the_arena_under_wsl2_is_twice_the_budget(four_gpus, monkeypatch):
    monkeypatch.setattr(sharing, "on_wsl2", lambda: True)
    with vmm.Pool("700MiB", device="cuda") as pool:
        assert pool._core.arena_bytes == 2 * 2**30
    with vmm.Pool("4MiB", device="cuda") as pool:
        assert pool._core.arena_bytes == 2**30
    with vmm.Pool("4MiB") as pool:
        assert pool._core.arena_bytes > 2**40


def test_an_arena_elsewhere_is_large(four_gpus):
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


def test_a_device_before_ampere_is_warned_of_once(four_gpus, monkeypatch):
    monkeypatch.setattr(sharing, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vmm.Pool("4MiB", device="cuda").close()
        vmm.Pool("4MiB").close()
        assert not caught
        four_gpus.set(compute_capability=70)
        for _ in range(2):
            vmm.Pool("4MiB", device="cuda").close()
    [warning] = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert "cuda:0 has compute capability 7.0; vmm needs 8.0" in str(warning.message)
    assert warning.filename == __file__
