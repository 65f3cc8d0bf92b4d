"""The attention benchmark's parts, on the CPU and tiny: everything but CUDA's events and kernels."""

import json
from dataclasses import replace

import pytest
import torch
from attention_setting import KIB, SMALL, TINY, setting
from typer.testing import CliRunner

from vmm import Pool
from vmm.benchmarks import attention, attention_memory
from vmm.benchmarks.attention_comparison import comparison
from vmm.benchmarks.attention_kernels import (
    Mismatch,
    reference,
    sdpa,
    seqused,
)
from vmm.benchmarks.attention_results import Case, Results
from vmm.benchmarks.attention_shapes import (
    FULL,
    LLAMA_8B,
    LLAMA_70B,
    MIB,
    Shape,
    held_bytes_per_token,
    split_by_memory,
)
from vmm.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_whole_benchmark_gives_the_metrics_of_the_issue(flash):
    said = []
    kernels = {"sdpa": sdpa(None), "seqused": seqused}
    results = attention.measured(TINY, "cpu", kernels, said.append)
    metrics = results.metrics()
    for arm in ("G1", "G4", "Gall", "kvtensor"):
        for phase in ("decode", "prefill"):
            for suffix in ("", "_seqused", "_0.25MiB", "_seqused_0.25MiB"):
                assert metrics[f"{phase}_ratio_{arm}{suffix}"] > 0
        assert metrics[f"decode_ratio_{arm}_small_b3_64"] > 0
    assert {"ours_over_paged", "ours_over_paged_Gall", "flash_over_paged", "ours_over_paged_0.25MiB"} <= set(
        metrics
    )
    peers = results.peers()
    assert peers["stock_decode_sdpa_small_b1_32_ms"] > 0
    assert peers["paged_decode_triton_small_b1_32_ms"] > 0
    assert peers["skipped"] == "nothing"
    assert "gather" in peers["paged_kernel"]
    assert any("decode b3_64" in stage for stage in said)
    json.dumps([metrics, peers])


def test_means_are_geometric_and_names_systematic():
    results = Results(2 * MIB)
    for context, ours in ((1024, 1.0), (4096, 4.0)):
        seconds = {"stock": 2.0, "G1": ours, "Gall": 8.0}
        results.seconds[Case(LLAMA_8B, Shape("decode", 16, context), "sdpa", 2 * MIB)] = seconds
        results.seconds[Case(LLAMA_8B, Shape("decode", 16, context), "triton", 2 * MIB)] = {
            "stock": 1.0,
            "G1": 3.0,
            "paged": 2.0,
        }
    results.seconds[Case(LLAMA_8B, Shape("prefill", 1, 1000), "cudnn", 16 * MIB)] = {"stock": 1.0, "G4": 2.0}
    metrics = results.metrics()
    assert metrics["decode_ratio_G1"] == pytest.approx(1.0)  # of 2 and 1/2
    assert metrics["decode_ratio_Gall"] == pytest.approx(0.25)
    assert metrics["decode_ratio_G1_8b_b16_1k"] == 2.0
    assert metrics["decode_ratio_G1_8b_b16_4k"] == 0.5
    assert metrics["ours_over_paged"] == pytest.approx(1.5)
    assert metrics["flash_over_paged_8b_b16_4k"] == 2.0
    assert metrics["prefill_ratio_G4_cudnn_16MiB_8b_b1_1000"] == 0.5
    assert "decode_ratio_stock" not in metrics


def test_every_memory_holds_the_same_values_at_the_strides_of_its_layout():
    record = 2 * SMALL.kv_heads * SMALL.dim
    with comparison(setting(), SMALL, 64 * KIB, 200) as held:
        strides = {name: each.layers[3][1].stride(0) for name, each in held.held.items()}
        assert strides == {
            "stock": record // 2,
            "kvtensor": record // 2,
            "G1": record,
            "G4": 4 * record,
            "Gall": 6 * record,
        }
        for each in held.held.values():
            assert len(each.layers) == 4
            for ours, stock in zip(each.layers, held.held["stock"].layers, strict=True):
                assert torch.equal(ours[0], stock[0])
                assert torch.equal(ours[1], stock[1])
        keys = held.held["Gall"].layers[2][0]
        apart = held.held["Gall"].layers[3][0].data_ptr() - keys.data_ptr()
        assert apart == record * keys.itemsize  # the next layer, in the same record


