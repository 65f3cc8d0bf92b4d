"""The ``vmm`` command. Commands import what they need when they run: ``vmm --help`` answers at once."""

import importlib
import inspect
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmm import __version__
from vmm.errors import Error

if TYPE_CHECKING:
    from vmm.doctor import Check

app = typer.Typer(
    name="vmm",
    help="A virtual-memory allocator for the KV caches of LLM inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vmm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(help="Path or hub id of a model. Default: SmolLM2-135M's shape, random weights."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="The prompt's text. Default: this package's README.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the text to use, at most.")] = 3072,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 96,
) -> None:
    """Generate text with DynamicCache and with VmmCache, and compare."""
    command = importlib.import_module("vmm.integrations.transformers.demo")
    if not command.run(model, text, context, new_tokens):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Which benchmark; without it they are listed.")] = None,
    *,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1. Default: the first that the benchmark knows.")
    ] = None,
    busy: Annotated[
        bool, typer.Option("--busy", help="Beside processes that keep the machine busy: step.")
    ] = False,
    beams: Annotated[bool, typer.Option("--beams", help="Beam search, too: generate.")] = False,
    prefix_sharing: Annotated[
        bool, typer.Option("--prefix-sharing", help="Prompts that begin with what others computed: replay.")
    ] = False,
    turns: Annotated[
        int | None, typer.Option(min=1, help="So many turns of sessions in each arm: oversubscribe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last.")] = False,
) -> None:
    """Measure one thing, against a peer, in the same run."""
    names = _benchmark_names()
    if name is None:
        typer.echo("\n".join(names))
        return
    if name not in names:
        raise typer.BadParameter(f"{name!r}; expected one of: {', '.join(names)}", param_hint="NAME")
    module = importlib.import_module(f"vmm.benchmarks.{name}")
    device = device or module.DEVICES[0]
    if device.partition(":")[0] not in module.DEVICES:
        known = ", ".join(module.DEVICES)
        raise typer.BadParameter(f"{device!r}; {name} runs on: {known}", param_hint="--device")
    given = {"busy": busy, "beams": beams, "prefix_sharing": prefix_sharing, "turns": turns}
    options = {option: value for option, value in given.items() if value}
    if unknown := options.keys() - inspect.signature(module.run).parameters.keys():
        raise typer.BadParameter(
            f"{name} has no such option", param_hint=f"--{unknown.pop().replace('_', '-')}"
        )
    _restart_with(getattr(module, "ENVIRONMENT", {}))
    report = module.run(lambda stage: typer.echo(f"{name}: {stage} …", err=True), device, **options)
    if as_json:
        typer.echo(report.to_json())
        return
    for title, numbers in (("metric", report.metrics), ("peer", report.peers)):
        for key, value in numbers.items():
            typer.echo(f"{title:8}{key:48}{value}")


