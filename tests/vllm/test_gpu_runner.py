"""What a worker on a GPU does to vLLM's block tables, on tables of the CPU."""

from types import SimpleNamespace

import pytest
import torch
from vllm.v1.worker.gpu.block_table import BlockTables

from vmm.integrations.vllm import compat


@pytest.fixture
def tables(monkeypatch):
    """vLLM's class with a gather that, as the real kernel, writes no more than a request's blocks."""

    def gather(self, idx_mapping, num_reqs_padded, out=None, out_ptrs=None):
        out = tuple(self.input_block_tables) if out is None else out
        for row, (start, stop) in enumerate(idx_mapping):
            out[0][row, : stop - start] = torch.arange(start, stop)
        return tuple(table[:num_reqs_padded] for table in out)

    monkeypatch.setattr(BlockTables, "gather_block_tables", gather)
    monkeypatch.setattr(BlockTables, "redirect_writes_to_null_block", False)
    made = BlockTables.__new__(BlockTables)
    made.input_block_tables = [torch.zeros(4, 8, dtype=torch.int32)]
    return made


V2 = SimpleNamespace(use_v2_model_runner=True)


def test_no_row_shows_blocks_of_earlier_requests(tables):
    compat.prepare_gpu_runner(V2)
    compat.prepare_gpu_runner(V2)  # a second engine in the process
    tables.gather_block_tables([(10, 18), (20, 28)], 2)
    (rows,) = tables.gather_block_tables([(30, 33), (40, 41)], 2)
    assert rows.tolist() == [[30, 31, 32, 0, 0, 0, 0, 0], [40, 0, 0, 0, 0, 0, 0, 0]]
    other = (torch.full((4, 8), 9, dtype=torch.int32),)
    for call in (
        lambda: tables.gather_block_tables([(1, 2)], 1, other, None),
        lambda: tables.gather_block_tables([(1, 2)], num_reqs_padded=1, out=other, out_ptrs=None),
    ):
        (rows,) = call()
        assert rows.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
        other[0].fill_(9)


def test_the_warm_up_writes_the_null_block_and_requests_do_not(tables):
    written = []
    tables.num_kv_cache_groups = 1
    tables.num_blocks = SimpleNamespace(np=torch.zeros(1, 4, dtype=torch.int32).numpy())
    tables.block_tables = [
        SimpleNamespace(gpu=torch.zeros(4, 8), stage_write=lambda request, start, ids: written.append(ids))
    ]
    compat.prepare_gpu_runner(V2)
    tables.append_block_ids(0, ([1, 2, 3],), overwrite=True)
    compat.gpu_runner_is_warm()
    tables.append_block_ids(0, ([4, 5],), overwrite=True)
    assert written == [[0, 0, 0], [4, 5]]


def test_another_model_runner_is_refused():
    with pytest.raises(ValueError, match="V2 model runner"):
        compat.prepare_gpu_runner(SimpleNamespace(use_v2_model_runner=False))
