"""The addresses of a cache's slots, and tensors over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vmm import _core
from vmm.dlpack import FLOATS, tensor_over
from vmm.errors import InvalidArgument
from vmm.pool import Pool
from vmm.records import Part, Records, Where
from vmm.stream import torch_stream
from vmm.tenant import Tenant, owner_id


@dataclass(frozen=True)
class SlotMemory:
    """So many slots of so many tokens each. Raises InvalidArgument for more than kernels count."""

    slots: int
    tokens: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.slots * self.tokens >= 2**31:
            raise InvalidArgument(
                f"max_sequences x max_tokens: {self.slots} slots of {self.tokens} tokens are 2^31 or more,"
                " which int32 offsets cannot count"
            )

    def reserve(self, pool: Pool, part: Part, page_bytes: int, tenant: Tenant | None) -> _core.Lease:
        return pool._core.reserve(
            page_bytes=page_bytes,
            extent_bytes=self.tokens * part.record * self.dtype.itemsize,
            extents=self.slots * part.extents,
            kind=1 + FLOATS.index(self.dtype),  # else a tail might not be finite in this type
            stream=torch_stream(pool),
            tenant=owner_id(tenant),
        )

    def views(
        self, leases: Sequence[_core.Lease], records: Records
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """By layer K and V: ``[slots, tokens, heads, dim]`` each."""

        def view(where: Where) -> torch.Tensor:
            part = records.parts[where.part]
            return tensor_over(
                leases[where.part],
                self.dtype,
                shape=(self.slots, self.tokens, where.heads, where.dim),
                strides=part.strides(self.tokens * part.record, where.dim),
                offset_bytes=where.offset * self.dtype.itemsize,
            )

        return [(view(k), view(v)) for k, v in records.layers]