def test_the_pool_is_as_large_as_what_it_holds():
    with Pool(attention_memory.pool_bytes(SMALL, 4, 1000, 256 * KIB), lookahead_pages=0) as pool:
        source = attention_memory.stock(SMALL, 4, 1000, "cpu")
        held = [attention_memory.kv_tensors(pool, source, 256 * KIB)]
        held += [
            attention_memory.record_tensors(pool, source, SMALL, group, 256 * KIB)
            for group in ("G1", "G4", "Gall")
        ]
        needed = pool.stats().kept_bytes
        assert needed <= pool.budget_bytes <= needed + needed // 8 + 16 * 256 * KIB
        for each in held:
            each.close()


def test_wrong_results_are_refused():
    bench = setting(wrong=lambda q, k, v: reference(q, k, v) * (1.01 if k.stride(1) == 32 else 1.5))
    with comparison(bench, SMALL, 64 * KIB, 64) as held, pytest.raises(Mismatch, match="G1"):
        held.measure(Shape("decode", 1, 64))
    bench = setting(wrong=lambda q, k, v: reference(q, k, v) * float("nan"))
    with comparison(bench, SMALL, 64 * KIB, 64) as held, pytest.raises(Mismatch, match=r"torch\.empty"):
        held.measure(Shape("decode", 1, 64))


def test_what_torch_refuses_is_named_and_left_out():
    asked = []

    def refuses(q, k, v):
        raise RuntimeError("No available kernel")

    def picky(q, k, v):
        asked.append(k.stride(1))
        if k.stride(1) == 6 * 64:
            raise RuntimeError("strides")
        return sdpa(None)(q, k, v)

    bench = setting(refuses=refuses, picky=picky)
    with comparison(bench, SMALL, 64 * KIB, 64) as held:
        held.measure(Shape("decode", 1, 64))
        first = asked.count(6 * 64)
        held.measure(Shape("decode", 1, 32))
    assert asked.count(6 * 64) == first == 1
    assert set(bench.results.unavailable) == {"refuses decode", "picky decode on Gall"}
    assert "No available kernel" in bench.results.peers()["unavailable: refuses decode"]
    metrics = bench.results.metrics()
    assert "decode_ratio_G4_picky" in metrics
    assert "decode_ratio_Gall_picky" not in metrics


def test_what_takes_too_long_is_named():
    bench = setting(replace(TINY, longest_s=0, shape_s=0))
    with comparison(bench, SMALL, 64 * KIB, 32) as held:
        held.measure(Shape("decode", 1, 32))
    assert bench.results.seconds == {}
    assert "3 rounds would take" in bench.results.skipped[0]
    results = attention.measured(replace(TINY, total_s=-1), "cpu", {"sdpa": sdpa(None)}, print)
    assert results.seconds == {}
    assert "no time was left" in results.peers()["skipped"]


def test_what_does_not_fit_is_named(monkeypatch):
    free = 130 * held_bytes_per_token(SMALL, 4)
    fitting, too_large = split_by_memory(TINY, SMALL, free)
    assert {shape.tokens for shape in fitting} == {32, 64, 96}
    assert [shape.name for shape in too_large] == ["b3_64"]
    assert split_by_memory(TINY, SMALL, 0)[0] == []
    monkeypatch.setattr(attention, "free_bytes", lambda device: 0)
    results = attention.measured(TINY, "cpu", {"sdpa": sdpa(None)}, print)
    assert "small decode b3_64: does not fit" in results.skipped


def test_the_full_scale_is_the_issues():
    shapes = {(shape.phase, shape.batch, shape.context) for shape in FULL.shapes()}
    assert {("decode", batch, 1024 * k) for batch in (1, 16, 64) for k in (1, 4, 16, 128)} <= shapes
    assert {("prefill", 1, 1024), ("prefill", 1, 131_072)} <= shapes
    assert (LLAMA_8B.record_bytes(32), LLAMA_70B.record_bytes(80)) == (131_072, 327_680)
    on_h100 = split_by_memory(FULL, LLAMA_8B, 78 * 1024 * MIB)[0]
    assert Shape("decode", 1, 131_072) in on_h100
    assert Shape("decode", 64, 131_072) not in on_h100


def test_without_a_gpu_it_is_listed_and_says_why():
    assert "attention" in CliRunner().invoke(app, ["bench"]).output.split()
    result = CliRunner().invoke(app, ["bench", "attention", "--device", "cpu"])
    assert result.exit_code == 2
    assert "cuda" in result.output
