"""Replays against what can be said of them by hand."""

from dataclasses import replace

import pytest

from vmm.errors import InvalidArgument
from vmm.simulate import ALLOCATORS, Request, Settings, Trace, find_gpu, find_model, replay
from vmm.simulate.gpus import ZERO_COST

MODEL, GPU = find_model("llama-3.1-8b"), find_gpu("a100-80gb")
TOKENS_A_PAGE = 16
OURS = ("vmm", "vmm-zero-cost")


def settings(**changed):
    base = {"memory_bytes": 24 * 2**30, "max_tokens": 8192, "max_sequences": 64, "batch_tokens": 512}
    return Settings(MODEL, GPU, **(base | {"call_times": GPU.call_times} | changed))


def trace(*requests):
    return Trace("made up", "csv", [Request(*each) for each in requests], "")


def seconds(settings, tokens, context):
    """Of an iteration of one sequence: the roofline, written out once more."""
    weights, kv, flops, attention, bandwidth, rate, launch = settings.roofline
    moved = weights + kv * (context + tokens)
    computed = flops * tokens + attention * tokens * (context + (tokens + 1) / 2)
    return launch + max(moved / bandwidth, computed / rate)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_one_request_takes_what_its_iterations_take(allocator):
    given = settings(call_times=ZERO_COST)
    found = replay(trace((0.0, 1200, 5)), given, allocator).metrics
    chunks = [(512, 0), (512, 512), (176, 1024)]
    first = sum(seconds(given, *chunk) for chunk in chunks)
    rest = sum(seconds(given, 1, 1200 + i) for i in range(4))
    assert found["ttft_p50_ms"] == pytest.approx(1e3 * first, rel=1e-6)
    assert found["latency_p50_ms"] == pytest.approx(1e3 * (first + rest), rel=1e-6)
    assert found["iterations"] == 7
    assert found["throughput_tokens_per_s"] == pytest.approx(5 / (first + rest), rel=1e-6)
    assert found["computed_over_needed"] == 1


def busy(count=300, gap=0.02):
    return trace(*((i * gap, 40 + 37 * i % 1500, 1 + 53 * i % 300) for i in range(count)))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_every_request_is_over(allocator):
    requests = busy()
    found = replay(requests, settings(max_tokens=2048), allocator).metrics
    assert found["completed"] == len(requests.requests)
    assert found["rejected"] == 0
    assert found["output_tokens"] == requests.output_tokens
    assert found["prompt_tokens"] == requests.prompt_tokens
    assert 0 <= found["fragmentation"] < 1
    assert found["ttft_p50_ms"] <= found["ttft_p99_ms"] <= found["duration_ms"]


def test_the_same_twice():
    first, second = (replay(busy(), settings(), "vmm") for _ in range(2))
    assert first == second


def test_first_come_first_served():
    """A long prompt first; the short one behind it gets its token in the iteration of the last chunk."""
    found = replay(trace((0.0, 2000, 1), (0.0, 10, 1)), settings(call_times=ZERO_COST), "vmm").metrics
    assert found["iterations"] == 4  # 512, 512, 512, 464 + 10
    assert found["ttft_p50_ms"] == found["ttft_p99_ms"]


