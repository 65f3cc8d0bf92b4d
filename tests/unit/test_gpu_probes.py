"""The GPU script's probes on the stand-in: every line of them but torch's on a GPU runs, in child processes.

What they find is the stand-in's; here it is only looked at to see that the probe asked what it says.
"""

import json
from pathlib import Path

import pytest
import torch
from cuda_standin import library

from child import run_child

ROOT = Path(__file__).parents[2]
PREAMBLE = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests/unit")!r}]
import cuda_standin
standin = cuda_standin.configured(granularity=65536, capacity=2**30)
standin.set(queue_limit=4096)
from conformance_bench import Bench
from cuda_calls import Cuda
from benchmarks.gpu import (
    probe_attention, probe_beside_work, probe_captures, probe_memory, probe_refusals, probe_times, probe_what
)
KIB = 1024
def show(**probes):
    cuda = Cuda(standin.library)
    print(json.dumps({{name: dict(probe(Bench(cuda))) for name, probe in probes.items()}}))
"""


@pytest.fixture(scope="module", autouse=True)
def built():
    library()


def found(code):
    child = run_child(PREAMBLE + code, timeout=100)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def driver_answers():
    return found("""
show(
    attributes=probe_what.attributes,
    host=probe_what.host_pages,
    numa=probe_what.host_numa_pages,
    times=lambda b: probe_times.call_times(b, in_all=4 * 2**20, sizes=(64 * KIB, 256 * KIB)),
    spans=lambda b: probe_times.spans(b, counts=(1, 4)),
    refusals=probe_refusals.refusals,
    captures=probe_captures.captures,
    beside=lambda b: probe_beside_work.beside_long_work(b, work_bytes=64 * KIB, memsets=20),
    jitter=lambda b: probe_beside_work.launch_jitter(b, seconds=0.05),
)
""")


def test_attributes_and_host_memory(driver_answers):
    assert driver_answers["attributes"]["granularity_minimum"] == 65536
    assert driver_answers["attributes"]["virtual_memory_management"] == 1
    assert driver_answers["attributes"]["largest_reservation_bits"] >= 40
    for kind in ("host", "numa"):
        assert driver_answers[kind]["create"] == "0 CUDA_SUCCESS"
        assert driver_answers[kind]["is_what_was_set"]
        assert driver_answers[kind]["read_by_the_cpu"]


def test_times(driver_answers):
    calls = ["AddressReserve", "Create", "Map", "SetAccess", "Unmap", "Release", "AddressFree"]
    for size, pages in ((64, 64), (256, 16)):
        for threads in (1, 2):
            for call in calls:
                seen = driver_answers["times"][f"cuMem{call}, {size} KiB, {threads} thread(s)"]
                in_each_lane = 1 if "Address" in call else pages // threads
                assert seen["n"] == threads * in_each_lane
                assert 0 < seen["p50_us"] <= seen["p99_us"] <= seen["max_us"]
    assert len(driver_answers["times"]) == 2 * 2 * len(calls)
    assert driver_answers["spans"]["cuMemSetAccess over 4 mappings"]["n"] == 20
    assert set(driver_answers["spans"]) == {
        f"cuMem{call} over {count} mappings" for call in ("SetAccess", "Unmap") for count in (1, 4)
    }


def test_refusals(driver_answers):
    answers = driver_answers["refusals"]
    invalid, fine = "1 CUDA_ERROR_INVALID_VALUE", "0 CUDA_SUCCESS"
    assert answers["unmap a hole"] == invalid
    assert answers["unmap neighbours in one call"] == answers["open twice"] == fine
    assert answers["map less than the handle"] == invalid
    assert answers["map over half of a mapping"] == invalid
    halves = answers["unmap the first half of a mapping; read both; unmap all"]
    assert halves == f"{invalid}, {fine}, {fine}, {fine}"
    comes_back = answers["release a mapped handle; read; unmap; does the memory come back"]
    assert comes_back == f"{fine}, {fine}, {fine}, yes"
    assert answers["read an unmapped address"] == invalid
    assert len(answers) == 25
    assert not [what for what in answers if "context" in what]


def test_captures(driver_answers):
    answers = driver_answers["captures"]
    assert len(answers) == 16
    ways = answers["cuMemMap"]
    assert len(ways) == 12
    assert ways["GLOBAL, own thread"].startswith("900 ")
    assert "capture 901" in ways["GLOBAL, own thread"]
    assert ways["GLOBAL, another thread"].startswith("900 ")
    assert ways["GLOBAL, another thread, RELAXED"] == "0 CUDA_SUCCESS; capture 0 CUDA_SUCCESS"
    assert ways["RELAXED, own thread, RELAXED"] == "0 CUDA_SUCCESS; capture 0 CUDA_SUCCESS"


def test_calls_beside_work(driver_answers):
    beside = driver_answers["beside"]
    assert beside["cuMemMap beside memsets"]["work_still_running"]  # the stand-in runs nothing before it must
    assert len(beside) == 7  # no kernel of torch's here
    jitter = driver_answers["jitter"]
    assert set(jitter) == {"idle", "a call without memory", "map and unmap", "create and release"}
    for name, seen in jitter.items():
        assert seen["launch"]["n"] == seen["launch_and_end"]["n"] > 0
        assert (seen["in_background"] > 0) == (name != "idle")


def test_tensors_over_host_device_and_no_pages():
    answers = found("""
