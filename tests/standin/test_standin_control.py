"""Faults on demand, the log, what is live, forked children, order by seed."""

import ctypes
import os

import conformance
import pytest
from cuda_calls import NOT_INITIALIZED, OUT_OF_MEMORY, SUCCESS, access, properties

from child import run_child


def grow(bench):
    """A multi-step operation that undoes what it did when a step fails."""
    cuda, page = bench.cuda, bench.page
    undo = []
    out = ctypes.c_uint64()

    def step(name, *arguments):
        return getattr(cuda, name)(*arguments) == SUCCESS

    try:
        if not step("cuMemAddressReserve", ctypes.byref(out), page, page, 0, 0):
            return False
        base = out.value
        undo.append(("cuMemAddressFree", base, page))
        if not step("cuMemCreate", ctypes.byref(out), page, ctypes.byref(properties()), 0):
            return False
        undo.append(("cuMemRelease", out.value))
        if not step("cuMemMap", base, page, 0, out.value, 0):
            return False
        undo.append(("cuMemUnmap", base, page))
        return step("cuMemSetAccess", base, page, ctypes.byref(access()), 1)
    finally:
        for name, *arguments in reversed(undo):
            while getattr(cuda, name)(*arguments) != SUCCESS:
                pass


def test_each_call_can_be_made_to_fail_once(standin, bench):
    failed = []
    for n in range(1, 100):
        standin.fail_at(n, OUT_OF_MEMORY)
        succeeded = grow(bench)
        if not standin.failed():
            assert succeeded
            standin.fail_at(0)
            break
        failed.append(standin.last_failed.split(" #")[0])
        assert succeeded == (n > 4)
        assert not standin.leaks()
    calls = ["cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess"]
    assert failed == [*calls, "cuMemUnmap", "cuMemRelease", "cuMemAddressFree"]
    by_function = {entry["function"]: entry for entry in standin.sites() if entry["failed"]}
    assert set(by_function) == set(failed)
    assert all("+0x" in entry["site"] for entry in by_function.values())


def test_handles_come_back_at_once_where_that_is_wanted(standin, cuda, bench):
    def three_events() -> list[int]:
        events = [cuda.get_number("cuEventCreate", 2) for _ in range(3)]
        for event in events:
            cuda.do("cuEventDestroy", event)
        return events

    assert not set(three_events()) & set(three_events())
    standin.set(reuse_handles=1)
    try:
        assert three_events() == three_events()[::-1]
    finally:
        standin.set(reuse_handles=0)


def test_faults_in_a_row(standin, cuda, bench):
    standin.fail_at(2, 46, times=3)
    out = ctypes.c_uint64()
    results = [cuda.cuMemGetInfo(ctypes.byref(out), ctypes.byref(out)) for _ in range(6)]
    assert results == [0, 46, 46, 46, 0, 0]
    assert standin.failed() == 3
    assert standin.failed() == 0
    assert standin.last_failed.startswith("cuMemGetInfo #")


def test_faults_of_one_module_only(standin, cuda, bench):
    before = standin.calls
    standin.fail_only("no_such_module.so")
    standin.fail_at(1)
    cuda.do("cuCtxSynchronize")
    assert (standin.calls, standin.failed()) == (before, 0)
    standin.fail_only("ffi")  # ctypes calls through libffi
    assert cuda.cuCtxSynchronize() == 999


def test_what_cannot_fail_is_not_made_to(standin, cuda, bench):
    standin.fail_at(1)
    before = standin.calls
    cuda.do("cuDriverGetVersion", ctypes.byref(ctypes.c_int()))
    assert standin.calls == before
    standin.fail_at(0)


def test_the_log(standin, cuda, bench):
    before = standin.log.get("cuMemCreate", 0)
    bench.create()
    cuda.cuMemCreate(None, 0, None, 0)
    assert standin.count("cuMemCreate") == before + 2
    assert standin.count() == sum(standin.log.values())


def test_what_is_live(standin, bench):
    assert not standin.leaks()
    base, handle, stream, event = bench.reserve(2), bench.create(), bench.stream(), bench.event()
    bench.map(base, handle)
    allocation = bench.cuda.get_number("cuMemAlloc", 100)
    host = bench.cuda.get_number("cuMemHostAlloc", 100, 0)
    live = standin.live()
    assert [entry["start"] for entry in live["reservations"]] == [base]
    assert [(entry["id"], entry["mappings"]) for entry in live["handles"]] == [(handle, 1)]
    assert [entry["start"] for entry in live["mappings"]] == [base]
    assert [entry["id"] for entry in live["streams"]] == [stream]
    assert [entry["id"] for entry in live["events"]] == [event]
    assert [entry["start"] for entry in live["allocations"]] == [allocation]
    assert [entry["start"] for entry in live["host"]] == [host]
    assert live["contexts"] == {"0": 1}
    with pytest.raises(AssertionError, match="7 CUDA resources"):
        standin.reset()
    bench.cuda.do("cuMemFree", allocation)
    bench.cuda.do("cuMemFreeHost", host)