@app.command()
def simulate(
    trace: Annotated[Path, typer.Argument(help="Azure CSV, Mooncake or agentic JSONL, or a CSV of yours.")],
    *,
    model: Annotated[str, typer.Option(help="A preset: llama-3.1-8b, …")] = "llama-3.1-8b",
    config: Annotated[Path | None, typer.Option(help="A Transformers config.json instead.")] = None,
    gpu: Annotated[str, typer.Option(help="Whose speeds: a100-80gb, h100-80gb, h200, …")] = "a100-80gb",
    gpu_memory: Annotated[str | None, typer.Option(help="Default: the GPU's own.")] = None,
    call_times: Annotated[
        Path | None, typer.Option(help="What `vmm bench map --device cuda --json` printed on yours.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of a sequence. Default: the model's.")] = None,
    max_sequences: Annotated[int, typer.Option(help="Running at once.")] = 256,
    batch_tokens: Annotated[int, typer.Option(help="Computed in an iteration, at most.")] = 2048,
    page: Annotated[str, typer.Option(help="Bytes of a physical page.")] = "2MiB",
    layers_per_extent: Annotated[
        int, typer.Option(help="Side by side in a token's record; 0: as many as KVCache takes by default.")
    ] = 0,
    load: Annotated[float, typer.Option(help="Requests arrive so many times as fast.")] = 1.0,
    allocators: Annotated[
        list[str] | None, typer.Option("--allocator", help="Compare these only; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what a trace leaves open.")] = 0,
    session_gap_s: Annotated[
        float, typer.Option("--session-gap", help="Mean seconds between agentic sessions' starts.")
    ] = 60.0,
    plot: Annotated[
        Path | None, typer.Option(help="Memory and stalls over time, as .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last.")] = False,
) -> None:
    """Replay a trace in simulated time, on a GPU that need not be there, and compare allocators."""
    given = locals()  # the options have the names that Options gives them
    command = importlib.import_module("vmm.simulate.command")
    command.run(command.Options(**given))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def vllm(
    context: typer.Context,
    *,
    budget: Annotated[
        str | None, typer.Option(help="The most memory for one device's KV cache: 40GiB.")
    ] = None,
    share: Annotated[str | None, typer.Option(help="Engines that name the same share a device.")] = None,
    minimum: Annotated[
        str | None, typer.Option(help="What this engine gets of the share in any case.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Others of the share give way to a higher one.")
    ] = None,
    idle: Annotated[
        str | None, typer.Option(help="Memory goes back after so long without requests: 5s.")
    ] = None,
    page: Annotated[str | None, typer.Option(help="Bytes of a physical page. Default: the device's.")] = None,
    virtual: Annotated[
        str | None, typer.Option(help="Addresses to reserve. Default: several times the budget.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and start nothing.")] = False,
) -> None:
    """Start vLLM with its KV cache on vmm: vmm vllm serve MODEL --budget 40GiB. Other options are vLLM's."""
    launch = importlib.import_module("vmm.integrations.vllm.launch")
    asked = {
        "budget": budget, "share": share, "minimum": minimum, "priority": priority, "idle": idle, "page": page
    }  # fmt: skip
    settings = {key: value for key, value in asked.items() if value is not None}
    launch.run(context.args, settings, virtual, dry_run)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what vmm finds here, what it will use and what to change. Exit 1 when nothing can work."""
    inspection = importlib.import_module("vmm.doctor")
    report = inspection.verify_installation()
    if as_json:
        typer.echo(report.to_json())
    else:
        _print_checks(report.checks)
        typer.echo(report.summary)
    if not report.usable:
        raise typer.Exit(1)


@app.command()
def leases(
    name: Annotated[str | None, typer.Argument(help="Of one share only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects on one line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Say which processes share a device's memory, and who has, wants and is asked for how much."""
    command = importlib.import_module("vmm.lease_table")
    try:
        command.run(name, as_json, watch)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _print_checks(checks: "tuple[Check, ...]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warning": "yellow", "error": "bold red"}
    table = Table("check", "status", "found, and → what to change", box=None, pad_edge=False)
    for check in checks:
        # Text, because square brackets in what was found are no markup.
        table.add_row(
            check.name, Text(check.status, styles[check.status]), Text(check.found, overflow="fold")
        )
        if check.advice is not None:
            table.add_row("", "", Text(f"→ {check.advice}", "bold", overflow="fold"))
    Console().print(table)


def _benchmark_names() -> list[str]:
    """The modules of vmm.benchmarks that have a ``run``; told by their source, so that none is imported."""
    package = importlib.import_module("vmm.benchmarks")
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        spec = module.module_finder.find_spec(module.name, None)
        source = Path(spec.origin).read_text() if spec is not None and spec.origin else ""
        if "\ndef run(" in source:
            found.append(module.name)
    return sorted(found)


def _restart_with(environment: dict[str, str]) -> None:
    """Replaces this process unless the variables, which are read before Python starts, are already set."""
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, "-m", "vmm", *sys.argv[1:]], {**os.environ, **environment})


def main() -> None:
    """Runs the command line. Our own errors become a line, not a traceback."""
    try:
        app()
    except Error as error:
        typer.echo(f"vmm: {error}", err=True)
        sys.exit(1)