show(
    mixed=lambda b: probe_memory.mixed_range(b, device="cpu", half=4),
    unmapped=lambda b: probe_memory.unmapped_tensor(b, device="cpu"),
)
""")
    assert answers["mixed"]["access_of_both"] == "0 CUDA_SUCCESS"
    for part in ("device", "host", "both"):
        assert answers["mixed"][f"{part}_read_gb_per_s"] > 0
    assert answers["unmapped"]["made"] == "cpu"
    assert answers["unmapped"]["page_under_it"] == "written and read"


def test_attention_probes():
    answers = found("""
from dataclasses import replace
from flash_twin import flash_twin
from test_bench_attention import TINY
from vmm.benchmarks import attention_kernels
attention_kernels.flash_forward = flash_twin
one = replace(TINY, decode_batches=(2,), decode_contexts=(64,), prefill_contexts=(), page_bytes=(65536,))
show(
    seqused=lambda b: probe_attention.seqused_recipe(b, device="cpu", heads=1),
    layouts=lambda b: probe_attention.decode_by_layout(b, device="cpu", scale=one),
)
""")
    assert answers["seqused"]["strides_of_k"] == [1000 * 1024, 1024, 128, 1]
    for beyond in ("random", "zero", "NaN"):
        assert answers["seqused"][f"relative_error_with_{beyond}_beyond_the_length"] < 0.02
    assert {"decode_ratio_G1", "decode_ratio_G4", "decode_ratio_Gall"} <= set(answers["layouts"])


def test_attention_that_reads_beyond_the_length_is_wrong_data():
    child = run_child(
        PREAMBLE
        + """
from flash_twin import flash_twin
from vmm.benchmarks import attention_kernels
def all_of_it(*arguments, seqused_k):
    return flash_twin(*arguments, seqused_k=seqused_k * 0 + 1000)
attention_kernels.flash_forward = all_of_it
show(seqused=lambda b: probe_attention.seqused_recipe(b, device="cpu", heads=1))
"""
    )
    assert child.returncode != 0
    assert "WrongData" in child.stderr


def test_every_probe_is_an_item_of_the_script():
    names = found("""
from benchmarks.gpu import probes
print(json.dumps(sorted(probes.PROBES)))
""")
    assert {name[0] for name in names} == set("1234567")
    assert len(names) == 13


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_what_needs_torch_on_a_gpu_is_skipped_without():
    child = run_child(PREAMBLE + "show(x=probe_memory.mixed_range)")
    assert "SkipTest: torch has no CUDA device" in child.stderr
