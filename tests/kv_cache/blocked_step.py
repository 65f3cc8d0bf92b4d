"""A step that is inside a call to the driver, while other threads ask everything that can be asked. Who waits
for a lock with the GIL stops the interpreter, which is what the watchdog ends."""

# ruff: noqa: E402, PLW0108
import faulthandler
import gc
import sys
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import cuda_standin
import torch
from core_pool import settle
from own_pool import int32

from vmm import KVCache, KVTensor, Pool, _core

PAGE = 65536
WATCHDOG_SECONDS = 60


def doomed_things(pool):
    """By name, each the last owner of what is behind it."""

    def lease():
        return pool._core.reserve(page_bytes=PAGE, extent_bytes=PAGE, extents=1)

    def tensor():
        made = KVTensor(1, 256, 64, pool=pool, page_bytes=PAGE)
        made[:, :1] = 1
        return made

    def cache():
        return KVCache(1, 1, 128, torch.float32, max_tokens=64, max_sequences=1, pool=pool, page_bytes=PAGE)

    return {
        "a lease": lease(),
        "a growth": _core.Growth(pool._core, [(lease(), 0, 1, 256)]),
        "a tensor": tensor(),
        "rows": tensor()._memory.rows,
        "a slice": tensor()[:, :1],
        "a cache": cache(),
        "a view of a cache": cache().kv(0)[0],
    }


def questions(cache, sequence, tensor):
    """By name: every property of every object of the engine, and what takes few arguments."""
    core, engine = cache.pool._core, cache._engine
    things = {
        "Pool": core,
        "Budget": core.budget,
        "KvCache": engine,
        "Lease": cache._leases[0],
        "Rows": tensor._memory.rows,
    }
    asked = {}
    for kind, thing in things.items():
        for name in dir(type(thing)):
            if isinstance(getattr(type(thing), name), property) and name != "memfd":
                asked[f"{kind}.{name}"] = lambda thing=thing, name=name: getattr(thing, name)
    doomed = doomed_things(cache.pool)
    asked |= {
        "length": lambda: sequence.length,
        "previous_length": lambda: engine.previous_length(sequence.slot),
        "cache.stats": cache.stats,
        "stats": core.stats,
        "drain_log": core.drain_log,
        "in_use": tensor._memory.rows.in_use,
        "create_stream": lambda: core.destroy_stream(core.create_stream()),
        "mark": lambda: core.mark(1),
        "poll": core.poll,
        "set_limit": lambda: core.budget.set_limit(core.budget.limit_bytes),
        "a slice": lambda: tensor[:, :1].sum(),
        "repr": cache.pool.__repr__,
        **{f"the end of {name}": lambda name=name: doomed.pop(name) for name in list(doomed)},
        **questions_of_sequences(cache),
        "another pool": lambda: _core.Pool(PAGE, pager_thread=False).close(),
    }
    return asked


def questions_of_sequences(cache):
    """What an engine asks beside its step, of sequences other than the one that is stepped."""
    closed, other = cache.open(), cache.open()
    cache.step(int32(other.slot), int32(1))
    return {
        "open": cache.open,
        "close": closed.close,
        "announce": lambda: other.announce(64),
        "truncate": lambda: other.truncate(1),
        "end": cache.end,
        "a second step": lambda: cache.step(int32(other.slot), int32(2)),
    }


def main():
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
    standin = cuda_standin.loaded()
    pool = Pool._over(
        _core.Pool(
            128 * PAGE, arena_bytes=1 << 32, pager_thread=False, cuda_device=0, cuda_host_accessible=True
        )
    )
    blocked, go_on = threading.Event(), threading.Event()

    def kernel():
        blocked.set()
        go_on.wait()

    other = KVTensor(
        1, 100 * PAGE // 256, 64, pool=pool, page_bytes=PAGE
    )  # of a kind whose pages are zeroed first
    other.reserve(100 * PAGE // 256)
    other.close()
    settle(pool._core)
    cache = KVCache(1, 1, 128, torch.float32, max_tokens=64 * 64, max_sequences=4, pool=pool, page_bytes=PAGE)
    sequence = cache.open()
    tensor = KVTensor(1, 256, 64, pool=pool, page_bytes=PAGE)
    tensor[:, :4] = 1
    asked = questions(cache, sequence, tensor)
    cache.step(int32(sequence.slot), int32(1))
    cache.end()
    streams = [pool._core.create_stream() for _ in range(4)]
    for stream in streams:
        assert standin.launch(stream, kernel) == 0

    stepped = []

    def steps():
        for tokens in range(64, 64 * 64, 64):  # a page each, which the driver zeroes, and waits for
            if not blocked.is_set():
                cache.step(int32(sequence.slot), int32(tokens))
                stepped.append(pool.stats().pages_zeroed)

    failed = []

    def ask(name, question):
        try:
            question()
        except BaseException as error:
            failed.append((name, error))

    threads = [threading.Thread(target=steps)]
    threads[0].start()
    assert blocked.wait(20), stepped
    counted = 0
    for name, question in asked.items():
        print(name, flush=True)  # the last is the one to blame
        threads.append(threading.Thread(target=ask, args=(name, question)))
        threads[-1].start()
        threads[-1].join(0.02)
        counted += 1
    assert threads[0].is_alive()
    go_on.set()
    for thread in threads:
        thread.join()
    assert counted == len(asked)
    assert not failed, failed
    standin.sync_all()
    cache.close()
    del tensor, asked
    gc.collect()
    pool.check()


if __name__ == "__main__":
    cuda_standin.configured(granularity=PAGE)
    with cuda_standin.own_calls():
        main()
