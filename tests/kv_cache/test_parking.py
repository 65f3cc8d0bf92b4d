"""Sequences that are parked: their bytes, and what a scheduler and its user see of them."""

import threading
import time

import pytest
import torch
from cuda_standin import ON_CUDA
from own_pool import int32

from vmm import Closed, InvalidArgument, KVCache, OutOfPages, Pool, TierStats

SHAPE = {"layers": 2, "kv_heads": 2, "head_dim": 64, "dtype": torch.float32}
TOKENS = 512  # of each sequence: 8 pages of each extent


@pytest.fixture(params=["host", "verified host", "nvme"])
def cache(request, tmp_path):
    """A cache whose pool has memory for about three sequences, and a tier for many."""
    tier = {"host": "64MiB"} if request.param.endswith("host") else {"nvme": f"{tmp_path}:64MiB"}
    if request.param == "verified host":
        tier["verify_host"] = True
    with Pool("4MiB", **tier) as pool:
        yield KVCache(**SHAPE, max_tokens=1024, max_sequences=8, pool=pool)
        pool.check()


def expected(sequence, layer, number, first, last):
    base = sequence.slot * 1e6 + layer * 1e5 + number * 5e4
    return (base + torch.arange(first, last))[:, None, None].expand(-1, 2, 64)


def write(sequence, first, last):
    for layer in range(2):
        for number, tensor in enumerate(sequence.kv(layer)):
            tensor[first:last] = expected(sequence, layer, number, first, last)


def intact(sequence):
    return all(
        torch.equal(tensor, expected(sequence, layer, number, 0, sequence.length))
        for layer in range(2)
        for number, tensor in enumerate(sequence.kv(layer))
    )


def idle(cache):
    sequence = cache.open(TOKENS)
    cache.step({sequence: TOKENS})
    write(sequence, 0, TOKENS)
    sequence.park(category="user")
    return sequence


def go_on(cache, sequence):
    length = sequence.length
    cache.step({sequence: length + 1})
    write(sequence, length, length + 1)


def test_more_sequences_than_memory_take_turns(cache, request):
    sequences = [idle(cache) for _ in range(6)]
    for _ in range(3):
        for sequence in sequences:
            address = sequence.kv(0)[0].data_ptr()
            go_on(cache, sequence)
            assert intact(sequence)
            assert sequence.kv(0)[0].data_ptr() == address
            sequence.park()
    tiers = cache.pool.stats().tiers
    assert tiers.loaded_pages > 100
    assert tiers.lost_pages == 0
    assert tiers.parked_sequences == 6
    store = tiers.host or tiers.file
    unchecked = request.node.callspec.params["cache"] == "host" and ON_CUDA
    assert store.verified_pages == (0 if unchecked else tiers.loaded_pages)
    assert store.failures == 0


def test_how_long_a_load_takes_is_known_after_the_first(cache):
    sequences = [idle(cache) for _ in range(6)]
    away = [each for each in sequences if not each.ready]
    assert {each.load_s for each in away} == {None}
    go_on(cache, away[0])
    assert away[0].load_s == 0.0
    assert len(away) > 1
    assert all(0.0 < each.load_s < 60.0 for each in away[1:])


def test_a_scheduler_prefetches_and_asks_what_is_ready(cache):
    sequences = [idle(cache) for _ in range(6)]
    away = next(sequence for sequence in sequences if not sequence.ready)
    cache.prefetch(away, by_s=0.1)
    deadline = time.monotonic() + 10
    while not away.ready and time.monotonic() < deadline:
        time.sleep(0.001)
    assert away.ready
    waited = cache.pool.stats().tiers.waited_ms
    go_on(cache, away)
    assert cache.pool.stats().tiers.waited_ms == waited
    assert intact(away)


def test_whoever_waits_for_a_sequence_holds_up_no_other_thread(cache):
    sequences = [idle(cache) for _ in range(6)]
    turns, errors = [0, 0], []

    def serve(number, mine):
        try:
            for _ in range(10):
                for sequence in mine:
                    go_on(cache, sequence)
                    assert intact(sequence)
                    sequence.park()
                    turns[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(i, sequences[i::2])) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert turns == [30, 30]


