"""``vmm bench tenants``, in small: it is deterministic, so what it finds may be asserted."""

import json
import math

from vmm.benchmarks import tenants


def small(monkeypatch):
    monkeypatch.setattr(tenants, "SEEDS", 2)
    monkeypatch.setattr(tenants, "ITERATIONS", 500)
    told = []
    report = tenants.run(told.append, "simulation")
    assert told == ["seed 1 of 2", "seed 2 of 2"]
    return report


def test_every_guarantee_is_met_and_without_tenants_it_is_not(monkeypatch):
    report = small(monkeypatch)
    metrics = report.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["guarantee_violations"] == 0
    assert metrics["guaranteed_steps"] > 500
    assert metrics["guarantee_violations_without"] > 0
    assert metrics["time_to_guarantee_max_ms"] < metrics["time_to_guarantee_max_ms_without"]
    assert metrics["pages_zeroed"] > 0
    assert metrics["pages_zeroed_without"] == 0
    assert 0 < metrics["throughput_with_vs_without"] < 2
    printed = json.loads(report.to_json())
    assert set(printed) == {"bench", "device", "metrics", "peers", "environment"}
    assert printed["bench"] == "tenants"


def test_the_same_seeds_give_the_same_numbers(monkeypatch):
    assert small(monkeypatch).metrics == small(monkeypatch).metrics


def test_the_percentile():
    assert tenants._p99_ms([]) == 0
    assert tenants._p99_ms([10**6 * (i + 1) for i in range(200)]) == 198
    assert tenants._p99_ms([5 * 10**6]) == 5
