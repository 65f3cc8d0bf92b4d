"""Processes that are killed while sequences leave the device and come back: nothing of them is left."""

import os
from textwrap import dedent

import pytest
from killed import KILLED

from child import run_child

SWAPPER = """
    import os, random
    import torch
    from vmm import KVCache, Pool

    torch.set_num_threads(1)
    PAGE, PER_PAGE = 64 << 10, 128

    def swap(told):
        pool = Pool(16 * PAGE, host="256KiB", nvme=f"{directory}:4MiB", write_through=True)
        cache = KVCache(1, 1, 64, dtype=torch.float32, max_tokens=16 * PER_PAGE, max_sequences=24,
                        pool=pool, layout="token-major", page_bytes=PAGE)
        idle = []
        for turn in range(1_000_000):
            if len(idle) < 12:
                sequence, number = cache.open(), turn
                cache.step({sequence: 4 * PER_PAGE})
                for kv in sequence.kv(0):
                    kv.fill_(number)
            else:
                sequence, number = idle.pop(random.randrange(len(idle)))
                cache.step({sequence: sequence.length})
                for kv in sequence.kv(0):
                    if not bool((kv == number).all()):
                        raise AssertionError("other bytes came back")
            sequence.park()
            cache.end()
            idle.append((sequence, number))
            if turn == 20:
                os.write(told, b".")  # by now some have come back

    for kill in range(kills):
        killed(swap, 0.03, waits=kill % 8 == 0)
        left = os.listdir(directory)
        assert not left, f"kill {kill}: {left} is left"
"""


@pytest.mark.host_only
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [24, pytest.param(2_000, marks=pytest.mark.long)])
def test_a_killed_process_leaves_no_file_and_no_room_taken(tmp_path, kills):
    before = os.statvfs(tmp_path).f_bavail
    given = f"directory, kills = {str(tmp_path)!r}, {kills}\n"
    done = run_child(given + KILLED + dedent(SWAPPER), timeout=900)
    assert done.returncode == 0, done.stderr
    taken = (before - os.statvfs(tmp_path).f_bavail) * os.statvfs(tmp_path).f_frsize
    if kills > 1_000:  # others write to this disk, too, but not so much
        assert taken < kills << 20  # of 4 MiB each
