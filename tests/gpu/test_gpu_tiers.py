"""Sequences that are parked, and go to the host's memory or a file while others need theirs."""

import tempfile

import torch
from gpu_device import here, on_device, page_bytes, pool_of
from test_gpu_kv_cache import cache_of, content, step, tokens_of_page, write

import vmm


def take_turns(cache: vmm.KVCache) -> None:
    idle = {}
    for number in range(6):  # 18 pages, and there is memory for eight
        sequence = cache.open()
        step(cache, (sequence, 3 * tokens_of_page() - 5), stream=here())
        idle[sequence] = write(sequence, 0, seed=number)
        sequence.park()
    for turn in range(4):
        for sequence, states in idle.items():
            step(cache, (sequence, sequence.length + 1), stream=here())
            new = write(sequence, sequence.length - 1, seed=1000 + turn)
            idle[sequence] = torch.cat((states, new), dim=2)
            assert torch.equal(content(sequence), idle[sequence])
            sequence.park()
    tiers = cache.pool.stats().tiers
    assert tiers.loaded_pages >= 18
    assert tiers.lost_pages == 0


@on_device
def test_more_sequences_than_memory_take_turns_over_the_host_s_memory() -> None:
    with pool_of(8, host=64 * page_bytes()) as pool, cache_of(pool, 7) as cache:
        take_turns(cache)


@on_device
def test_more_sequences_than_memory_take_turns_over_a_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tier = f"{folder}:{64 * page_bytes()}"
        with pool_of(8, nvme=tier) as pool, cache_of(pool, 7) as cache:
            take_turns(cache)
