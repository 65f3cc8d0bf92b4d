"""Zeroes every block at the moment at which the scheduler hands it out.

Some of vLLM's runners zero new blocks before a connector hears of a step (DESIGN: facts/vllm.md, the order of
calls), so a block must have its memory by then. Where it does not, the write ends the process.
"""

from vmm.integrations.vllm.blocks import ElasticBlockPool
from vmm.integrations.vllm.memory import WorkerMemory

written_blocks = []  # their ids
_places = []  # (the KV memory as bytes, its layout)


def install():
    answer, get_new_blocks = WorkerMemory.tensor, ElasticBlockPool.get_new_blocks

    def tensor(memory, size):
        made = answer(memory, size)
        _places.append((made, memory.layout))
        return made

    def zeroed(pool, count):
        blocks = get_new_blocks(pool, count)
        for block in blocks:
            for memory, layout in _places:
                for start in layout.starts:
                    memory[start + block.block_id * layout.stride :][: layout.stride].zero_()
        written_blocks.extend(block.block_id for block in blocks)
        return blocks

    WorkerMemory.tensor, ElasticBlockPool.get_new_blocks = tensor, zeroed
