"""Memory that is given back while the engine is idle, from a thread of its own."""

import random
import threading
import time

import pytest
from test_growth import check, made

from vmm.integrations.vllm.idle import IdleWatch


def eventually(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def watched():
    pool, growth, workers = made(blocks=400)
    watch = IdleWatch(growth, idle_seconds=0.02)
    yield pool, growth, workers, watch
    watch.close()
    assert not watch._thread.is_alive()


def arrive(growth, watch, name, blocks):
    with growth.lock:
        watch.busy()
        growth.arrives(name, blocks)


def leave(growth, watch, name):
    with growth.lock:
        growth.leaves(name)
        if growth.running == 0:
            watch.idle()


def test_after_the_idle_time_all_but_the_floor_is_given_back(watched):
    _, growth, workers, watch = watched
    arrive(growth, watch, "a", 100)
    leave(growth, watch, "a")
    eventually(lambda: workers.has == {1, 2, 3})
    arrive(growth, watch, "b", 100)
    leave(growth, watch, "b")
    eventually(lambda: growth.given_back > 200)


def test_nothing_is_given_back_while_a_request_is_unfinished(watched):
    _, growth, _, watch = watched
    arrive(growth, watch, "a", 100)
    arrive(growth, watch, "b", 10)
    leave(growth, watch, "a")
    watch.press(5)
    time.sleep(0.1)
    assert growth.given_back == 0
    growth.step()
    assert growth.given_back >= 5  # a busy engine gives way in its own steps


def test_an_idle_engine_gives_all_as_soon_as_others_ask():
    _, growth, workers = made(blocks=400)
    watch = IdleWatch(growth, idle_seconds=1000)
    arrive(growth, watch, "a", 100)
    leave(growth, watch, "a")
    with growth.lock:
        growth.collect()
    assert len(workers.has) > 100
    watch.press(6)
    eventually(lambda: growth.given_back > 0)
    watch.close()
    assert workers.has == {1, 2, 3}


def test_a_scheduler_and_the_thread_never_meet_in_a_half_done_change(watched):
    """Requests come and go with pauses about as long as the idle time."""
    pool, growth, workers, watch = watched
    draw = random.Random(5)
    failures = []
    threading.excepthook, before = lambda args: failures.append(args.exc_value), threading.excepthook
    try:
        for number in range(300):
            arrive(growth, watch, f"{number}", 20)
            with growth.lock:
                growth.wanted(f"{number}", 20)
                blocks = pool.get_new_blocks(draw.randrange(1, 20))
                growth.starts(f"{number}")
            for _ in range(draw.randrange(4)):
                growth.step()
            leave(growth, watch, f"{number}")
            pool.free_blocks(blocks)
            if draw.random() < 0.2:
                time.sleep(draw.random() * 0.05)
            if draw.random() < 0.1:
                watch.press(draw.randrange(1, 50))
    finally:
        threading.excepthook = before
    assert not failures
    with growth.lock:
        check(pool, growth, workers)
