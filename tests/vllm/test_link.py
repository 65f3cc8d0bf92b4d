"""The scheduler and its workers: the mapper's thread, one and several workers, and the socket between
processes."""

import multiprocessing
import os
import signal
import time
import uuid
from array import array

import pytest

from vmm.integrations.vllm.link import DirectPort, Link
from vmm.integrations.vllm.mapper import Mapper
from vmm.integrations.vllm.socket_link import Server, SocketPort, address_of


class Memory:
    """Memory for ``size`` blocks; block ``broken`` cannot be had at all."""

    row = 4
    block_bytes = 4 << 20  # so that a portion is two rows

    def __init__(self, size=1000, broken=None):
        self.size, self.broken, self.has, self.log = size, broken, set(), []

    def hello(self):
        return {"row": self.row, "capacity": self.size}

    def keep(self, ids):
        self.log.append(("keep", list(ids)))
        if self.broken in ids:
            raise RuntimeError("the driver refused")
        if len(self.has | set(ids)) > self.size:
            return False
        self.has |= set(ids)
        return True

    def drop(self, ids):
        self.log.append(("drop", list(ids)))
        self.has -= set(ids)

    def figures(self):
        return {"mapped_bytes": len(self.has)}


def ids(*numbers):
    return array("i", numbers)


def all_answers(link, blocks):
    """Waits until so many blocks are answered. Returns those ready and those refused."""
    found = {"ready": [], "refused": []}
    while len(found["ready"]) + len(found["refused"]) < blocks:
        assert link.wait(30)
        for kind, some in link.take():
            found[kind] += some
    return found["ready"], found["refused"]


@pytest.fixture(params=["direct", "socket"])
def connect(request):
    """Connects workers with memories to a link, in this process or over sockets."""
    ends = []

    def connected(link, *memories):
        engine = uuid.uuid4().hex
        for rank, memory in enumerate(memories):
            mapper = Mapper(memory)
            ends.append(mapper)
            if request.param == "direct":
                DirectPort(link, mapper)
            else:
                address = address_of(engine, rank)
                ends.append(Server(mapper, address))
                assert SocketPort(link, address).hello["capacity"] == memory.size
        ends.append(link)

    yield connected
    for end in reversed(ends):
        end.close()


def test_every_block_is_answered_once_and_in_portions(connect):
    link, memory = Link(), Memory()
    connect(link, memory)
    link.announce(ids(*range(1, 32)), 4)
    ready, refused = all_answers(link, 31)
    assert sorted(ready) == list(range(1, 32))
    assert not refused
    assert memory.log == [("keep", [n for n in range(first, first + 8) if n]) for first in (0, 8, 16, 24)]
    assert link.figures == [{"mapped_bytes": 31}]


def test_of_what_does_not_fit_whole_rows_are_refused(connect):
    link, memory = Link(), Memory(size=13)
    connect(link, memory)
    link.announce(ids(*range(1, 32)), 4)
    ready, refused = all_answers(link, 31)
    assert sorted(ready) == list(range(1, 12))
    assert sorted(refused) == list(range(12, 32))
    assert memory.has == set(ready)


def test_a_failing_driver_is_a_refusal(connect):
    link, memory = Link(), Memory(broken=6)
    connect(link, memory)
    link.announce(ids(*range(1, 12)), 4)
    ready, refused = all_answers(link, 11)
    assert (ready, refused) == ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11])


def test_requests_stay_in_order(connect):
    link, memory = Link(), Memory()
    connect(link, memory)
    for _ in range(20):
        link.announce(ids(4, 5, 6, 7), 4)
        link.drop(ids(4, 5, 6, 7))
    link.announce(ids(4, 5, 6, 7), 4)
    all_answers(link, 84)
    assert memory.has == {4, 5, 6, 7}


def test_figures_follow_a_drop(connect):
    link, memory = Link(), Memory()
    connect(link, memory)
    link.announce(ids(4, 5, 6, 7), 4)
    all_answers(link, 4)
    link.drop(ids(4, 5, 6, 7))
    until = time.monotonic() + 30
    while link.figures != [{"mapped_bytes": 0}]:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert not link.take()


def test_a_block_is_ready_when_all_workers_say_so(connect):
    link, memories = Link(), [Memory(), Memory(size=7), Memory(size=11)]
    connect(link, *memories)
    link.announce(ids(*range(1, 20)), 4)
    ready, refused = all_answers(link, 19)
    assert sorted(ready) == list(range(1, 8))
    assert sorted(refused) == list(range(8, 20))
    link.announce(ids(1, 2, 3), 4)  # answered after the drops of what not all could have
    all_answers(link, 3)
    assert [sorted(memory.has) for memory in memories] == [list(range(1, 8))] * 3


def test_a_mapper_that_fails_is_lost(connect):
    link, memory = Link(), Memory()
    connect(link, memory)
    memory.figures = None
    link.announce(ids(1, 2, 3), 4)
    assert link.wait(30)
    assert link.take()[0][0] == "lost"


def _worker(engine):
    mapper = Mapper(Memory())
    server = Server(mapper, address_of(engine, 0))
    time.sleep(100)
    server.close()


def test_a_worker_that_dies_is_heard():
    engine = uuid.uuid4().hex
    worker = multiprocessing.get_context("spawn").Process(target=_worker, args=(engine,))
    worker.start()
    link = Link()
    SocketPort(link, address_of(engine, 0))
    link.announce(ids(1, 2, 3), 4)
    assert all_answers(link, 3)[0] == [1, 2, 3]
    os.kill(worker.pid, signal.SIGKILL)
    assert link.wait(30)
    assert link.take()[0][0] == "lost"
    link.announce(ids(4), 4)  # nobody hears it, and nobody hangs
    link.close()
    worker.join()


def test_no_worker_is_a_clear_error():
    with pytest.raises(RuntimeError, match="must run on the scheduler's machine"):
        SocketPort(Link(), address_of(uuid.uuid4().hex, 0), patience_s=0.1)


def test_a_link_and_a_server_close_while_messages_are_under_way():
    for _ in range(50):
        engine = uuid.uuid4().hex
        mapper = Mapper(Memory())
        server = Server(mapper, address_of(engine, 0))
        link = Link()
        SocketPort(link, address_of(engine, 0))
        link.announce(ids(*range(1, 100)), 4)
        for end in (server, link, server) if _ % 2 else (link, server, server):
            end.close()
        mapper.close()
