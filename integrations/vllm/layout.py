"""Where vLLM puts a block: from its KVCacheConfig to the places of block i in the one allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True)
class Layout:
    """Block i lies at [start + i * stride, + stride) for each of ``starts``, in an allocation of ``size``
    bytes."""

    size: int
    starts: tuple[int, ...]
    stride: int
    count: int

    @property
    def reach(self) -> int:
        """The bytes that all blocks together extend to. It can be past ``size``, where the last block of a
        block-outermost layout has a start other than 0."""
        return max(self.size, self.starts[-1] + self.count * self.stride)

    def blocks_in_row(self, page_bytes: int) -> int:
        """How many neighbouring blocks come and go together, so that hardly a page is used in part."""
        return min(max(page_bytes // self.stride, 1), self.count)

    def bytes_of(self, blocks: int, page_bytes: int) -> int:
        """The memory that the first ``blocks`` blocks take, in whole pages."""
        if blocks == 0:
            return 0
        pages = 0
        end = 0  # of the pages counted so far
        for start in self.starts:
            first = max(start // page_bytes, end)
            last = -(-(start + blocks * self.stride) // page_bytes)
            pages += max(last - first, 0)
            end = max(end, last)
        return pages * page_bytes

    def blocks_within(self, budget_bytes: int, page_bytes: int) -> int:
        """The most blocks that fit into the budget together."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes_of(middle, page_bytes) <= budget_bytes:
                low = middle
            else:
                high = middle - 1
        return low


def layout_of(config: KVCacheConfig) -> Layout:
    """Where the blocks of ``config`` lie. Raises ValueError for what cannot be placed, with the reason."""
    tensors = config.kv_cache_tensors
    if not tensors:
        raise ValueError("VmmConnector: this model has no KV cache, so there is nothing to make elastic")
    if any(tensor.host_resident for tensor in tensors):
        raise ValueError(
            "VmmConnector: HiSparse keeps blocks in a host pool of its own, which is unsupported"
        )
    sizes = {tensor.size for tensor in tensors}
    strides = {tensor.block_stride for tensor in tensors}
    if len(sizes) != 1:
        raise ValueError(
            f"VmmConnector: the KV tensors lie in allocations of different sizes {sorted(sizes)}"
        )
    if len(strides) != 1:
        raise ValueError(
            f"VmmConnector: the blocks of different layers are {sorted(strides)} bytes apart; set"
            " VLLM_KV_CACHE_LAYOUT=BLHNC, with which every block has the same size"
        )
    stride = strides.pop()
    for tensor in tensors:
        if tensor.layer_stride >= stride and tensor.layer_stride != stride * config.num_blocks:
            raise ValueError(
                f"VmmConnector: with the layout {config.kv_cache_layout} a block is not in one piece in"
                " each layer;"
                " set VLLM_KV_CACHE_LAYOUT to one where it is, such as LBHNC or BLHNC"
            )
    places = sorted(
        tensor.offset + layer * tensor.layer_stride
        for tensor in tensors
        for layer in range(len(tensor.layers))
    )
    # What lies between two blocks of one layer is the same block of others (groups overlay each other, and
    # block-outermost layouts pack a block's layers), so it is one stretch.
    starts: list[int] = []
    for place in places:
        if not starts or place >= starts[-1] + stride:
            starts.append(place)
    return Layout(sizes.pop(), tuple(starts), stride, config.num_blocks)