def test_releasing_a_context_with_things_in_it(standin, cuda):
    context = cuda.get_number("cuDevicePrimaryCtxRetain", 1)
    cuda.do("cuCtxSetCurrent", context)
    stream = cuda.get_number("cuStreamCreate", 0)
    with standin.counting():
        cuda.do("cuDevicePrimaryCtxRelease", 1)
    assert "the last release, with 1 streams" in standin.last_report
    assert cuda.cuStreamSynchronize(stream) == 709
    cuda.do("cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_uint64()), 1)
    cuda.do("cuStreamDestroy", stream)
    cuda.do("cuDevicePrimaryCtxRelease", 1)
    cuda.do("cuCtxSetCurrent", None)


def test_a_forked_child_can_do_nothing(standin_path):
    child = run_child(f"""
        import ctypes, os, sys, threading, time
        sys.path[:0] = [{conformance.__file__.rsplit("/", 1)[0]!r}]
        import conformance, cuda_calls, standin
        control = standin.load({standin_path!r})
        b = conformance.Bench(cuda_calls.Cuda(control.library))
        base = b.reserve(1)
        b.map(base, b.create())
        b.allow(base)
        ctypes.memset(base, 5, 10)
        stream = b.stream()
        # A kernel runs while we fork, and the child has no thread that could end it.
        control.launch(stream, lambda: time.sleep(0.3))
        thread = threading.Thread(target=lambda: b.cuda.cuStreamSynchronize(stream))
        thread.start()
        time.sleep(0.1)
        child = os.fork()
        if child == 0:
            codes = {{b.cuda.cuMemUnmap(base, b.page), b.cuda.cuInit(0), b.cuda.cuCtxSynchronize(),
                     b.cuda.cuDevicePrimaryCtxRelease(0), b.cuda.cuMemRelease(1)}}
            os._exit(9 if codes == {{{NOT_INITIALIZED}}} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        child = os.fork()
        if child == 0:
            ctypes.string_at(base, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -11
        thread.join()
        assert ctypes.string_at(base, 10) == bytes([5]) * 10
        b.close()
        control.reset()
        print("fine")
    """)
    assert (child.returncode, child.stdout) == (0, "fine\n"), child.stderr


def test_the_environment_sets_it_up(standin_path):
    child = run_child(
        f"""
        import ctypes
        cuda = ctypes.CDLL({standin_path!r})
        value, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
        cuda.cuDriverGetVersion(ctypes.byref(value))
        print(value.value, cuda.cuInit(0))
        cuda.cuDeviceGetCount(ctypes.byref(value))
        context = ctypes.c_void_p()
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        cuda.cuCtxSetCurrent(context)
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        print(value.value, total.value, cuda.cuMemRelease(ctypes.c_uint64(1)))
        """,
        environment={
            **os.environ,
            "VMM_STANDIN_VERSION": "12040",
            "VMM_STANDIN_DEVICES": "3",
            "VMM_STANDIN_CAPACITY": "0x100000",
            "VMM_STANDIN_UNDEFINED": "count",
        },
    )
    assert child.stdout == "12040 0\n3 1048576 1\n", child.stderr


def test_one_seed_is_one_order(standin_path):
    program = f"""
        import ctypes, sys
        sys.path[:0] = [{conformance.__file__.rsplit("/", 1)[0]!r}]
        import conformance, cuda_calls, standin
        control = standin.load({standin_path!r})
        b = conformance.Bench(cuda_calls.Cuda(control.library))
        order = []
        for stream in [b.stream() for _ in range(3)]:
            for at in range(4):
                control.launch(stream, lambda name=(stream, at): order.append(name))
        control.sync_all()
        print(order)
    """
    runs = [run_child(program, environment={**os.environ, "VMM_STANDIN_SEED": seed}).stdout for seed in "112"]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0]


def test_it_goes_quietly_at_exit(standin_path):
    child = run_child(f"""
        import ctypes, sys
        sys.path[:0] = [{conformance.__file__.rsplit("/", 1)[0]!r}]
        import conformance, cuda_calls, standin
        control = standin.load({standin_path!r})
        b = conformance.Bench(cuda_calls.Cuda(control.library))
        b.create(), b.stream(), b.event()
        control.launch(b.stream(), lambda: print("ran"))
    """)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
