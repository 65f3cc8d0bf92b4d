"""Caches that are written to a file and made again from it."""

import os

import pytest
import torch
from cuda_standin import ON_CUDA
from saved_cache import SHAPE, SIZES, TOKEN_BYTES, ids, intact, written

from vmm import KVCache, Pool


def test_more_than_the_device_holds_comes_back_whole(cache, path):
    sequences = []
    for number in range(6):  # 3 MB
        sequences.append(written(cache, ids(10_000 * number, 1000), number))
        sequences[-1].park(category="human")
    cache.end()
    report = cache.save(path)
    assert (report.sequences, report.prefixes, report.tokens) == (6, 0, 6000)
    assert report.bytes == path.stat().st_size > 6000 * TOKEN_BYTES
    assert not report.lost
    assert cache.pool.stats().tiers.parked_sequences == 6
    with Pool("2MiB", host="16MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool)
        assert pool.stats().tiers.parked_sequences == 6
        for number, sequence in enumerate(sequences):
            back = by_name[str(sequence.slot)]
            again.step({back: 1001})
            assert intact(back, number, 1000)
            back.park()
        pool.check()
        again.close()
    for number, sequence in enumerate(sequences):
        cache.step({sequence: 1001})
        assert intact(sequence, number, 1000)
        sequence.park()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["token-major", "head-major"])
