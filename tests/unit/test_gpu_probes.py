"""The GPU script's probes on the stand-in: every line of them but torch's on a GPU runs, in child processes.

What they find is the stand-in's; here it is only looked at to see that the probe asked what it says.
"""

import pytest
import torch
from cuda_standin import library
from probing import PREAMBLE, found

from child import run_child

WHERE = ("thread", "process")


@pytest.fixture(scope="module", autouse=True)
def built():
    library()


@pytest.fixture(scope="module")
def driver_answers():
    return found("""
show(
    attributes=probe_what.attributes,
    host=probe_what.host_pages,
    numa=probe_what.host_numa_pages,
    times=lambda b: probe_times.call_times(b, in_all=4 * 2**20, sizes=(64 * KIB, 256 * KIB)),
    spans=lambda b: probe_times.spans(b, counts=(1, 4)),
    beside=lambda b: probe_beside_work.beside_long_work(b, work_bytes=64 * KIB, memsets=20),
    jitter=lambda b: probe_jitter.launch_jitter(b, seconds=0.2),
    events=lambda b: probe_times.event_times(b, rounds=20),
    zeroing=lambda b: probe_times.zeroing(b, sizes=(64 * KIB, 128 * KIB)),
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


def test_calls_beside_work(driver_answers):
    beside = driver_answers["beside"]
    assert beside["cuMemMap beside memsets"]["work_still_running"]  # the stand-in runs nothing before it must
    assert len(beside) == 7  # no kernel of torch's here
    jitter = driver_answers["jitter"]
    kinds = ("a call without memory", "create and release", "set access", "map and unmap")
    for name in ("idle", *(f"{kind}, in another {where}" for kind in kinds for where in WHERE)):
        seen = jitter[name]
        assert not isinstance(seen, str), seen
        assert seen["launch"]["n"] == seen["launch_and_end"]["n"] > 0
        assert name == "idle" or seen["in_background"] > 0
    assert len(jitter) == 1 + 2 * 5


def test_another_process_that_does_not_end_costs_its_own_lines():
    jitter = found("""
import subprocess
from contextlib import contextmanager
@contextmanager
def never_ends(b, name):
    def done():
        raise subprocess.TimeoutExpired("the other process", 10)
    yield done
probe_jitter._process = never_ends
show(jitter=lambda b: probe_jitter.launch_jitter(b, seconds=0.02))
""")["jitter"]
    assert len(jitter) == 1 + 2 * 5
    said = [seen for name, seen in jitter.items() if name.endswith("in another process")]
    assert len(said) == 5
    assert all(seen.startswith("TimeoutExpired: ") for seen in said)


def test_calls_of_every_step(driver_answers):
    for name, seen in driver_answers["events"].items():
        assert isinstance(seen, bool) or seen["n"] in (20, 40), name
    assert len(driver_answers["events"]) == 2 * 10 + 2
    assert driver_answers["zeroing"]["128 KiB"]["n"] == 20
    assert len(driver_answers["zeroing"]["bytes of pages created anew"]) == 4


OVER_READ = """
import torch
from vmm.benchmarks.attention_kernels import reference
def right(q, k, v):
    return torch.cat([reference(q[:, at : at + 1], k, v) for at in range(q.shape[1])], 1)
def reads_on(q, k, v):
    one_more = (1, k.shape[1] + 1, *k.shape[2:])
    return right(q, *(each.as_strided(one_more, each.stride()) for each in (k, v)))
def probe(kernel, beyond):
    return lambda b: probe_over_read.over_read(kernel, beyond, b, device="cpu")
"""


def test_over_reads_are_seen():
    answers = found(
        OVER_READ
        + """
show(
    fine=probe(right, "NaN"), unmapped=probe(right, "unmapped"), wrong=probe(reads_on, "NaN"),
    torchs=probe("FLASH_ATTENTION", "unmapped"), refused=probe("EFFICIENT_ATTENTION", "NaN"),
)
"""
    )
    for name in ("fine", "unmapped", "torchs"):
        for queries in (1, 64):
            assert answers[name][f"{queries} queries, relative error"] < 0.02
    assert str(answers["wrong"]["1 queries, relative error"]) == "nan"
    assert "Error" in answers["refused"]["1 queries"]


def test_an_over_read_into_nothing_ends_the_process():
    assert run_child(PREAMBLE + OVER_READ + 'show(x=probe(reads_on, "unmapped"))').returncode < 0


def test_what_sdpa_chooses():
    answers = found("""
show(choices=lambda b: probe_sdpa.choices(b, device="cpu", context=64))
""")["choices"]
    assert "ran: " in answers["bfloat16, 1 queries, 4 layers in a record"]
    assert "attention" in answers["float32, 64 queries, 1 layers in a record"]
    assert len(answers["first and second calls of FLASH_ATTENTION, ms"]) == 4
    assert "Error" in answers["first and second calls of CUDNN_ATTENTION, ms"]


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
from attention_setting import TINY
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
import importlib
for where in probes.PROBES.values():
    module, _, name = where.rpartition(".")
    assert callable(getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)), where
print(json.dumps([list(probes.items()), list(questions.items())]))
""")
    assert {name.split()[0] for each in names for name in each} == {str(number) for number in range(1, 11)}
    assert len(names[0]) == 14


def test_a_mistake_in_one_probe_costs_that_one():
    names = found("""
questions.MODULES = ("no_such_module", "probe_graphs")
found = questions.items()
try:
    found["no_such_module"]()
except ModuleNotFoundError:
    print(json.dumps(list(found)))
""")
    assert "no_such_module" in names
    assert len(names) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_what_needs_torch_on_a_gpu_is_skipped_without():
    child = run_child(PREAMBLE + "show(x=probe_memory.mixed_range)")
    assert "SkipTest: torch has no CUDA device" in child.stderr
