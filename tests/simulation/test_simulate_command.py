"""``vmm simulate``, its table, its JSON and its plot; and the benchmarks over traces."""

import json
import subprocess
import sys

import pytest

from vmm.errors import InvalidArgument
from vmm.simulate import ALLOCATORS
from vmm.simulate.command import Options, run, settings_of


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [f"{0.1 * i},{50 + 31 * i % 700},{1 + 7 * i % 40}" for i in range(60)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    return path


def test_json(trace, capsys):
    run(Options(trace, gpu_memory="24GiB", as_json=True, load=2))
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["trace"]["requests"] == 60
    assert "2 times" in found["trace"]["note"]
    assert found["memory_bytes"] == 24 * 2**30
    assert found["layers_of_extents"] == [7, 7, 7, 7, 4]
    assert list(found["allocators"]) == list(ALLOCATORS)
    assert found["allocators"]["vmm"]["completed"] == 60
    assert found["allocators"]["static"]["rejected"] == 60  # 131,072 tokens are more than 24 GiB hold


def test_table(trace, capsys):
    run(Options(trace, allocators=["vmm", "paged16"], max_tokens=4096))
    out = capsys.readouterr().out
    assert "mine: 60 requests" in out
    assert "tokens/s" in out
    assert "paged16" in out
    assert "static" not in out


def test_plot(trace, tmp_path):
    pytest.importorskip("matplotlib")
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = tmp_path / f"plot{ending}"
        run(Options(trace, allocators=["vmm", "static"], max_tokens=4096, plot=path, as_json=True))
        assert path.read_bytes().startswith(magic)
    with pytest.raises(InvalidArgument, match="plot"):
        run(Options(trace, allocators=["vmm"], plot=tmp_path / "plot.xyz"))


def test_what_is_asked_for_is_what_is_simulated(trace, tmp_path):
    times = tmp_path / "map.json"
    metrics = {f"{call}_us_p50_2mib_1": 3.0 for call in ("create", "map", "set_access", "unmap", "release")}
    times.write_text(json.dumps({"bench": "map", "device": "a GPU", "metrics": metrics}))
    found = settings_of(
        Options(trace, model="qwen2.5-7b", gpu="h200", call_times=times, page="4MiB", layers_per_extent=4)
    )
    assert (found.model.name, found.gpu.name, found.page_bytes) == ("qwen2.5-7b", "h200", 4 * 2**20)
    assert found.layers == [4] * 7
    assert found.call_times.map_us == 3
    assert found.max_tokens == found.model.max_tokens


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--allocator", "magic"], "allocator is 'magic'"),
        (["--model", "gpt-9"], "gpt-9"),
        (["--gpu", "abacus"], "abacus"),
        (["--gpu-memory", "much"], "gpu-memory is 'much'"),
        (["--gpu-memory", "8GiB"], "needs more than"),
        (["--page", "3MiB"], "page_bytes"),
        (["--load", "0"], "load"),
    ],
)
def test_a_refusal_is_a_line(trace, arguments, expected):
    command = [sys.executable, "-m", "vmm", "simulate", str(trace), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trace_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "vmm", "simulate", str(tmp_path / "none.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "none.csv" in done.stderr
    assert "Traceback" not in done.stderr
