"""The commands of docs/vllm.md: `vmm vllm` runs as far as vLLM, and `vllm serve` by hand is the same."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vmm import cli
from vmm.integrations.vllm.arguments import Arguments
from vmm.integrations.vllm.launch import planned

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
LINES = [line for fence in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in fence.splitlines()]
OURS = [line for line in LINES if line.startswith("vmm ")]
BY_HAND = [line for line in LINES if line.startswith("vllm ")]


@pytest.fixture(autouse=True)
def vllm_for_a_gpu(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm-0.32.0.dist-info").mkdir()
    (tmp_path / "vllm-0.32.0.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_page_has_commands():
    assert len(OURS) >= 4
    assert len(BY_HAND) >= 2


@pytest.mark.parametrize("line", OURS)
def test_a_command_of_ours_runs(line):
    result = CliRunner().invoke(cli.app, [*shlex.split(line)[1:], "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "serve" in shlex.split(result.stdout)


@pytest.mark.parametrize("line", BY_HAND)
def test_by_hand_it_is_what_ours_would_fill_in(line):
    words = shlex.split(line)[1:]
    by_hand = Arguments(words)
    made = planned(words, {}, None, {})
    filled = json.loads(made.command[made.command.index("--kv-transfer-config") + 1])
    assert filled == by_hand.transfer


def test_the_first_by_hand_is_the_first_of_ours():
    """With the options that ours chooses."""
    [ours, by_hand] = (shlex.split(lines[0])[1:] for lines in (OURS, BY_HAND))
    made = planned(
        [word for word in ours[1:] if word not in ("--budget", "40GiB")], {"budget": "40GiB"}, None, {}
    )
    chosen = Arguments(made.command)
    written = Arguments(by_hand)
    assert chosen.transfer == written.transfer
    size = by_hand[by_hand.index("--kv-cache-memory-bytes") + 1]
    assert made.command[made.command.index("--kv-cache-memory-bytes") + 1] == str(
        int(size.removesuffix("G")) * 2**30
    )
    assert "--gpu-memory-utilization" in by_hand
