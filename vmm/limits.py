"""The limits of the process and of kernels that every layout keeps."""

from vmm import _core
from vmm.errors import InvalidArgument
from vmm.user_warnings import warn_user

_MAPPINGS_PER_EXTENT = 2  # what is mapped, and the gap after it
MOST_INT32_ELEMENTS = 2**31 - 1


def fits_mappings(extents: int, max_mappings: int) -> bool:
    """Whether so many extents leave the process half of its memory mappings (0: no limit is known)."""
    return max_mappings == 0 or _MAPPINGS_PER_EXTENT * extents <= max_mappings // 2


def too_many_mappings(what: str, max_mappings: int, instead: str) -> InvalidArgument:
    """The exception for a cache whose extents do not fit; ``what`` names the argument first."""
    return InvalidArgument(
        f"{what} would use more than {max_mappings // 2} memory mappings, half of what a process may have;"
        f" use {instead}, or raise {_core.mapping_limit()[1]}"
    )


def fits_int32(elements: int) -> bool:
    """Whether kernels that compute (row x stride) with 32 bits, and tables of strides with 32 bits, are right
    for a sequence of so many elements."""
    return elements <= MOST_INT32_ELEMENTS


def warn_of_int32(what: str) -> None:
    """Warns of the kernels by name: https://github.com/pytorch/pytorch/pull/186075, and the key of torch's
    cuDNN plans (aten/src/ATen/native/cudnn/MHA.cpp)."""
    warn_user(
        f"{what}: from 2^31 on torch's memory-efficient attention (until 2.11) reads other tokens' values"
        " without an error, and cuDNN's may use a plan for other strides; FlashAttention is safe"
        " (docs/engine.md)"
    )
