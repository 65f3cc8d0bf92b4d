"""What the connector does in a worker."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.link import local_mappers
from vmm.integrations.vllm.mapper import Mapper
from vmm.integrations.vllm.memory import WorkerMemory

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings


class WorkerSide:
    def __init__(
        self, vllm_config: VllmConfig, settings: Settings, layout: Layout, kv_cache_config: KVCacheConfig
    ) -> None:
        device = torch.device(vllm_config.device_config.device)
        self._memory = WorkerMemory(
            settings, layout, device, compat.blocks_of_a_request(vllm_config, kv_cache_config)
        )
        self._mapper = Mapper(self._memory)
        assert vllm_config.kv_transfer_config is not None
        self._key = (str(vllm_config.kv_transfer_config.engine_id), vllm_config.parallel_config.rank)
        local_mappers[self._key] = self._mapper

    def allocating(self) -> AbstractContextManager[None]:
        return self._memory.allocating()

    def close(self) -> None:
        local_mappers.pop(self._key, None)
        self._mapper.close()
