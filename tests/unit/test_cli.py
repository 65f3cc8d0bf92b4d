import functools
import importlib
import json
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

import vmm
from vmm import cli
from vmm.benchmarks.report import Report


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_help_and_version():
    assert "demo" in invoke("--help").output
    assert invoke("--version").output == f"vmm {vmm.__version__}\n"


def test_benchmarks_are_listed():
    assert "growth" in invoke("bench").output.split()
    assert "report" not in invoke("bench").output.split()


def test_an_unknown_benchmark_names_the_known_ones():
    result = invoke("bench", "nonsense")
    assert result.exit_code == 2
    assert "growth" in result.output


def test_json_comes_last_and_is_one_object(monkeypatch):
    report = Report("growth", "cpu", {"speed": 2.0}, {"peer": "x"}, {"machine": "m"})
    asked = []

    def run(progress, device):
        progress("stage")
        asked.append(device)
        return report

    fake = types.SimpleNamespace(DEVICES=("cpu", "cuda"), run=run)
    monkeypatch.setitem(sys.modules, "vmm.benchmarks.growth", fake)
    result = invoke("bench", "growth", "--json")
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "bench": "growth",
        "device": "cpu",
        "metrics": {"speed": 2.0},
        "peers": {"peer": "x"},
        "environment": {"machine": "m"},
    }
    assert "speed" in invoke("bench", "growth", "--device", "cuda:1").stdout
    assert asked == ["cpu", "cuda:1"]


def test_a_benchmark_names_the_devices_it_runs_on():
    result = invoke("bench", "tensor", "--device", "cuda")
    assert result.exit_code == 2
    assert "cpu" in result.output


@pytest.mark.parametrize(
    ("option", "value", "of"),
    [
        ("busy", True, "step"),
        ("beams", True, "generate"),
        ("prefix_sharing", True, "replay"),
        ("turns", 7, "oversubscribe"),
    ],
)
@pytest.mark.parametrize("name", cli._benchmark_names())
def test_some_options_are_of_one_benchmark_only(monkeypatch, name, option, value, of):
    module = importlib.import_module(f"vmm.benchmarks.{name}")
    asked = []

    @functools.wraps(module.run)  # with its signature
    def run(progress, device, **options):
        asked.append(options)
        return Report(name, device)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "ENVIRONMENT", {}, raising=False)
    given = [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    result = invoke("bench", name, *given)
    if name == of:
        assert (result.exit_code, asked) == (0, [{option: value}])
    else:
        assert (result.exit_code, asked) == (2, [])
        assert f"{name} has no such option" in " ".join(result.output.split())


def test_our_errors_are_one_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "vmm", "demo", "--text", str(tmp_path / "absent")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "--text" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("text", ["A short text, generated from twice. " * 4])
def test_the_demo_runs_on_a_small_model(text, tmp_path, monkeypatch):
    from vmm.integrations.transformers import demo

    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    monkeypatch.setattr(
        demo,
        "SMOLLM2_135M",
        {**demo.SMOLLM2_135M, **small, "num_attention_heads": 4, "num_key_value_heads": 2},
    )
    (tmp_path / "text").write_text(text)
    result = invoke("demo", "--text", str(tmp_path / "text"), "--new-tokens", "8", "--context", "100")
    assert result.exit_code == 0, result.output
    assert "identical: yes" in result.output
