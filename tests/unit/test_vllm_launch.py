"""`vmm vllm` without an engine: what it would start, for what a user gives."""

import json
import shlex
import sys

import pytest
from typer.testing import CliRunner

from vmm import cli, host_memory
from vmm.errors import Error, InvalidArgument
from vmm.integrations.vllm import launch
from vmm.integrations.vllm.arguments import TRANSFER, Arguments

GIB = 2**30


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package that is found as vLLM, of the build for GPUs unless told otherwise."""

    def install(name="vllm", version="0.32.0"):
        site = tmp_path / "site"
        (site / "vllm").mkdir(parents=True)
        (site / "vllm" / "__init__.py").touch()
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(site))

    return install


@pytest.fixture
def on_gpu(installed):
    installed()


@pytest.fixture
def on_cpu(installed, monkeypatch):
    installed("vllm-cpu")
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 16 * GIB)


def planned(text, virtual=None, environ=(), **settings):
    return launch.planned(shlex.split(text), settings, virtual, dict(environ))


def value(made, option):
    return made.command[made.command.index(option) + 1]


def transfer(made):
    return json.loads(value(made, TRANSFER))


def noted(made):
    return {what: (value, why) for what, value, why in made.choices}


def test_a_gpu_gets_addresses_for_four_budgets_and_starts_beside_others(on_gpu):
    made = planned("serve org/model --port 80", budget="40GiB", share="gpu0")
    assert transfer(made) == {
        "kv_connector": "VmmConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"budget": "40GiB", "share": "gpu0"},
    }
    assert value(made, "--kv-cache-memory-bytes") == str(160 * GIB)
    assert value(made, "--gpu-memory-utilization") == "0.05"
    assert made.command[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "org/model"]
    assert made.command[-2:] == ["--port", "80"]
    assert made.environment == {}


def test_the_command_beside_the_interpreter_is_taken(on_gpu, tmp_path, monkeypatch):
    (tmp_path / "vllm").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert planned("serve m", budget="1GiB").command[0] == str(tmp_path / "vllm")


def test_a_cpu_gets_as_many_addresses_as_vllm_accepts(on_cpu):
    made = planned("serve m", budget="1GiB")
    assert value(made, "--kv-cache-memory-bytes") == str(4 * GIB)
    assert "--gpu-memory-utilization" not in made.command
    assert value(planned("serve m", budget="3GiB"), "--kv-cache-memory-bytes") == str(8 * GIB)
    assert value(planned("serve m", budget="9GiB"), "--kv-cache-memory-bytes") == str(9 * GIB)


def test_vllm_cpu_starts_its_server_because_its_command_does_not_start(on_cpu):
    made = planned("serve m --port 80", budget="1GiB")
    module = "vllm.entrypoints.openai.api_server"
    assert made.command[:5] == [sys.executable, "-m", module, "--model", "m"]
    with pytest.raises(Error, match="only `vmm vllm serve` works"):
        planned("bench throughput", budget="1GiB")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--kv-cache-memory-bytes", "--kv-cache-memory-bytes 5G"),
        ("--kv-cache-memory-bytes", "--kv_cache_memory_bytes=5G"),
        ("--kv-cache-memory-bytes", "--kv-cache-mem 5G"),
        ("--gpu-memory-utilization", "--gpu_memory_utilization 0.5"),
        ("--gpu-memory-utilization", "--gpu-memory-util=0.5"),
    ],
)
def test_what_the_user_set_stays_and_is_noted(on_gpu, option, text):
    made = planned(f"serve m {text}", budget="1GiB")
    given = shlex.split(text)
    assert made.command[-len(given) :] == given
    assert option not in made.command[: -len(given)]
    assert noted(made)[option][0] == "yours"


def test_the_environment_may_have_set_a_cpu_s_size(on_cpu):
    made = planned("serve m", budget="1GiB", environ={"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert "--kv-cache-memory-bytes" not in made.command
    assert noted(made)["VLLM_CPU_KVCACHE_SPACE"][0] == "yours"


def test_a_config_file_counts_as_the_user(on_gpu, tmp_path):
    pytest.importorskip("yaml")
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: m\ngpu_memory_utilization: 0.5\n"
        "kv-transfer-config:\n  kv_connector: VmmConnector\n  engine_id: e\n"
        "  kv_connector_extra_config: {idle: 9s}\n"
    )
    made = planned(f"serve --config {file}", budget="1GiB")
    assert "--gpu-memory-utilization" not in made.command
    assert transfer(made)["engine_id"] == "e"
    assert transfer(made)["kv_connector_extra_config"] == {"idle": "9s", "budget": "1GiB"}
    assert made.command[-2:] == ["--config", str(file)]
    with pytest.raises(InvalidArgument, match="--config is '/nowhere'"):
        planned("serve --config /nowhere", budget="1GiB")


@pytest.mark.parametrize(
    "text",
    [
        """--kv-transfer-config '{"engine_id":"e","kv_connector_extra_config":{"idle":"9s"}}'""",
        """--kv_transfer_config='{"engine_id":"e","kv_connector_extra_config":{"idle":"9s"}}'""",
        """--kv-transfer-config.engine_id e --kv-transfer-config.kv_connector_extra_config.idle 9s""",
    ],
)
def test_a_transfer_config_is_merged_into_one(on_gpu, text):
    made = planned(f"serve m {text} --seed 1", budget="1GiB")
    assert transfer(made) == {
        "kv_connector": "VmmConnector",
        "kv_role": "kv_both",
        "engine_id": "e",
        "kv_connector_extra_config": {"idle": "9s", "budget": "1GiB"},
    }
    assert sum("transfer" in word for word in made.command) == 1
    assert made.command[-2:] == ["--seed", "1"]


def test_the_budget_may_be_in_the_transfer_config(on_gpu):
    config = json.dumps({"kv_connector_extra_config": {"budget": "2GiB"}})
    made = planned(f"serve m {TRANSFER} {shlex.quote(config)}")
    assert value(made, "--kv-cache-memory-bytes") == str(8 * GIB)
    with pytest.raises(InvalidArgument, match=r"--budget is '1GiB', and .* says '2GiB'; say it in one place"):
        planned(f"serve m {TRANSFER} {shlex.quote(config)}", budget="1GiB")


def test_another_connector_is_refused_with_a_way_out(on_gpu):
    with pytest.raises(InvalidArgument, match=r"NixlConnector.*MultiConnector.*VmmConnector"):
        planned("""serve m --kv-transfer-config.kv_connector NixlConnector""", budget="1GiB")


def test_an_option_that_would_put_another_connector_in_our_place_is_refused(on_gpu):
    with pytest.raises(InvalidArgument, match=r"--kv-offloading-size.*MultiConnector"):
        planned("serve m --kv-offloading-size 4", budget="1GiB")


def test_within_a_multi_connector_ours_is_filled_in(on_gpu):
    connectors = [{"kv_connector": "VmmConnector", "kv_role": "kv_both"}, {"kv_connector": "Other"}]
    config = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": connectors},
    }
    made = planned(f"serve m {TRANSFER} {shlex.quote(json.dumps(config))}", budget="1GiB")
    connectors[0]["kv_connector_extra_config"] = {"budget": "1GiB"}
    assert transfer(made) == config


def test_addresses_are_at_least_the_budget(on_gpu):
    assert value(planned("serve m", "3GiB", budget="1GiB"), "--kv-cache-memory-bytes") == str(3 * GIB)
    with pytest.raises(InvalidArgument, match=r"--virtual is '3GiB'; expected at least the budget, 4.0 GiB"):
        planned("serve m", "3GiB", budget="4GiB")


def test_a_list_of_plugins_gets_ours(on_gpu):
    made = planned("serve m", budget="1GiB", environ={"VLLM_PLUGINS": "a,b"})
    assert made.environment == {"VLLM_PLUGINS": "a,b,vmm"}
    assert made.to_shell().startswith("VLLM_PLUGINS=a,b,vmm ")
    assert planned("serve m", budget="1GiB", environ={"VLLM_PLUGINS": "vmm"}).environment == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--budget is missing"),
        ({"budget": "much"}, "'much'"),
        ({"budget": "1GiB", "share": "a", "minimum": "2GiB"}, "minimum"),
        ({"budget": "1GiB", "idle": "soon"}, "'soon'"),
    ],
)
def test_what_the_connector_would_refuse_is_refused_before_vllm_starts(on_gpu, settings, words):
    with pytest.raises(InvalidArgument, match=words):
        planned("serve m", **settings)


@pytest.mark.parametrize("text", ["'{'", "'[]'", "''", ""])
def test_a_transfer_config_that_is_no_object(on_gpu, text):
    with pytest.raises(InvalidArgument, match="--kv-transfer-config is '"):
        planned(f"serve m {TRANSFER} {text}", budget="1GiB")


def test_values_are_no_options():
    arguments = Arguments(["serve", "m", "--seed", "3", "--x=--kv-transfer-config"])
    assert arguments.leading == 2
    assert not arguments.has("--kv-cache-memory-bytes")
    assert arguments.transfer == {}


def invoke(*words):
    return CliRunner().invoke(cli.app, ["vllm", *words])


def test_the_command_prints_what_it_would_start(on_gpu, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    result = invoke("serve", "m", "--budget", "1GiB", "-tp", "2", "--dry-run", "--share", "gpu0")
    assert result.exit_code == 0, result.output
    assert shlex.split(result.stdout.splitlines()[-1])[-2:] == ["-tp", "2"]
    assert "addresses only: 4 times the budget" in " ".join(result.stderr.split())
    after = invoke("--budget", "1GiB", "--dry-run", "--", "serve", "m", "--help")
    assert shlex.split(after.stdout.splitlines()[-1])[-1] == "--help"


def test_it_becomes_vllm(on_gpu, monkeypatch):
    became = []
    monkeypatch.setattr(launch.os, "execve", lambda *call: became.append(call))
    monkeypatch.setenv("VLLM_PLUGINS", "")
    assert invoke("serve", "m", "--budget", "1GiB").exit_code == 0
    [(program, command, environment)] = became
    assert program == command[0] == sys.executable
    assert environment["VLLM_PLUGINS"] == "vmm"


def test_without_vllm_it_says_so():
    with pytest.raises(Error, match=r"vLLM is not installed for .*pip install 'kvmm\[vllm\]'"):
        planned("serve m", budget="1GiB")


def test_without_a_command_it_says_what_is_missing(on_gpu):
    with pytest.raises(InvalidArgument, match="vmm vllm serve MODEL"):
        planned("--port 80", budget="1GiB")
