"""``vmm bench map``: what it reports, and that it leaves nothing behind. No test asserts a time."""

import gc
import io
import re
import sys

import cuda_standin
import pytest
from typer.testing import CliRunner

from child import run_child
from vmm import Error, _core, cli
from vmm.benchmarks import map as bench
from vmm.benchmarks import map_peers
from vmm.benchmarks.map_pages import CALLS, Pages

RATIOS = {"cpu": {"torch_empty", "mmap_fresh"}, "cuda": {"cu_mem_alloc"}}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"PAGES_MIB": (2, 4), "PAGES_PER_CALL": (1, 3), "SECONDS": 0.02}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "PEERS_SECONDS", 0.1)


@pytest.fixture
def standin():
    found = cuda_standin.configured()
    gc.collect()
    yield found
    found.fail_at(0)


def reported(device):
    return bench.run(lambda stage: None, device)


def require_figures(report, device):
    sizes = [f"{mib}mib_{count}" for mib in (2, 4) for count in (1, 3)]
    slowest = {f"{call}_us_p99_{size}" for call in CALLS for size in sizes}
    medians = {name.replace("p99", "p50") for name in slowest}
    growth = {"grow_page_us", "grow_2mib_us", "grow_page_us_p99", "grow_2mib_us_p99"}
    expected = slowest | medians | growth | {f"{peer}_over_grow_2mib" for peer in RATIOS[device]}
    expected |= {f"repetitions_{size}" for size in sizes}
    expected |= {f"core_over_bindings_{call}" for call in CALLS if device == "cuda"}
    assert report.metrics.keys() == expected
    assert all(value > 0 for value in (*report.metrics.values(), *report.peers.values()))
    for name in slowest:
        assert report.metrics[name] >= report.metrics[name.replace("p99", "p50")]
    for name in report.peers.keys() - {name for name in report.peers if name.endswith("p99")}:
        assert report.peers[f"{name}_p99"] >= report.peers[name]
    for peer in RATIOS[device]:
        ratio = report.peers[f"{peer}_us"] / report.metrics["grow_2mib_us"]
        assert report.metrics[f"{peer}_over_grow_2mib"] == pytest.approx(ratio, rel=0.01)
    assert all(report.metrics[f"repetitions_{size}"] >= bench.FEWEST for size in sizes)


def test_on_the_host(monkeypatch):
    driver = _core.HostDriver("vmm-bench-test")
    monkeypatch.setattr(_core, "HostDriver", lambda: driver)
    report = reported("cpu")
    require_figures(report, "cpu")
    assert report.device == "cpu"
    assert report.peers.keys() == {f"{peer}_us{which}" for peer in RATIOS["cpu"] for which in ("", "_p99")}
    assert (report.environment["skipped"], report.environment["left_out"]) == ("nothing", "nothing")
    assert "stand-in" not in report.environment
    assert driver.committed_bytes == 0


def test_on_the_standin(standin):
    pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    before = standin.live()
    report = reported("cuda:1")
    require_figures(report, "cuda")
    assert "stand-in" in report.device
    assert "no figure here is a performance figure" in report.environment["stand-in"]
    assert {f"bindings_{call}_us" for call in CALLS} < report.peers.keys()
    assert "torch_empty (this torch cannot use CUDA)" in report.environment["left_out"]
    assert standin.live() == before


def test_what_would_take_too_much_memory_is_skipped_and_named(standin, monkeypatch):
    monkeypatch.setattr(bench, "SHARE_OF_MEMORY", 8 * 2**20 / 2**30)  # of the stand-in's capacity
    report = reported("cuda")
    assert re.fullmatch(r"3 x 4 MiB \([\d.]+ [GM]iB available\)", report.environment["skipped"])
    assert "map_us_p50_4mib_1" in report.metrics
    assert "map_us_p50_4mib_3" not in report.metrics
    monkeypatch.setattr(bench, "available_bytes", lambda: 0)
    skipped = reported("cpu").environment["skipped"]
    assert [what.partition(" (")[0] for what in skipped.split(", ")] == [
        "1 x 2 MiB",
        "3 x 2 MiB",
        "1 x 4 MiB",
        "3 x 4 MiB",
    ]


