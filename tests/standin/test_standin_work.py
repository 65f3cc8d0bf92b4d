"""Queued work runs late, in any legal order, and memory it uses is watched."""

import ctypes
import itertools
import threading

from cuda_calls import NON_BLOCKING, NOT_PERMITTED, NOT_READY, SUCCESS, Cuda

SEEDS = range(1, 21)


def orders(standin, bench, enqueue):
    """The orders in which enqueue(run) had its kernels run, by seed."""
    seen = set()
    for seed in SEEDS:
        standin.library.standin_sync_all()
        standin.library.standin_reset(seed)  # refuses, as things are live; the random order goes on
        order: list[str] = []
        enqueue(lambda stream, name, order=order: standin.launch(stream, lambda: order.append(name)))
        standin.sync_all()
        seen.add("".join(order))
    return seen


def test_nothing_runs_before_somebody_waits(standin, bench):
    ran = []
    stream = bench.stream()
    assert standin.launch(stream, lambda: ran.append(1)) == SUCCESS
    assert not ran
    assert standin.queued == 1
    bench.cuda.do("cuStreamSynchronize", stream)
    assert ran == [1]


def test_streams_go_out_of_step_and_keep_their_own_order(standin, bench):
    one, two = bench.stream(), bench.stream()

    def enqueue(run):
        for name in "ab":
            run(one, name)
        for name in "xy":
            run(two, name)

    seen = orders(standin, bench, enqueue)
    legal = {"".join(p) for p in itertools.permutations("abxy") if p.index("a") < p.index("b")}
    legal = {order for order in legal if order.index("x") < order.index("y")}
    assert seen <= legal
    assert len(seen) >= 4


def test_events_order_streams(standin, bench):
    one, two = bench.stream(), bench.stream()
    event = bench.event()

    def enqueue(run):
        run(one, "a")
        bench.cuda.do("cuEventRecord", event, one)
        run(one, "b")
        bench.cuda.do("cuStreamWaitEvent", two, event, 0)
        run(two, "x")

    assert orders(standin, bench, enqueue) == {"abx", "axb"}


def test_the_legacy_stream_orders_blocking_ones_only(standin, bench):
    blocking, free = bench.stream(0), bench.stream(NON_BLOCKING)

    def enqueue(run):
        run(blocking, "a")
        run(free, "f")
        run(0, "0")
        run(blocking, "b")

    seen = orders(standin, bench, enqueue)
    assert {order.replace("f", "") for order in seen} == {"a0b"}
    assert len(seen) > 1


def test_the_per_thread_default_stream(standin, bench):
    per_thread = Cuda(standin.library, flags=2)
    order = []
    standin.launch(2, lambda: order.append("a"))
    per_thread.do("cuStreamSynchronize", None)  # stream 2, by another name
    assert order == ["a"]
    event = bench.event()
    standin.launch(2, lambda: order.append("b"))
    threading.Thread(target=lambda: None).start()
    bench.cuda.do("cuEventRecord", event, 0)  # the legacy stream waits for it
    bench.cuda.do("cuEventSynchronize", event)
    assert order == ["a", "b"]


def test_queries_say_not_yet_but_not_for_ever(standin, bench):
    stream, event = bench.stream(), bench.event()
    counts = set()
    for _ in range(20):
        for _ in range(3):
            standin.launch(stream)
        bench.cuda.do("cuEventRecord", event, stream)
        count = 0
        while (result := bench.cuda.cuEventQuery(event)) != SUCCESS:
            assert result == NOT_READY
            count += 1
        counts.add(count)
    assert len(counts) > 1
    assert max(counts) < 30
    standin.launch(stream)
    assert bench.cuda.cuStreamQuery(stream) == NOT_READY
    while bench.cuda.cuStreamQuery(stream) != SUCCESS:
        pass


def test_two_threads_wait(standin, bench):
    """A kernel runs without the lock: others go on meanwhile, and wait for it where they must."""
    slow, quick = bench.stream(), bench.stream()
    started, finish = threading.Event(), threading.Event()
    order = []

    def kernel():
        started.set()
        assert finish.wait(30)
        order.append("slow")

    standin.launch(slow, kernel)

    def wait_for(stream, name):
        bench.cuda.do("cuCtxSetCurrent", bench.context)
        bench.cuda.do("cuStreamSynchronize", stream)
        order.append(name)

    first = threading.Thread(target=wait_for, args=(slow, "first"))
    first.start()
    assert started.wait(30)
    standin.launch(quick, lambda: order.append("quick"))
    wait_for(quick, "main")
    second = threading.Thread(target=wait_for, args=(slow, "second"))
    second.start()
    finish.set()
    first.join(30)
    second.join(30)
    assert order[:3] == ["quick", "main", "slow"]
    assert sorted(order[3:]) == ["first", "second"]


def test_a_host_function_may_not_call_cuda(standin, bench):
    results = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: results.append(bench.cuda.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())))
    )
    stream = bench.stream()
    bench.cuda.do("cuLaunchHostFunc", stream, callback, None)
    bench.cuda.do("cuStreamSynchronize", stream)
    assert results == [NOT_PERMITTED]


def test_the_queue_is_bounded(standin, bench):
    standin.set(queue_limit=16)
    stream = bench.stream()
    for _ in range(100):
        standin.launch(stream)
    assert standin.queued <= 17


def test_pageable_sources_are_read_at_once_or_waited_for(standin, bench, memory):
    stream = bench.stream()
    late = 0
    for value in range(1, 30):
        source = ctypes.create_string_buffer(bytes([value]) * 16)
        bench.cuda.do("cuMemcpyHtoDAsync", memory, source, 16, stream)
        late += standin.queued
        ctypes.memset(source, 0, 16)  # ours again
        bench.cuda.do("cuStreamSynchronize", stream)
        there = ctypes.create_string_buffer(16)
        bench.cuda.do("cuMemcpyDtoH", there, memory, 16)
        assert there.raw[:16] == bytes([value]) * 16
    assert 0 < late < 29


def test_pinned_copies_are_late(standin, bench, memory):
    cuda, stream = bench.cuda, bench.stream()
    host = cuda.get_number("cuMemHostAlloc", 4096, 0)
    ctypes.memset(host, 0, 16)
    cuda.do("cuMemsetD8Async", memory, 4, 16, stream)
    cuda.do("cuMemcpyDtoHAsync", host, memory, 16, stream)
    assert ctypes.string_at(host, 16) == bytes(16)
    cuda.do("cuStreamSynchronize", stream)
    assert ctypes.string_at(host, 16) == b"\4" * 16
    with standin.counting():
        cuda.do("cuMemcpyDtoHAsync", host, memory, 16, stream)
        cuda.do("cuMemFreeHost", host)
        assert standin.reports == 1
        cuda.do("cuStreamSynchronize", stream)


def test_kernels_that_hang_end_when_they_are_let(standin, bench):
    ran = []
    stream, other = bench.stream(), bench.stream()
    standin.set(hang=1)
    try:
        standin.launch(stream, lambda: ran.append("hangs"))
    finally:
        for _ in range(50):
            assert bench.cuda.cuStreamQuery(stream) == NOT_READY
        standin.launch(other, lambda: ran.append("hangs as well"))
        assert not ran
        standin.set(hang=0)
    standin.launch(other, lambda: ran.append("goes on"))
    standin.sync_all()
    assert sorted(ran) == ["goes on", "hangs", "hangs as well"]
