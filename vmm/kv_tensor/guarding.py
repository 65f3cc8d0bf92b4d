"""How a tensor over memory that is mostly not mapped keeps others from writing there without our
knowledge."""

from __future__ import annotations

from typing import Any

import torch

from vmm.errors import InvalidArgument


class _AddressesOnly(torch.UntypedStorage):
    """A KVTensor's storage, which others may look at but not read: most of it is not mapped."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise InvalidArgument(
            "storage: most of a KVTensor's is not mapped; expected writes through the tensor"
        )

    fill_ = copy_ = resize_ = byteswap = share_memory_ = __setitem__ = _refuse
    _share_fd_cpu_ = _share_filename_cpu_ = _set_from_file = _refuse

    def data_ptr(self) -> int:
        return vars(self)["vmm_address"]  # type: ignore[no-any-return]


def refuse_storage(tensor: torch.Tensor) -> None:
    """Lets Python look at the storage of ``tensor``, but not write to it."""
    storage = tensor.untyped_storage()
    vars(storage)["vmm_address"] = storage.data_ptr()
    storage.__class__ = _AddressesOnly


def refuse_writers(tensor: torch.Tensor) -> None:
    """From here on torch raises RuntimeError where code in C++ asks for the address of ``tensor`` to write
    there: an extension's kernel, a DLPack capsule, a tensor that shares its storage. Reading is as before."""
    # This uses a private part of torch. Without it such code writes where nothing is mapped, as before.
    getattr(torch._C, "_set_throw_on_mutable_data_ptr", lambda _: None)(tensor)
