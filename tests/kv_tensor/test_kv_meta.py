"""Models are built on the device "meta", where tensors have shapes and no memory."""

import pytest
import torch
from torch import nn

import vmm
from vmm import InvalidArgument, KVTensor


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", KVTensor(2, 1000, 4, dtype=torch.bfloat16))


def is_as_empty(tensor):
    expected = torch.empty(2, 1000, 4, dtype=torch.bfloat16, device="meta")
    assert type(tensor) is torch.Tensor
    assert (tensor.shape, tensor.stride(), tensor.dtype, tensor.device) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
        expected.device,
    )


def test_it_is_what_empty_makes_there():
    with torch.device("meta"):
        module = Attention()
    is_as_empty(module.cache)
    for device in ("meta", torch.device("meta")):
        is_as_empty(KVTensor(2, 1000, 4, dtype=torch.bfloat16, device=device))


def test_it_stays_a_plain_tensor():
    with torch.device("meta"):
        module = Attention()
    module.to_empty(device="cpu")
    assert type(module.cache) is torch.Tensor
    assert module.cache.device.type == "cpu"
    with torch.device("meta"):
        Attention().load_state_dict({"cache": torch.zeros(2, 1000, 4)}, assign=True)


def test_arguments_are_checked_there_too():
    with torch.device("meta"):
        for bad in ({"grow_dim": 3}, {"dtype": "float"}):
            with pytest.raises(InvalidArgument):
                KVTensor(2, 5, 3, **bad)


def test_a_pool_says_where(pool):
    with torch.device("meta"):
        t = KVTensor(2, 1000, 4, pool=pool)
        assert type(t) is KVTensor
        t[:, :3] = 1
    assert t[:, :3].eq(1).all()


@pytest.mark.host_only  # on the stand-in every device is said to be the pool's
def test_a_pool_is_of_its_device(pool):
    with pytest.raises(InvalidArgument, match="device is"):
        KVTensor(2, 5, pool=pool, device="meta")


def test_a_module_on_meta_gives_its_tensors_up(pool):
    module = nn.Module()
    module.register_buffer("cache", KVTensor(2, 1000, 4, pool=pool))
    module.cache[:, :3] = 1
    moved = module.to("meta")
    assert moved.cache.is_meta
    assert vmm.KVTensor not in type(moved.cache).__mro__
