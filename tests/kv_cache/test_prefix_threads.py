"""Threads that open sequences with each other's tokens, commit and close, all on one cache."""

import random

import pytest
import torch
from at_once import at_once
from own_pool import PAGE

from vmm import InvalidArgument, KVCache, OutOfPages, Pool

THREADS = 4
ROUNDS = 60
HEADS = [list(range(start, start + 160)) for start in (1000, 2000, 3000)]


class Client:
    def __init__(self, cache, seed):
        self.cache = cache
        self.random = random.Random(seed)
        self.seed = seed
        self.found = self.refused = 0
        self.running = []

    def serve(self):
        for _ in range(ROUNDS):
            if len(self.running) < 2:
                self.begin()
            for sequence, tokens in self.running:
                self.require_right(sequence, tokens)
            if self.running and self.random.random() < 0.6:
                self.running.pop(self.random.randrange(len(self.running)))[0].close()
        for sequence, _ in self.running:
            sequence.close()

    def begin(self):
        head = self.random.choice(HEADS)[: self.random.randint(20, 160)]
        tokens = [*head, *(self.random.randrange(10_000, 20_000) for _ in range(self.random.randint(1, 30)))]
        sequence = None
        try:
            sequence = self.cache.open(tokens=tokens)
            start = sequence.cached_tokens
            self.require_right(sequence, tokens[:start])
            self.cache.step({sequence: len(tokens)})
        except (InvalidArgument, OutOfPages):  # the others have all slots, or the memory
            self.refused += 1
            if sequence is not None:
                sequence.close()
            return
        for layer in range(2):
            for which, states in enumerate(sequence.kv(layer)):
                states[start:] = values(tokens, layer, which)[start:, None, None]
        sequence.commit(tokens[start:])
        self.found += start
        self.running.append((sequence, tokens))

    def require_right(self, sequence, tokens):
        for layer in range(2):
            for which, states in enumerate(sequence.kv(layer)):
                assert torch.equal(states[:, 0, 0], values(tokens, layer, which)), self.seed


def values(tokens, layer, which):
    return torch.tensor(tokens, dtype=torch.float32) + 20_000 * layer + 40_000 * which


@pytest.mark.host_only  # it writes at once what a GPU would write in the stream's order
def test_threads_begin_with_each_others_tokens():
    with (
        Pool("8MiB") as pool,
        KVCache(
            2, 2, 16, torch.float32, max_tokens=256, max_sequences=10, pool=pool, page_bytes=PAGE
        ) as cache,
    ):
        clients = [Client(cache, seed) for seed in range(THREADS)]
        at_once(*(client.serve for client in clients))
        cache.end()
        pool.check()
        stats = cache.stats()
        assert all(client.found for client in clients)
        assert sum(client.refused for client in clients) < THREADS * ROUNDS / 2
        assert stats.cached_tokens >= sum(client.found for client in clients)
        assert stats.adopted > 0
        assert stats.aliased + stats.copied > 0
