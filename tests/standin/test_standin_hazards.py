"""Memory that queued work uses must stay what it is: what is reported, and what is not."""

import ctypes

import pytest
from conformance_bench import page_of
from cuda_calls import SUCCESS, access


def unmap_in_use(b, s, memory):
    s.launch(b.stream(), reads=[page_of(b, memory, 1)])
    b.cuda.do("cuMemUnmap", memory + b.page, b.page)
    b.done("cuMemUnmap", memory + b.page, b.page)


def unmap_after_a_stream_wait(b, s, memory):
    """cuStreamWaitEvent orders streams, not the host."""
    one, two, event = b.stream(), b.stream(), b.event()
    s.launch(one, reads=[page_of(b, memory, 0)])
    b.cuda.do("cuEventRecord", event, one)
    b.cuda.do("cuStreamWaitEvent", two, event, 0)
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)


def unmap_before_the_host_knows(b, s, memory):
    """It has run by chance, which under another seed it has not."""
    ran: list[int] = []
    s.launch(b.stream(), lambda: ran.append(1), reads=[page_of(b, memory, 0)])
    s.set(queue_limit=0)
    other = b.stream()
    while not ran:
        s.launch(other)
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)


def take_access_away_in_use(b, s, memory):
    s.launch(b.stream(), writes=[page_of(b, memory, 2)])
    none = access(flags=0)
    b.cuda.do("cuMemSetAccess", memory + 2 * b.page, b.page, ctypes.byref(none), 1)


def overwrite_from_another_stream(b, s, memory):
    s.launch(b.stream(), reads=[page_of(b, memory, 0)])
    b.cuda.do("cuMemsetD8Async", memory + 10, 0, 10, b.stream())


def overwrite_through_an_alias(b, s, memory):
    alias, handle = b.reserve(1), ctypes.c_uint64()
    b.cuda.do("cuMemRetainAllocationHandle", ctypes.byref(handle), memory)
    b.map(alias, handle.value)
    b.cuda.do("cuMemRelease", handle.value)
    b.allow(alias)
    s.launch(b.stream(), reads=[page_of(b, memory, 0)])
    b.cuda.do("cuMemsetD8Async", alias, 0, b.page, b.stream())


def read_what_is_still_written(b, s, memory):
    b.cuda.do("cuMemsetD8Async", memory, 0, b.page, b.stream())
    b.cuda.do("cuMemcpyDtoH", ctypes.create_string_buffer(8), memory, 8)


def launch_on_unmapped_memory(b, s, memory):
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)
    assert s.launch(b.stream(), reads=[(memory, 16)]) == 700


HAZARDS = [
    unmap_in_use,
    unmap_after_a_stream_wait,
    unmap_before_the_host_knows,
    take_access_away_in_use,
    overwrite_from_another_stream,
    overwrite_through_an_alias,
    read_what_is_still_written,
    launch_on_unmapped_memory,
]


@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda f: f.__name__)
def test_hazards_are_reported(standin, bench, memory, hazard):
    with standin.counting():
        hazard(bench, standin, memory)
        assert standin.reports == 1, standin.last_report
        assert "called from" in standin.last_report
        if hazard is not launch_on_unmapped_memory:
            assert standin.last_report.count("ctypes") >= 2, "both call sites"
            assert "queued from" in standin.last_report
        standin.sync_all()


def finished(b, s, memory):
    stream = b.stream()
    s.launch(stream, reads=[page_of(b, memory, 0)])
    b.cuda.do("cuStreamSynchronize", stream)
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)


def fenced(b, s, memory):
    stream, event = b.stream(), b.event()
    s.launch(stream, reads=[page_of(b, memory, 0)])
    b.cuda.do("cuEventRecord", event, stream)
    s.launch(stream, reads=[page_of(b, memory, 1)])
    while b.cuda.cuEventQuery(event) != SUCCESS:
        pass
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)


def fenced_by_the_context(b, s, memory):
    event = b.event()
    s.launch(b.stream(), reads=[page_of(b, memory, 0)])
    b.cuda.do("cuCtxRecordEvent", b.context, event)
    b.cuda.do("cuEventSynchronize", event)
    b.cuda.do("cuMemUnmap", memory, b.page)
    b.done("cuMemUnmap", memory, b.page)


def ordered_by_an_event(b, s, memory):
    one, two, event = b.stream(), b.stream(), b.event()
    s.launch(one, reads=[page_of(b, memory, 0)])
    b.cuda.do("cuEventRecord", event, one)
    b.cuda.do("cuStreamWaitEvent", two, event, 0)
    b.cuda.do("cuMemsetD8Async", memory, 0, b.page, two)


def ordered_through_the_legacy_stream(b, s, memory):
    s.launch(b.stream(0), reads=[page_of(b, memory, 0)])
    b.cuda.do("cuMemsetD8", memory, 0, b.page)
    s.launch(b.stream(0), reads=[page_of(b, memory, 0)])


def two_readers(b, s, memory):
    for _ in range(2):
        s.launch(b.stream(), reads=[page_of(b, memory, 0)])


def neighbours(b, s, memory):
    s.launch(b.stream(), writes=[page_of(b, memory, 0)])
    s.launch(b.stream(), writes=[page_of(b, memory, 1)])
    b.cuda.do("cuMemUnmap", memory + 2 * b.page, b.page)
    b.done("cuMemUnmap", memory + 2 * b.page, b.page)


def destroyed_stream_of_finished_work(b, s, memory):
    stream = b.cuda.get_number("cuStreamCreate", 0)
    s.launch(stream, writes=[page_of(b, memory, 0)])
    b.cuda.do("cuStreamDestroy", stream)
    b.cuda.do("cuMemcpyDtoH", ctypes.create_string_buffer(8), memory, 8)  # the legacy stream waits for it


LEGAL = [
    finished,
    fenced,
    fenced_by_the_context,
    ordered_by_an_event,
    ordered_through_the_legacy_stream,
    two_readers,
    neighbours,
    destroyed_stream_of_finished_work,
]


@pytest.mark.parametrize("work", LEGAL, ids=lambda f: f.__name__)
def test_legal_work_is_not_reported(standin, bench, memory, work):
    with standin.counting():
        work(bench, standin, memory)
        standin.sync_all()
    assert standin.reports == 0, standin.last_report
