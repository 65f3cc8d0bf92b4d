"""VmmConnector: how vLLM finds the two sides. It only hands on what vLLM calls."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.layout import layout_of
from vmm.integrations.vllm.scheduler import SchedulerSide
from vmm.integrations.vllm.settings import settings_of
from vmm.integrations.vllm.stats import VmmPromMetrics, VmmStats
from vmm.integrations.vllm.worker import WorkerSide

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class Nothing(KVConnectorMetadata):
    """No step needs to tell its workers anything: they hear of blocks before the blocks are used."""


class VmmConnector(KVConnectorBase_V1, SupportsHMA):
    """Gives vLLM's KV cache memory for the blocks in use. It transfers no KV."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        compat.check_version(vllm.__version__)
        compat.check_processes(vllm_config.parallel_config)
        super().__init__(vllm_config, role, kv_cache_config)
        # For a consumer vLLM frees blocks only when no step in flight may still write them.
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        if transfer.kv_role != "kv_both":
            raise ValueError(f"VmmConnector: 'kv_role' is {transfer.kv_role!r}; expected 'kv_both'")
        settings = settings_of(transfer.kv_connector_extra_config)
        layout = layout_of(kv_cache_config)
        self.scheduler: SchedulerSide | None = None
        self.worker: WorkerSide | None = None
        request_blocks = compat.blocks_of_a_request(vllm_config, kv_cache_config)
        if role is KVConnectorRole.SCHEDULER:
            self.scheduler = SchedulerSide(vllm_config, settings, layout, request_blocks)
        else:
            self.worker = WorkerSide(vllm_config, settings, layout, request_blocks)

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # ---- the worker

    def get_mem_pool_context(self) -> AbstractContextManager[None]:
        assert self.worker is not None
        return self.worker.allocating()

    def shutdown(self) -> None:
        for side in (self.scheduler, self.worker):
            if side is not None:
                side.close()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None: ...
    def wait_for_save(self) -> None: ...

    # ---- the scheduler

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        assert self.scheduler is not None
        super().bind_kv_cache_manager(kv_cache_manager)
        self.scheduler.bind(kv_cache_manager)

    def on_new_request(self, request: Request) -> None:
        assert self.scheduler is not None
        self.scheduler.arrives(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        assert self.scheduler is not None
        self.scheduler.wanted(request)
        return 0, False

    def has_pending_block_frees(self) -> bool:
        """vLLM asks this before it preempts for want of blocks. True: some have come."""
        assert self.scheduler is not None
        return self.scheduler.rescue()

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        assert self.scheduler is not None
        self.scheduler.starts(request)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        assert self.scheduler is not None
        self.scheduler.step()
        return Nothing()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        assert self.scheduler is not None
        self.scheduler.leaves(request)
        return False, None

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        return None if self.scheduler is None else self.scheduler.stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return VmmStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any, **named: Any) -> KVConnectorPromMetrics | None:
        return VmmPromMetrics(*arguments, **named)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def reset_cache(self) -> bool | None:
        """There is no cache beside vLLM's own."""
        return True
