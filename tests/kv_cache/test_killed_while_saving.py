"""Processes that are killed while they save: the file is the older one or the newer one, and whole."""

from textwrap import dedent

import pytest
from killed import KILLED

from child import run_child

SAVER = """
    import os
    import torch
    from vmm import KVCache

    torch.set_num_threads(1)

    def save(told):
        cache = KVCache(1, 1, 64, torch.float32, max_tokens=2000, max_sequences=2, budget="4MiB")
        sequence = cache.open()
        cache.step({sequence: 1500})
        for number in range(1, 1_000_000):
            for kv in sequence.kv(0):
                kv.fill_(number)
            cache.save(path, {str(number): sequence})
            os.write(told, b".")

    def check():
        cache, by_name = KVCache.restore(path, budget="4MiB")
        [(name, sequence)] = by_name.items()
        assert sequence.length == 1500
        for kv in sequence.kv(0):
            assert bool((kv == int(name)).all()), name
        cache.close()
        return int(name)

    in_the_middle = 0
    for kill in range(kills):
        saves = len(killed(save, 0.02, waits=True))
        assert check() in (saves, saves + 1), "another than the last two"
        in_the_middle += os.path.exists(path + ".saving")
    assert set(os.listdir(os.path.dirname(path))) <= {"cache.vmm", "cache.vmm.saving"}
    print(in_the_middle)
"""


@pytest.mark.host_only
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [24, pytest.param(1_000, marks=pytest.mark.long)])
def test_the_file_is_whole_whenever_a_process_is_killed(tmp_path, kills):
    given = f"path, kills = {str(tmp_path / 'cache.vmm')!r}, {kills}\n"
    done = run_child(given + KILLED + dedent(SAVER), timeout=900)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > kills // 20  # were killed in the middle
