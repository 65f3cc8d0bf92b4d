"""Tensors that must not be copied whole, because most of what they show is not mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import InvalidArgument

if TYPE_CHECKING:
    import torch


def refuse_copies(tensor: torch.Tensor) -> torch.Tensor:
    """Makes deepcopy and pickle of ``tensor`` raise InvalidArgument. It changes the object and not its type,
    which must stay torch.Tensor; so views of it are not protected."""

    def refuse(*_: Any) -> Any:
        raise InvalidArgument(
            "tensor: most of a Range is not mapped, so it cannot be copied or pickled; clone() parts of it"
        )

    vars(tensor).update(__deepcopy__=refuse, __reduce_ex__=refuse)
    return tensor
