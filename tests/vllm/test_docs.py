"""vLLM's own parser accepts the commands of docs/vllm.md, and what `vmm vllm` makes of them."""

import re
import shlex
from pathlib import Path

import pytest
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vmm.integrations.vllm.launch import planned
from vmm.integrations.vllm.settings import settings_of

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
LINES = [line for fence in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in fence.splitlines()]


def parsed(words):
    return make_arg_parser(FlexibleArgumentParser()).parse_args(words)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vllm serve ")])
def test_by_hand(line):
    config = parsed(shlex.split(line)[2:]).kv_transfer_config
    if config.kv_connector == "VmmConnector":
        assert settings_of(config.kv_connector_extra_config).budget_bytes == 40 * 2**30


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vmm vllm serve ")])
def test_ours(line):
    words = [word for word in shlex.split(line)[2:] if word != "--dry-run"]
    settings = {}
    for option in ("--budget", "--share", "--minimum"):
        if option in words:
            place = words.index(option)
            settings[option.removeprefix("--")] = words[place + 1]
            del words[place : place + 2]
    [_, _, module, *command] = planned(words, settings, None, {}).command
    assert module == "vllm.entrypoints.openai.api_server"
    made = parsed(command)
    assert made.kv_transfer_config.kv_connector_extra_config == settings
    assert made.kv_cache_memory_bytes > 0
    assert made.model == words[1]
