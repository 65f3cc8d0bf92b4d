"""Layouts as address arithmetic: where in its extents a layer keeps the K (or V) of a token.

A layer's K is one tensor ``[batch, heads, tokens, dim]``; a layout says how many extents it has, what one
token's record in an extent holds, and the strides of the tensor. The last dimension is always contiguous.
"""

from dataclasses import dataclass
from typing import Literal

from vmm.user_warnings import warn_user

#: Each extent costs the process two mappings: what is mapped, and the gap after it.
MAPPINGS_PER_EXTENT = 2


@dataclass(frozen=True)
class Layout:
    """Where the records of one K or V lie.

    ``head-major``: an extent for each (row, head), a record of ``[dim]``; attention on CPUs reads it 1.6 to
    2.5 times faster. ``token-major``: an extent for each row, a record of ``[heads, dim]``; fewer mappings.
    """

    name: Literal["head-major", "token-major"]

    def extents(self, batch: int, heads: int) -> int:
        return batch * heads if self.name == "head-major" else batch

    def record_elements(self, heads: int, dim: int) -> int:
        return dim if self.name == "head-major" else heads * dim

    def strides(self, extent_elements: int, heads: int, dim: int) -> tuple[int, int, int, int]:
        """In elements, of ``[batch, heads, tokens, dim]``."""
        if self.name == "head-major":
            return (heads * extent_elements, extent_elements, dim, 1)
        return (extent_elements, dim, heads * dim, 1)


HEAD_MAJOR = Layout("head-major")
TOKEN_MAJOR = Layout("token-major")


def fits(layout: Layout, tensors: int, batch: int, heads: int, max_mappings: int) -> bool:
    """Whether ``tensors`` K and V tensors leave the process half of its mappings (0: no limit known)."""
    mappings = MAPPINGS_PER_EXTENT * tensors * layout.extents(batch, heads)
    return max_mappings == 0 or mappings <= max_mappings // 2


MOST_INT32_ELEMENTS = 2**31 - 1


def fits_int32(elements: int) -> bool:
    """Whether kernels that compute (row x stride) with 32 bits, and tables of strides with 32 bits, are right
    for a sequence of so many elements."""
    return elements <= MOST_INT32_ELEMENTS


def warn_of_int32(what: str) -> None:
    """Of kernels by name: https://github.com/pytorch/pytorch/pull/186075, and the key of torch's cuDNN plans
    (aten/src/ATen/native/cudnn/MHA.cpp)."""
    warn_user(
        f"{what}: from 2^31 on torch's memory-efficient attention (until 2.11) reads other tokens' values"
        " without an error, and cuDNN's may use a plan for other strides; FlashAttention is safe"
        " (docs/engine.md)"
    )
