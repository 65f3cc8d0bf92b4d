"""``device="cuda"`` is torch's current device, wherever a device is named: on the stand-in with two."""

import sys

import cuda_standin
import pytest
import torch
from transformers import LlamaConfig

import vmm
from child import run_child
from vmm import InvalidArgument, KVCache, KVTensor, Pool, default_pools, devices
from vmm.integrations.transformers import VmmCache

pytestmark = pytest.mark.skipif(cuda_standin.ON_CUDA, reason="there every device is the stand-in's first")


@pytest.fixture
def current(monkeypatch):
    """Makes a device torch's current one, of two."""
    standin = cuda_standin.configured()
    standin.set(devices=2)
    monkeypatch.setattr(devices, "cuda_host_accessible", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("VMM_BUDGET", "64MiB")

    def use(ordinal):
        monkeypatch.setattr(torch.cuda, "current_device", lambda: ordinal)

    use(1)
    yield use
    for name in ("cuda:0", "cuda:1"):
        if (pool := default_pools._pools.pop(name, None)) is not None:
            pool.close()
        default_pools._budgets.pop(name, None)
    standin.set(devices=2)


def config():
    return LlamaConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=128, max_position_embeddings=1024
    )


MAKERS = {
    "Pool": lambda device, **pool: Pool("8MiB", device=device),
    "default_pool": lambda device, **pool: vmm.default_pool(device),
    "KVTensor": lambda device, **pool: KVTensor(1, 64, 64, device=device, **pool)._memory.pool,
    "KVCache": lambda device, **pool: (
        KVCache(1, 1, 64, max_tokens=64, max_sequences=1, device=device, **pool).pool
    ),
    "KVCache with a budget": lambda device, **pool: (
        KVCache(1, 1, 64, max_tokens=64, max_sequences=1, device=device, budget="8MiB").pool
    ),
    "VmmCache": lambda device, **pool: VmmCache(config(), device=device, **pool).pool,
}
OF_A_POOL = ["KVTensor", "KVCache", "VmmCache"]


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda")], ids=["text", "torch.device"])
@pytest.mark.parametrize("kind", MAKERS)
def test_cuda_is_the_current_device(current, kind, device):
    with MAKERS[kind](device) as pool:
        assert (pool.device, pool._ordinal) == ("cuda:1", 1)
        lease = pool._core.reserve(page_bytes=2**21, extent_bytes=2**21, extents=1)
        assert lease.map([(0, 1)]) == 1
        used = cuda_standin.loaded().live()["bytes"]
        assert used.get("1")
        assert not used.get("0")
    current(0)
    with MAKERS[kind](device) as pool:
        assert pool.device == "cuda:0"


@pytest.mark.parametrize("kind", OF_A_POOL)
def test_a_pool_of_the_current_device_is_on_cuda(current, kind):
    with Pool("8MiB", device="cuda:1") as pool:
        assert MAKERS[kind]("cuda", pool=pool) is pool
        current(0)
        with pytest.raises(InvalidArgument, match="device is cuda:0; the pool is on cuda:1"):
            MAKERS[kind]("cuda", pool=pool)


def test_configure_is_of_the_current_device(current):
    vmm.configure(budget="8MiB", device="cuda")
    current(0)
    vmm.configure(budget="16MiB", device="cuda")
    assert vmm.default_pool("cuda:1").budget_bytes == 2**23
    assert vmm.default_pool("cuda").budget_bytes == 2**24


def test_another_device_is_named_by_its_number(current):
    for device in ("cuda:0", torch.device("cuda", 0)):
        with Pool("8MiB", device=device) as pool:
            assert pool.device == "cuda:0"


def test_without_torch_it_is_the_first_and_torch_is_not_imported():
    done = run_child("""
        import sys
        from vmm.devices import parsed_device
        assert parsed_device("cuda") == ("cuda:0", 0)
        assert "torch" not in sys.modules
    """)
    assert done.returncode == 0, done.stderr


def test_with_a_torch_that_has_no_gpu_it_is_the_first(monkeypatch):
    assert "torch" in sys.modules
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.parsed_device("cuda") == ("cuda:0", 0)


IN_A_CHILD = """
import os, sys
import torch
import vmm
from vmm.integrations.transformers import VmmCache
from transformers import LlamaConfig

config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=128)
torch.cuda.is_available = lambda: True
if (child := os.fork()) != 0:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
torch.cuda._is_in_bad_fork = lambda: True  # so it is in a child of a process that used CUDA
for make in (
    lambda: vmm.Pool("8MiB", device="cuda"),
    lambda: vmm.default_pool("cuda"),
    lambda: vmm.configure(budget="8MiB", device="cuda"),
    lambda: vmm.KVTensor(1, 64, 64, device="cuda"),
    lambda: vmm.KVCache(1, 1, 64, max_tokens=64, max_sequences=1, device="cuda"),
    lambda: VmmCache(config, device="cuda"),
):
    try:
        make()
    except vmm.Forked as error:
        print("Forked", "spawn" in str(error), flush=True)
"""


def test_a_forked_child_is_told_so():
    done = run_child(IN_A_CHILD)
    assert (done.returncode, done.stdout) == (0, "Forked True\n" * 6), done.stderr
