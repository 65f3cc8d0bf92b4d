"""Sequences whose K and V tell which they are, in a cache that is saved."""

from time import monotonic, sleep

import pytest
import torch

from vmm import KVCache, Pool

SHAPE = {"layers": 2, "kv_heads": 2, "head_dim": 16, "dtype": torch.float32}
SIZES = {"max_tokens": 2000, "max_sequences": 8}
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4


def written(cache, tokens, number, salt=None, commit=True):
    """An open sequence with these tokens, whose K and V tell which they are."""
    sequence = cache.open(tokens=tokens, salt=salt)
    had = sequence.length
    for length in (max(had, len(tokens) - 3), len(tokens)):
        cache.step({sequence: length})
    for layer in range(len(cache._shapes)):
        for which, kv in enumerate(sequence.kv(layer)):
            first = sequence.length - len(kv)
            new = max(had - first, 0)
            kv[new:] = expected(number, layer, which, kv, first)[new:]
    if commit:
        sequence.commit(tokens[had:])
    return sequence


def expected(number, layer, which, kv, first):
    """What `written` has left in ``kv``, which begins at token ``first``."""
    row = torch.arange(first, first + len(kv)) % 100 + 1000 * number + 200 * layer + 100 * which
    return row.to(kv.dtype)[:, None, None].expand_as(kv)


def intact(sequence, number, length=None):
    """Whether the first tokens, as far as windows reach, are as `written` has left them."""
    length = sequence.length if length is None else length
    for layer in range(len(sequence.cache._shapes)):
        for which, kv in enumerate(sequence.kv(layer)):
            first = sequence.length - len(kv)
            rows = expected(number, layer, which, kv, first)
            if not torch.equal(kv[: length - first], rows[: length - first]):
                return False
    return True


def await_copies(pool):
    """Waits until all is copied that a pool with ``write_through`` copies."""
    until = monotonic() + 30
    while (tiers := pool.stats().tiers) and tiers.dirty_pages:
        assert monotonic() < until
        sleep(0.001)


def ids(start, count):
    return list(range(start, start + count))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.vmm"


@pytest.fixture
def cache():
    with Pool("2MiB", host="16MiB") as pool, KVCache(**SHAPE, **SIZES, pool=pool) as made:
        yield made


@pytest.fixture
def saved(cache, path):
    """A file with the sequence ``idle``, which has 300 tokens, and one that nobody named, of 40."""
    idle = written(cache, ids(0, 300), 1)
    other = written(cache, ids(5000, 40), 2)
    cache.save(path, {"idle": idle, "other": other}, model="tiny")
    return path
