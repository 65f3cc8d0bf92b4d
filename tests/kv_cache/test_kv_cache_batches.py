"""Several batches in flight, on streams of their own; and CUDA graphs."""

import ctypes
import gc
import random
import threading

import pytest
import torch
from cuda_calls import GLOBAL, SUCCESS
from late_kernels import PAGE, TOKENS, Kernel, address_of, busy, make, step
from own_pool import faulty_pool

from vmm import Error, InvalidArgument, KVCache, OutOfPages


def test_a_batch_reuses_its_slots_while_another_is_under_way(standin, gpu_pool, streams):
    """A step says what its epoch uses: others' slots are not among it."""
    cache = make(gpu_pool)
    (a, kernel), (b, other) = (busy(standin, cache, stream, 3) for stream in streams)
    for sequence, stream in ((a, streams[0]), (b, streams[1])):
        slot = sequence.slot
        sequence.close(stream)
        new = cache.open(3 * TOKENS, stream=stream)
        assert new.slot == slot
        step(cache, stream, (new, 3 * TOKENS))
        Kernel(standin, stream, new, start=0, late=0)
    assert not (kernel.over)
    assert not (other.over)
    assert gpu_pool._core.stats()["stalls"] == 2  # the first step of each
    cache.close()


def test_a_sequence_that_changed_its_batch_is_read_by_both(standin, gpu_pool, streams):
    cache = make(gpu_pool, slots=1)
    old, kernel = busy(standin, cache, streams[0], 3)
    step(cache, streams[1], (old, 3 * TOKENS))
    old.close(streams[1])
    new = cache.open(0, stream=streams[1])
    with pytest.raises(Error, match="slot 0 was closed in an epoch of another stream that is open"):
        step(cache, streams[1], (new, 1))
    cache.end(streams[0])
    step(cache, streams[1], (new, 1))
    assert kernel.over
    cache.close()


def test_the_stream_that_is_named_is_waited_for_although_its_batch_is_another(standin, gpu_pool, streams):
    """A copy of a prefix, say, on the stream of the batch that wants it."""
    cache = make(gpu_pool)
    old, beside = cache.open(), cache.open()
    step(cache, streams[0], (old, TOKENS))
    step(cache, streams[1], (beside, TOKENS))
    kernel = Kernel(standin, streams[1], old)
    old.close(streams[1])
    for stream in streams:
        cache.end(stream)
    new = cache.open(stream=streams[0])
    step(cache, streams[0], (new, TOKENS))
    assert kernel.over
    cache.close()


def test_a_step_that_waits_lets_others_go_on():
    pool = faulty_pool(64)
    core = pool._core
    shape = {"max_tokens": 10, "page_bytes": 4096, "layers_per_extent": 1}
    cache = KVCache(1, 1, 512, torch.float32, **shape, max_sequences=2, pool=pool)
    theirs, ours = core.create_stream(), core.create_stream()
    old, beside = cache.open(), cache.open()
    step(cache, theirs, (old, 1))
    core.hold_events(True)
    old.close(theirs)
    cache.end(theirs)
    new = cache.open(stream=ours)
    stepped = threading.Event()

    def wait():
        step(cache, ours, (new, 1))
        stepped.set()

    thread = threading.Thread(target=wait)
    thread.start()
    for length in range(1, 11):
        step(cache, theirs, (beside, length))
    assert not stepped.is_set()
    core.hold_events(False)
    thread.join(60)
    assert stepped.is_set()
    cache.close()
    for stream in (theirs, ours):
        core.destroy_stream(stream)
    pool.close()


def test_what_a_window_has_left_may_still_be_read(standin, gpu_pool, streams):
    """Pressure takes it, and waits for the kernels that were given it."""
    cache = make(gpu_pool, pages=7, window=TOKENS)  # and a tile of 256: 5 pages
    old, kernel = busy(standin, cache, streams[0], 6)
    other = cache.open(stream=streams[0])
    step(cache, streams[0], (old, 6 * TOKENS + 1))
    stats = gpu_pool._core.stats()
    assert (stats["kept_bytes"], stats["mapped_bytes"]) == (6 * PAGE, 7 * PAGE)
    assert old.kv(0)[0].shape[0] == 5 * TOKENS
    step(cache, streams[0], (old, 6 * TOKENS + 1), (other, TOKENS))
    assert not kernel.over
    step(cache, streams[0], (old, 6 * TOKENS + 1), (other, 2 * TOKENS))
    assert kernel.over
    cache.close()