def test_a_step_that_cannot_have_all_of_them_says_which_fit(cache):
    sequences = [idle(cache) for _ in range(6)]
    with pytest.raises(OutOfPages) as caught:
        cache.step(dict.fromkeys(sequences, TOKENS))
    assert len(caught.value.fitting) < 6
    assert set(caught.value.fitting) <= set(sequences)
    for sequence in sequences:
        go_on(cache, sequence)
        assert intact(sequence)
        sequence.park()


def test_parked_sequences_end(cache):
    for sequence in [idle(cache) for _ in range(6)]:
        sequence.close()
    assert cache.stats().sequences == 0
    assert cache.pool.stats().tiers.parked_sequences == 0
    again = idle(cache)
    go_on(cache, again)
    assert intact(again)


def test_bad_arguments(cache):
    sequence = idle(cache)
    with pytest.raises(InvalidArgument, match="is parked"):
        sequence.park()
    with pytest.raises(InvalidArgument, match=r"^category\b"):
        sequence.park(category=3)
    for idle_s in (-1, "soon", float("nan"), True):
        with pytest.raises(InvalidArgument, match=r"^idle_s is .*; expected seconds"):
            sequence.park(idle_s=idle_s)
    with pytest.raises(InvalidArgument, match=r"^priority\b"):
        sequence.park(priority=0.5)
    for seconds in (-1, "soon", True, float("nan")):
        with pytest.raises(InvalidArgument, match=r"^by_s\b"):
            cache.prefetch(sequence, seconds)
    with pytest.raises(InvalidArgument, match=r"^sequences\b"):
        cache.prefetch([3])
    sequence.close()
    for use in (sequence.park, lambda: cache.prefetch(sequence), lambda: sequence.ready):
        with pytest.raises(Closed):
            use()


def test_a_pool_without_tiers_parks_nothing():
    with Pool("4MiB") as pool:
        cache = KVCache(**SHAPE, max_tokens=64, max_sequences=1, pool=pool)
        sequence = cache.open(1)
        cache.step({sequence: 1})
        with pytest.raises(InvalidArgument, match="no tier"):
            sequence.park()
        assert sequence.ready
        assert sequence.lost_tokens == 0
        assert pool.stats().tiers is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("host", "many"),
        ("host", -1),
        ("nvme", "64MiB"),
        ("nvme", ":64MiB"),
        ("nvme", "/tmp:many"),
        ("nvme", 5),
        ("nvme", "/nowhere/at/all:64MiB"),
        ("capacity", "100TiB"),
        ("policy", "clairvoyant"),
    ],
)
def test_bad_tiers(argument, value):
    options = {argument: value}
    if argument == "policy":
        options = {"host": "1MiB", "eviction": value}
    if argument == "capacity":
        options = {"host": value}
    with pytest.raises(InvalidArgument, match=rf"^{argument}\b"):
        Pool("4MiB", **options)


@pytest.mark.host_only  # where a page is larger
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "4KiB"}, "capacity"),
        ({"nvme": "/tmp:100TiB"}, "room"),
    ],
)
def test_tiers_that_cannot_be_made(options, words):
    with (
        Pool("4MiB", **options) as pool,
        pytest.raises(InvalidArgument, match=words),
    ):
        KVCache(**SHAPE, max_tokens=64, max_sequences=1, pool=pool)


def test_one_page_size_for_all_caches_of_a_pool_with_tiers():
    with Pool("4MiB", host="1MiB") as pool:
        KVCache(**SHAPE, max_tokens=64, max_sequences=1, pool=pool)
        with pytest.raises(InvalidArgument, match="page_bytes"):
            KVCache(**SHAPE, max_tokens=64, max_sequences=1, pool=pool, page_bytes="128KiB")
        assert isinstance(pool.stats().tiers, TierStats)


def test_slots_are_named_by_number_where_they_were_given(cache):
    sequences = [idle(cache) for _ in range(6)]
    with pytest.raises(OutOfPages) as caught:
        cache.step(int32(*(each.slot for each in sequences)), int32(*[TOKENS] * 6))
    assert set(caught.value.fitting) <= {each.slot for each in sequences}