def test_requests_that_never_fit_are_rejected():
    given = settings(memory_bytes=20 * 2**30)
    fits = given.kv_bytes // MODEL.kv_bytes_per_token
    assert fits < 8192 * 4
    requests = trace((0.0, 8192, 1), (0.0, 8000, 192), (1.0, 8000, 193))
    assert replay(requests, given, "vmm").metrics["rejected"] == 2
    given = settings(memory_bytes=20 * 2**30, max_tokens=10 * fits)
    requests = trace((0.0, fits, 1), (0.0, fits // 2, 1))
    for allocator in (*OURS, "paged16"):
        found = replay(requests, given, allocator).metrics
        assert (found["completed"], found["rejected"]) == (1, 1), allocator
    assert replay(requests, given, "static").metrics["rejected"] == 2


def test_nothing_completed_is_no_error():
    found = replay(trace((0.0, 9000, 1)), settings(), "vmm").metrics
    assert (found["completed"], found["throughput_tokens_per_s"], found["ttft_p99_ms"]) == (0, 0, 0)


@pytest.mark.parametrize("allocator", [*OURS, "paged16"])
def test_who_is_preempted_is_computed_again(allocator):
    """Prompts fit, what is generated does not."""
    given = settings(memory_bytes=18 * 2**30)
    pages = given.kv_bytes // 2**21
    count = 8
    prompt = TOKENS_A_PAGE * (pages // count - 4)
    found = replay(trace(*((0.0, prompt, 400) for _ in range(count))), given, allocator).metrics
    assert found["completed"] == count
    assert found["preempted"] > 0
    assert found["computed_over_needed"] > 1


def test_as_many_sequences_as_there_is_memory_for():
    given = settings(memory_bytes=19 * 2**30, max_tokens=1024)
    requests = trace(*((0.0, 480, 32) for _ in range(60)))  # 32 pages at the end
    pages = given.kv_bytes // 2**21
    fit = int(0.99 * pages) // 32
    assert 5 < fit < 60
    for allocator in (*OURS, "paged16"):
        assert abs(replay(requests, given, allocator).metrics["peak_sequences"] - fit) <= 1, allocator
    assert replay(requests, given, "static").metrics["peak_sequences"] == int(0.99 * pages) // 64


def test_what_is_mapped_by_who_needs_it_stalls():
    """1,024 tokens take a page for K and V of each layer."""
    times = GPU.call_times
    found = replay(trace((0.0, 1200, 1)), settings(), "per-layer-sync").metrics
    each_us = 64 * (times.create_us + times.map_us + times.set_access_us)
    stalled = found["stall_ms_per_1000_iterations"] * found["iterations"] / 1000
    assert stalled == pytest.approx(2 * each_us / 1000)
    assert found["longest_stall_ms"] == pytest.approx(each_us / 1000)


def test_a_pager_in_time_hides_everything():
    found = replay(busy(), settings(memory_bytes=80 * 2**30), "vmm").metrics
    assert found["hide_ratio"] == 1
    assert found["stall_ms_per_1000_iterations"] == 0
    assert found["pages_first_used"] > 0


def test_a_pager_that_is_late_is_seen():
    slow = replace(GPU.call_times, wake_us=5e6)
    found = replay(busy(), settings(call_times=slow), "vmm").metrics
    assert found["hide_ratio"] < 0.9
    assert found["stall_ms_per_1000_iterations"] > 1
    free = replay(busy(), settings(), "vmm-zero-cost").metrics
    assert found["duration_ms"] > free["duration_ms"]


def test_slots_that_are_used_again_are_mapped_already():
    found = replay(busy(gap=0.2), settings(memory_bytes=80 * 2**30), "vmm").metrics
    assert found["pages_mapped"] < found["pages_without_reuse"] / 2


def test_larger_pages_waste_more():
    found = [
        replay(busy(), settings(page_bytes=mib * 2**20), "vmm").metrics["fragmentation"] for mib in (2, 16)
    ]
    assert found[0] < found[1] / 2


def test_layers_apart_waste_as_much_as_their_pages_hold_more():
    """32 extents of 2 MiB, or one of 64."""
    apart = replay(busy(), settings(layers_per_extent=1), "vmm").metrics["fragmentation"]
    together = replay(busy(), settings(page_bytes=64 * 2**20), "vmm").metrics["fragmentation"]
    assert apart == pytest.approx(together, rel=0.1)


def test_extents_may_differ():
    """Five of 7, 7, 7, 7 and 4 layers waste more than one of all, and less than 32 of one."""
    uneven = settings(layers_per_extent=7)
    assert uneven.layers == [7, 7, 7, 7, 4]
    assert sum(uneven.records_bytes) == MODEL.kv_bytes_per_token
    assert uneven.records_bytes[0] * 4 == uneven.records_bytes[4] * 7
    together, apart, most = (
        replay(busy(), settings(layers_per_extent=layers), "vmm").metrics["fragmentation"]
        for layers in (32, 7, 1)
    )
    assert together < apart < most
    found = replay(busy(), uneven, "vmm").metrics
    assert found["completed"] == 300
    assert found["pages_first_used"] > 0


def test_samples():
    result = replay(busy(), settings(), "vmm")
    assert len(result.samples) > 100
    for sample in result.samples:
        assert 0 <= sample.live_bytes <= sample.held_bytes
        assert sample.reclaimable_bytes <= sample.mapped_bytes <= settings().kv_bytes
    assert result.samples[-1].at_ms <= result.metrics["duration_ms"] + 1000


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"batch_tokens": 64}, "batch_tokens"),
        ({"layers_per_extent": 33}, "layers_per_extent"),
        ({"layers_per_extent": -1}, "layers_per_extent"),
        ({"page_bytes": 2**20}, "page_bytes"),
        ({"page_bytes": 3 * 2**20}, "page_bytes"),
        ({"memory_bytes": 16 * 2**30}, "llama-3.1-8b needs more than"),
    ],
)
def test_refusals(changed, named):
    with pytest.raises(InvalidArgument, match=named):
        settings(**changed)