def test_without_cuda_bindings_the_rest_is_measured(standin, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    report = reported("cuda")
    assert report.peers == {}
    left_out = report.environment["left_out"]
    assert "cu_mem_alloc (cuda-bindings is not installed)" in left_out
    assert ", bindings (cuda-bindings is not installed)" in left_out
    assert report.metrics["grow_page_us"] > 0


def test_a_call_that_fails_leaves_nothing_behind(standin, monkeypatch):
    """Each call to libcuda in turn: our core's, and those through cuda-bindings."""
    for name, value in {"PAGES_MIB": (2,), "PAGES_PER_CALL": (2,), "FEWEST": 1, "MOST": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "environment", lambda *packages: {})
    before = standin.live()
    failed = set()
    for n in range(1, 1000):
        standin.failed()
        standin.fail_at(n)
        try:
            reported("cuda")
        except Error as error:
            failed.add(str(error).partition("(")[0].partition(" ")[0])
        injected = standin.failed()
        standin.fail_at(0)
        if standin.live() != before:
            gc.collect()  # the error's traceback may hold the driver
        assert standin.live() == before, f"call {n}: {standin.last_failed}"
        if not injected:
            break
    assert n > 100
    driver_calls = {"cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease"}
    assert driver_calls | {"cuMemAddressReserve", "cuMemAddressFree"} <= failed


def test_pages_are_undone_where_they_stand(standin):
    driver = _core.CudaDriver(0)
    made = standin.live()
    with Pages(driver, 2**21, 2) as pages:
        pages.create()
        pages.map()
        assert len(standin.live()["mappings"]) == len(made["mappings"]) + 2
    assert standin.live() == made


def test_torch_gets_fresh_memory_every_time():
    result = run_child("""
        import resource
        from vmm.benchmarks import map_peers
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with map_peers.torch_empty("cpu") as once:
            for _ in range(10):
                before = faults()
                once()
                print(faults() - before)
    """)
    counts = [int(count) for count in result.stdout.split()]
    assert len(counts) == 10, result.stderr
    assert min(counts) >= (1 if "anonymous: [always]" in bench._huge_pages() else 8)  # all of it is touched


def test_expandable_segments_are_insisted_on():
    with (
        pytest.raises(map_peers.LeftOut, match="did not make its segments expandable"),
        map_peers.expandable_segments("cpu"),
    ):
        pass


def test_expandable_segments_are_measured_by_turns(monkeypatch, tmp_path, capsys):
    other = tmp_path / "other"
    other.write_text(
        '#!/bin/sh\nexec 2>/dev/null\n[ "$PYTORCH_CUDA_ALLOC_CONF$PYTORCH_ALLOC_CONF" = '
        "expandable_segments:Trueexpandable_segments:True ] && echo ready\n"
        'while read line; do echo "0.25"; done\n'
    )
    other.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(other))
        patch.setattr(map_peers, "_torch", lambda device: None)
        with map_peers.expandable_segments("cuda") as once:
            assert [once(), once()] == [0.25, 0.25]
    monkeypatch.setattr(map_peers, "_require_expandable", lambda device: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n\n"))
    map_peers.serve("cpu")
    ready, *seconds = capsys.readouterr().out.split()
    assert ready == "ready"
    assert len(seconds) == 3
    assert all(float(value) > 0 for value in seconds)


def test_a_percentile_is_a_sample():
    seconds = [i * 1e-6 for i in range(200, 0, -1)]
    assert [round(bench._us(seconds, share)) for share in (50, 99)] == [100, 198]
    assert [round(bench._us(seconds[:3], share)) for share in (50, 99)] == [199, 200]


def test_only_the_benchmark_is_listed():
    listed = CliRunner().invoke(cli.app, ["bench"]).output.split()
    assert [name for name in listed if name.startswith("map")] == ["map"]
