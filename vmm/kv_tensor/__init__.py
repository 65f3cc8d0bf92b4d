"""A tensor that is backed only where it is touched, in place of ``torch.empty``."""

from vmm.kv_tensor.tensor import KVTensor

__all__ = ["KVTensor"]
