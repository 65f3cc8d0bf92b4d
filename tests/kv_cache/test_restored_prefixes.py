"""Prompts whose beginnings closed sequences left in a tier."""

import time

import pytest
import torch

from vmm import InvalidArgument, KVCache, Pool

PAGE = 64 << 10
PER_PAGE = PAGE // (2 * 64 * 4)  # tokens
PATIENCE_S = 20.0


@pytest.fixture
def cache():
    with Pool(16 * PAGE, host="16MiB", write_through=True) as pool:
        cache = KVCache(
            1,
            1,
            64,
            dtype=torch.float32,
            max_tokens=64 * PER_PAGE,
            max_sequences=24,
            pool=pool,
            layout="token-major",
            page_bytes=PAGE,
        )
        yield cache
        cache.close()


def comes(condition):
    until = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def becomes_ready(sequence):
    return comes(lambda: sequence.ready)


def leave(cache, tokens, number):
    """Somebody computes these and ends; they are copied."""
    cleaned = cache.pool.stats().tiers.cleaned_pages
    sequence = cache.open(tokens=tokens)
    cache.step({sequence: len(tokens)})
    for kv in sequence.kv(0):
        kv.fill_(number)
    sequence.commit(tokens)
    sequence.close()
    cache.end()
    pages = -(-len(tokens) // PER_PAGE)
    assert comes(lambda: cache.pool.stats().tiers.cleaned_pages >= cleaned + pages)


def prompt(number, pages=4):
    return [number, *range(pages * PER_PAGE - 1)]


def test_ten_times_as_many_prompts_as_memory_are_found(cache):
    for number in range(20):
        leave(cache, prompt(number), number)
    for number in range(20):
        sequence = cache.open(tokens=[*prompt(number), 1, 2])
        assert sequence.cached_tokens == 4 * PER_PAGE
        assert becomes_ready(sequence)
        cache.step({sequence: sequence.length + 2})
        assert all(bool((kv[: 4 * PER_PAGE] == number).all()) for kv in sequence.kv(0))
        sequence.close()
        cache.end()
    stats = cache.stats()
    assert stats.restored > 10
    assert stats.cached_tokens == 20 * 4 * PER_PAGE
    assert cache.pool.stats().tiers.lost_pages == 0


def test_prompts_that_part_share_the_copies_and_not_the_bytes(cache):
    leave(cache, prompt(7), 7)
    for number in range(100, 105):
        leave(cache, prompt(number), number)  # pushes it out
    used = cache.pool.stats().tiers.host.used_bytes
    parts = [cache.open(tokens=[*prompt(7)[: 3 * PER_PAGE], 1_000_000 + i]) for i in range(2)]
    assert cache.pool.stats().tiers.host.used_bytes <= used
    for each in parts:
        assert each.cached_tokens == 3 * PER_PAGE
        assert becomes_ready(each)
    cache.step({each: each.length + 1 for each in parts})
    parts[0].kv(0)[0][-1] = 55
    for kv in parts[1].kv(0):
        assert bool((kv[:-1] == 7).all())
    whole = cache.open(tokens=[*prompt(7), 3])
    assert whole.cached_tokens == 4 * PER_PAGE
    cache.step({whole: whole.length + 1})
    assert all(bool((kv[:-1] == 7).all()) for kv in whole.kv(0))


def test_another_salt_finds_nothing_in_a_tier(cache):
    leave(cache, prompt(7), 7)
    for number in range(100, 105):
        leave(cache, prompt(number), number)
    assert cache.open(tokens=[*prompt(7), 1], salt="b").cached_tokens == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write_through": True}, "expected a tier, too"),
        ({"host": "1MiB", "write_through": 1}, "expected True or False"),
        ({"nvme": "/tmp:1MiB", "verify_host": True}, "expected a tier, too: host="),
        ({"host": "1MiB", "verify_host": None}, "expected True or False"),
    ],
)
def test_bad_arguments_are_named(options, message):
    argument = [*options][-1]
    with pytest.raises(InvalidArgument, match=f"{argument}.*{message}"):
        Pool("1MiB", **options)
