"""What a worker on a GPU needs of vLLM's model runner, where a kernel faults at an address without memory.

Two places of vLLM lead kernels to blocks that were never confirmed, or are not any more:

- The V2 runner's warm-up writes blocks 1 to about max_num_seqs times the groups, before there is a scheduler.
  vLLM has a switch that sends these writes to the null block (its elastic expert parallelism uses it).
- The V2 runner's gather writes only as many entries of a block table's row as the request has blocks, and
  leaves the ids of earlier requests behind them. FlashAttention 2 may look at these (vllm#42494).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def prepare(vllm_config: VllmConfig) -> None:
    """Call it before the warm-up. Raises ValueError for a model runner that this was not written for."""
    from vllm.v1.worker.gpu.block_table import BlockTables

    if not vllm_config.use_v2_model_runner or not hasattr(BlockTables, "redirect_writes_to_null_block"):
        raise ValueError(
            "VmmConnector: on a GPU it needs vLLM's V2 model runner, because it knows of no other which"
            " blocks its"
            " kernels touch; unset VLLM_USE_V2_MODEL_RUNNER, or use a model that the V2 runner supports"
        )
    BlockTables.redirect_writes_to_null_block = True
    _clear_tails(BlockTables)


def warmed_up() -> None:
    """Call it before the first step that a scheduler has planned."""
    from vllm.v1.worker.gpu.block_table import BlockTables

    BlockTables.redirect_writes_to_null_block = False


def _clear_tails(tables: Any) -> None:
    """Lets every gather begin with rows of null blocks."""
    gather = tables.gather_block_tables
    if hasattr(gather, "of_vmm"):
        return

    def gather_cleared(self: Any, idx_mapping: Any, num_reqs_padded: int, *more: Any, **named: Any) -> Any:
        out = named.get("out", more[0] if more else None)
        for table in self.input_block_tables if out is None else out:
            table[:num_reqs_padded].zero_()
        return gather(self, idx_mapping, num_reqs_padded, *more, **named)

    gather_cleared.of_vmm = True  # type: ignore[attr-defined]
    tables.gather_block_tables = gather_cleared