def test_two_caches_share_the_epochs_of_a_stream(standin, gpu_pool, streams):
    """The last one that is closed ends the epoch that is open."""
    first, second = make(gpu_pool, pages=2), make(gpu_pool, pages=2)
    _, kernel = busy(standin, first, streams[0], 2)
    _, other = busy(standin, second, streams[0], 2)
    first.close()
    assert gpu_pool._core.trim(1 << 40) == 0
    second.close()
    assert gpu_pool._core.trim(1 << 40) == 4 * PAGE
    assert kernel.over
    assert other.over


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_cache_of_its_own_leaves_nothing_although_it_never_ended_an_epoch(forgotten):
    cache = KVCache(1, 1, 64, torch.float32, max_tokens=100, max_sequences=2, budget="1MiB")
    step(cache, None, (cache.open(), 100))
    core = cache.pool._core
    if forgotten:
        del cache
        gc.collect()
        core.trim(1 << 40)
    else:
        cache.close()
    assert core.stats()["created_bytes"] == 0
    assert core.budget.taken_bytes == 0


def test_the_device_is_gone_when_a_cache_is_closed():
    """Its epoch cannot be ended: what it may read stays away from others."""
    pool = faulty_pool(64)
    core = pool._core
    stream = core.create_stream()
    cache = KVCache(1, 1, 64, torch.float32, max_tokens=100, max_sequences=2, pool=pool, page_bytes=4096)
    step(cache, stream, (cache.open(), 100))
    core.drain_log()
    core.fail_at(1)
    cache.close()
    assert any("record" in message for _, message in core.drain_log())
    assert core.trim(1 << 40) == 0
    core.end(stream)
    assert core.trim(1 << 40) > 0
    core.destroy_stream(stream)
    pool.close()


class Graph:
    """Of one kernel over a sequence's first ``pages``, as an engine captures it once for all lengths."""

    def __init__(self, standin, cuda, stream, sequence, pages):
        self.cuda = cuda
        self.runs = 0
        first = address_of(sequence)
        graph, self.executable = ctypes.c_void_p(), ctypes.c_void_p()
        cuda.do("cuStreamBeginCapture", stream, GLOBAL)
        try:
            with pytest.raises(InvalidArgument, match="captur"):
                step(sequence.cache, stream, (sequence, sequence.length))
            reads = [(first, pages * PAGE)]
            assert standin.launch(stream, self._run, reads=reads, writes=reads) == SUCCESS
        finally:
            cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
        cuda.do("cuGraphInstantiateWithFlags", ctypes.byref(self.executable), graph, 0)
        cuda.do("cuGraphDestroy", graph)

    def _run(self):
        self.runs += 1

    def launch(self, stream):
        self.cuda.do("cuGraphLaunch", self.executable, stream)

    def destroy(self):
        self.cuda.do("cuGraphExecDestroy", self.executable)


def test_a_graph_is_replayed_over_memory_that_was_mapped_after_its_capture(standin, cuda, gpu_pool, streams):
    stream = streams[0]
    cache = make(gpu_pool)
    sequence, other = cache.open(), cache.open()
    step(cache, stream, (sequence, 1))
    graph = Graph(standin, cuda, stream, sequence, pages=3)
    step(cache, stream, (sequence, 3 * TOKENS))
    for _ in range(500):
        standin.launch(stream)
    graph.launch(stream)
    # What the replay reads is not taken away under it, although the sequence is over.
    sequence.close(stream)
    assert graph.runs == 0
    step(cache, stream, (other, 6 * TOKENS))
    cache.end(stream)
    standin.sync_all()
    assert graph.runs == 1
    graph.destroy()
    cache.close()


@pytest.mark.parametrize("seed", range(12))
def test_two_batches_in_flight(standin, gpu_pool, streams, seed):
    """Sequences come, grow and go on two streams, with kernels that write new tokens and read all, in too
    little memory."""
    choose = random.Random(seed)
    cache = make(gpu_pool, slots=4, pages=3)
    batches = [[], []]
    closed = refused = waited_for_an_end = 0
    for iteration in range(60):
        stream, batch = streams[iteration % 2], batches[iteration % 2]
        for sequence in [each for each in batch if choose.random() < 0.2]:
            batch.remove(sequence)
            sequence.close()
            closed += 1
        if cache.stats().sequences < 4 and choose.random() < 0.7:
            batch.append(cache.open(choose.choice([0, 1, TOKENS]), stream=stream))
        lengths = [sequence.length for sequence in batch]
        wanted = [min(length + choose.choice([1, 1, 40]), 3 * TOKENS) for length in lengths]
        try:
            cache.step(
                torch.tensor([sequence.slot for sequence in batch], dtype=torch.int32),
                torch.tensor(wanted, dtype=torch.int32),
                stream,
            )
        except OutOfPages:
            refused += 1
            batch.pop().close()
            continue
        except Error:
            waited_for_an_end += 1
            cache.end(streams[1 - iteration % 2])
            continue
        for sequence, start in zip(batch, lengths, strict=True):
            Kernel(standin, stream, sequence, start, late=choose.choice([0, 3]))
            Kernel(standin, stream, sequence, late=0)
        gpu_pool._core.poll()
        gpu_pool.check()
        assert standin.reports == standin.reported, standin.last_report
    assert closed > 5
    assert refused < 40
    assert waited_for_an_end < 3
    cache.close()
    for stream in streams:
        gpu_pool._core.end(stream)
