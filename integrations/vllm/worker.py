"""What the connector does in a worker."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.link import local_mappers
from vmm.integrations.vllm.mapper import Mapper
from vmm.integrations.vllm.memory import WorkerMemory
from vmm.integrations.vllm.pressure import PressureWatch
from vmm.integrations.vllm.socket_link import Server, address_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vmm.integrations.vllm.layout import Layout
    from vmm.integrations.vllm.settings import Settings


class WorkerSide:
    def __init__(
        self, vllm_config: VllmConfig, settings: Settings, layout: Layout, request_blocks: int
    ) -> None:
        device = torch.device(vllm_config.device_config.device)
        self._memory = WorkerMemory(settings, layout, device, request_blocks)
        if self._memory.gpu:
            compat.prepare_gpu_runner(vllm_config)
        self._mapper = Mapper(self._memory)
        self._pressure = PressureWatch(self._memory.pool, self._mapper) if self._memory.shared else None
        assert vllm_config.kv_transfer_config is not None
        self._key = (str(vllm_config.kv_transfer_config.engine_id), vllm_config.parallel_config.rank)
        self._server: Server | None = None
        if vllm_config.parallel_config.distributed_executor_backend == "uni":
            local_mappers[self._key] = self._mapper
        else:
            self._server = Server(self._mapper, address_of(*self._key))

    def allocating(self) -> AbstractContextManager[None]:
        return self._memory.allocating()

    def close(self) -> None:
        local_mappers.pop(self._key, None)
        if self._server is not None:
            self._server.close()
        if self._pressure is not None:
            self._pressure.close()
        self._mapper.close()
        self._memory.close()
