"""A tensor that is backed only where it is touched, in place of ``torch.empty``."""

from vmm import recording
from vmm.kv_tensor.tensor import KVTensor

__all__ = ["KVTensor"]

recording.install()
