"""The command ``vmm leases``: who shares what."""

import json
import time
from dataclasses import asdict

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vmm.shares import Lease, leases
from vmm.units import format_bytes

_LOOK_EVERY_S = 0.5


def run(name: str | None, as_json: bool, watch: bool) -> None:
    """Prints the leases once, or with ``watch`` again and again until Ctrl-C. As JSON each look is one line,
    a list of objects."""
    if as_json:
        _print_json(name, watch)
    elif watch:
        _watch(name)
    else:
        found = leases(name)
        Console().print(_table(found) if found else _nobody(name))


def _print_json(name: str | None, watch: bool) -> None:
    while True:
        print(json.dumps([asdict(lease) for lease in leases(name)]), flush=True)
        if not watch:
            return
        time.sleep(_LOOK_EVERY_S)


def _watch(name: str | None) -> None:
    with Live(_table(leases(name)), auto_refresh=False) as live:
        while True:
            time.sleep(_LOOK_EVERY_S)
            live.update(_table(leases(name)), refresh=True)


def _nobody(name: str | None) -> str:
    return "No process shares memory." if name is None else f"No process is in the share {name!r}."


def _table(found: list[Lease]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("share", "pid", "command"):
        table.add_column(column)
    for column in ("priority", "minimum", "maximum", "grant", "wanted", "asked"):
        table.add_column(column, justify="right")
    for lease in found:
        sizes = (lease.minimum, lease.maximum, lease.grant, lease.wanted, lease.asked)
        table.add_row(
            lease.share,
            str(lease.pid),
            Text(lease.command),  # square brackets in it are no markup
            str(lease.priority),
            *(format_bytes(size) if size else "–" for size in sizes),
        )
    return table