def test_another_layout_and_page_size_have_the_same_tokens(path, dtype, layout):
    shape = {**SHAPE, "dtype": dtype, "kv_heads": [1, 3], "head_dim": [8, 24]}
    other = {"token-major": "head-major", "head-major": "token-major"}[layout]
    with Pool("4MiB") as pool, KVCache(**shape, **SIZES, pool=pool, layout=layout) as cache:
        sequences = {str(n): written(cache, ids(1000 * n, 257 + n), 0) for n in range(3)}
        cache.save(path, sequences)
    with Pool("4MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool, layout=other, page_bytes=65536, max_tokens=700)
        assert list(by_name) == ["0", "1", "2"]
        for n, sequence in enumerate(by_name.values()):
            assert sequence.length == 257 + n
            assert intact(sequence, 0)
        again.close()


def test_a_window_comes_back_as_far_as_it_reaches(path):
    shape = {**SHAPE, "window": [None, 64]}
    with Pool("4MiB", host="4MiB") as pool, KVCache(**shape, **SIZES, pool=pool) as cache:
        idle, running = written(cache, ids(0, 1500), 1), written(cache, ids(3000, 30), 2)
        idle.park()
        cache.end()
        cache.save(path, {"idle": idle, "running": running})
    with Pool("4MiB", host="4MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool, window=[0, 64])
        idle, running = by_name.values()
        assert idle.cache is again
        assert pool.stats().tiers.parked_sequences == 1
        assert intact(running, 2)
        again.step({idle: 1501})
        assert len(idle.kv(1)[0]) in (64, 64 + 256)  # with a tile on a GPU
        assert intact(idle, 1, 1500)
        again.close()


def test_what_closed_sequences_left_is_found_again(cache, path):
    for number, salt in enumerate([None, "a", "b"]):
        written(cache, ids(0, 400 + number), number, salt=salt).close()
    cache.end()
    report = cache.save(path)
    assert (report.sequences, report.prefixes, report.tokens) == (0, 3, 3 * 400)
    assert cache.stats().cached_sequences == 3
    with Pool("2MiB", host="16MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool)
        assert by_name == {}
        for number, salt in enumerate([None, "a", "b"]):
            sequence = again.open(tokens=ids(0, 410), salt=salt)
            assert sequence.cached_tokens == 400
            again.step({sequence: 410})
            assert intact(sequence, number, 400)
        assert again.open(tokens=ids(0, 410), salt="c").cached_tokens == 0
        again.close()


@pytest.mark.parametrize(
    ("tiers", "sizes", "found"),
    [
        ({}, {}, 2),  # as many as the device holds, beside what lies ready for others
        ({"host": "1280KiB", "write_through": True}, {}, 4),  # the tier holds the sequence, and three
        ({"host": "16MiB", "write_through": True}, {"max_sequences": 4}, 3),  # as many as slots are left
        ({"host": "16MiB", "write_through": True}, {}, 8),
    ],
)
def test_of_prefixes_that_do_not_fit_the_newest_are_kept(path, tiers, sizes, found):
    shape = {"layers": 1, "kv_heads": 2, "head_dim": 64, "max_tokens": 700}  # 320 KiB are 640 tokens
    with Pool("8MiB") as pool, KVCache(**shape, max_sequences=12, pool=pool) as cache:
        for number in range(8):
            written(cache, ids(1000 * number, 640), number).close()
        idle = written(cache, ids(50_000, 640), 9)
        cache.end()
        assert cache.save(path, {"idle": idle}).prefixes == 8
    with Pool("1536KiB", **tiers) as pool:
        again, by_name = KVCache.restore(path, pool=pool, layout="token-major", **sizes)
        assert intact(by_name["idle"], 9)
        kept = []
        for number in reversed(range(8)):
            sequence = again.open(tokens=ids(1000 * number, 641), announce=0)
            if sequence.cached_tokens == 640:
                kept.append(number)
                again.step({sequence: 640})
                assert intact(sequence, number)
            sequence.close()
            again.end()
        assert kept[:found] == list(range(7, 7 - found, -1))
        again.close()


def test_what_begins_alike_is_in_the_file_once_and_shares_memory_again(cache, path):
    first = written(cache, ids(0, 1024), 1)
    for sequence in first.fork(3):
        sequence.park()
    first.park()
    cache.end()
    report = cache.save(path)
    assert report.tokens == 4 * 1024
    assert report.bytes < 1.1 * 1024 * TOKEN_BYTES
    # What was parked shares copies, and what runs memory: each has eight pages, and needs one to go on.
    for budget, tiers in ((40 * 65536, {"host": "2MiB"}), (20 * 65536, {})):
        with Pool(budget, **tiers) as pool:
            again, by_name = KVCache.restore(path, pool=pool, layout="token-major", layers_per_extent=2)
            again.step(dict.fromkeys(by_name.values(), 1025))
            assert all(intact(sequence, 1, 1024) for sequence in by_name.values())
            again.close()


def test_without_tiers_what_was_parked_is_open(cache, path):
    idle = written(cache, ids(0, 300), 1)
    idle.park()
    cache.end()
    cache.save(path, {"idle": idle})
    again, by_name = KVCache.restore(path, budget="1MiB", layers=2, kv_heads=2, head_dim=[16, 16])
    assert intact(by_name["idle"], 1)
    again.step({by_name["idle"]: 301})
    again.close()


@pytest.mark.skipif(ON_CUDA, reason="finds the file of the host driver's process")
@pytest.mark.parametrize("window", [None, 64])
def test_a_lost_copy_is_reported_and_the_rest_is_saved(tmp_path, path, window):
    with Pool("1MiB", nvme=f"{tmp_path}:16MiB") as pool:
        cache = KVCache(**SHAPE, **SIZES, window=[None, window], pool=pool)
        idle = written(cache, ids(0, 600), 1)
        idle.park()
        cache.end()
        written(cache, ids(3000, 1700), 2, commit=False).close()
        cache.end()
        assert not idle.ready
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        [file] = [each for each in files if os.path.realpath(each).startswith(str(tmp_path))]
        with open(file, "r+b") as bytes_of_it:
            bytes_of_it.seek(2 * cache._page_bytes)
            bytes_of_it.write(b"\0" * cache._page_bytes)
            os.fsync(bytes_of_it.fileno())
        report = cache.save(path, {"idle": idle})
        assert report.lost["idle"] == 600 - report.tokens > 0
        assert idle.length == 600  # whoever steps it hears of it
        cache.close()
    again, by_name = KVCache.restore(path, budget="1MiB")
    assert by_name["idle"].length == report.tokens
    assert intact(by_name["idle"], 1)
    again.close()
