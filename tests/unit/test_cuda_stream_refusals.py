"""What is refused of CUDA's streams, captured ones among them: a clear exception, and afterwards everything
works. On the stand-in."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
from core_pool import settle
from cuda_calls import GLOBAL, NON_BLOCKING, SUCCESS
from unchanged_gpu import PAGE

import vmm
from vmm import InvalidArgument, _core


@contextlib.contextmanager
def captured(cuda, flags):
    """A stream of device 0 that is being captured; in the end nobody has broken the capture."""
    stream, graph = cuda.get_number("cuStreamCreate", flags), ctypes.c_void_p()
    cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    try:
        yield stream
    finally:
        result = cuda.cuStreamEndCapture(stream, ctypes.byref(graph))
        cuda.do("cuStreamDestroy", stream)
    assert result == SUCCESS
    cuda.do("cuGraphDestroy", graph)


CORE_CALLS = {
    "mark": lambda core, stream: core.pool.mark(stream),
    "step": lambda core, stream: core.pool.step(stream),
    "end": lambda core, stream: core.pool.end(stream),
    "copy": lambda core, stream: core.pool.copy(core.lease.address, core.lease.address + PAGE, PAGE, stream),
    "synchronize": lambda core, stream: core.pool.synchronize(stream),
}
RELEASES = {
    "release": lambda t, stream: t.release(0, 600, stream=stream),
    "truncate": lambda t, stream: t.truncate(0, stream=stream),
    "close": lambda t, stream: t.close(stream=stream),
}


@pytest.mark.parametrize("name", [*CORE_CALLS, "watch"])
def test_a_stream_of_another_device(unchanged_core, foreign, name):
    calls = CORE_CALLS | {"watch": lambda unchanged_core, stream: unchanged_core.pool.watch(stream)}
    with pytest.raises(InvalidArgument, match=r"stream: of another device than cuda:0"):
        calls[name](unchanged_core, foreign)


def test_a_stream_that_somebody_else_made_is_not_destroyed(unchanged_core, cuda, foreign):
    with captured(cuda, NON_BLOCKING) as stream:
        for other in (0, 1, foreign, stream):
            with pytest.raises(InvalidArgument, match="stream: not one that this pool has made"):
                unchanged_core.pool.destroy_stream(other)


@pytest.mark.parametrize("captures", [False, True])
def test_a_stream_of_ours_that_is_being_captured_is_held(unchanged_core, cuda, standin, captures):
    """Until the capture ends, which neither a dropped stream nor the pool's end can wait for."""
    pool = _core.Pool(16 * PAGE, pager_thread=False, cuda_device=0, cuda_host_accessible=True)
    stream, graph = pool.create_stream(), ctypes.c_void_p()
    if captures:
        cuda.do("cuStreamBeginCapture", stream, GLOBAL)
        with pytest.raises(InvalidArgument, match=r"stream: .* captured"):
            pool.destroy_stream(stream)
    pool.end_stream(stream)
    with pytest.raises(vmm.Closed, match="stream"):
        pool.synchronize(stream)
    pool.close()
    there = {each["id"] for each in standin.live()["streams"]}
    assert (stream in there) == captures
    if captures:
        cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
        cuda.do("cuGraphDestroy", graph)
        pool.close()
        assert stream not in {each["id"] for each in standin.live()["streams"]}


@pytest.mark.parametrize("name", RELEASES)
def test_a_tensor_s_stream_of_another_device(unchanged_tensor, foreign, name):
    for stream in (foreign, SimpleNamespace(cuda_stream=foreign)):
        with pytest.raises(InvalidArgument, match=r"stream: of another device than cuda:0"):
            RELEASES[name](unchanged_tensor, stream)


@pytest.mark.parametrize("name", CORE_CALLS)
def test_a_stream_that_is_being_captured(unchanged_core, cuda, name):
    with captured(cuda, NON_BLOCKING) as stream, pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        CORE_CALLS[name](unchanged_core, stream)


@pytest.mark.parametrize("name", ["mark", "step", "end", "synchronize"])
def test_the_default_stream_while_one_that_it_waits_for_is_captured(unchanged_core, cuda, name):
    with captured(cuda, 0), pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        CORE_CALLS[name](unchanged_core, 0)


@pytest.mark.parametrize("name", RELEASES)
def test_a_tensor_s_stream_that_is_being_captured(unchanged_tensor, cuda, name):
    with captured(cuda, NON_BLOCKING) as stream, pytest.raises(InvalidArgument, match=r"stream: .* captured"):
        RELEASES[name](unchanged_tensor, stream)


def test_a_step_in_an_open_epoch_of_a_stream_that_is_captured_meanwhile(unchanged_core, cuda):
    """The epoch is still open, and closed later."""
    stream = cuda.get_number("cuStreamCreate", NON_BLOCKING)
    unchanged_core.pool.step(stream)
    cuda.do("cuStreamBeginCapture", stream, GLOBAL)
    for call in (unchanged_core.pool.step, unchanged_core.pool.end):
        with pytest.raises(InvalidArgument, match=r"stream: .* captured"):
            call(stream)
    graph = ctypes.c_void_p()
    cuda.do("cuStreamEndCapture", stream, ctypes.byref(graph))
    cuda.do("cuGraphDestroy", graph)
    unchanged_core.pool.end(stream)
    unchanged_core.pool.synchronize(stream)
    settle(unchanged_core.pool)
    cuda.do("cuStreamDestroy", stream)
