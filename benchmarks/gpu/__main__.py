"""Builds, checks and measures on this machine's GPU: ``benchmarks/gpu/run.sh``.

Writes ``gpu-NAME-TIME.json`` and the same as a table, ``.md``, into $OUT, or benchmarks/results, anew
whenever an item ends, so that a script that is killed leaves what it had. Needs no network and writes nothing
outside the repository. Exit code 0; 1 when something is not correct or a signal stopped it; 2 without a GPU.
Being slow, being cut short and benchmarks that are not there are no failures.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from benchmarks.gpu import machine
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import ROOT
from benchmarks.gpu.results import Results
from benchmarks.gpu.sections import Outcome, Section, sections
from benchmarks.gpu.table import rendered

SECONDS = 510  # of the 600 a command may take on a lent machine, less what cannot be cut short
_GRACE_S = 20  # after them, and then it stops wherever it is
_MOST_PRINTED = 11_000  # characters at the end: a lent machine brings back 12,000


class Stopped(BaseException):
    """By a signal."""


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    deadline = Deadline(options.seconds)
    chosen = sections(build=not options.no_build)
    known = [section.name for section in chosen]
    if unknown := set(options.only) - set(known):
        print(f"no section {', '.join(sorted(unknown))}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    devices, why = machine.cuda_devices()
    if not devices:
        print(f"no CUDA device: {why}", file=sys.stderr)
        return 2
    chosen = [
        section for section in chosen if not options.only or section.name in _with_needs(options.only, chosen)
    ]
    folder = Path(options.out or os.environ.get("OUT") or ROOT / "benchmarks/results")
    results = Results(folder, _beginning(devices[0], chosen, options.seconds))
    with _stopped_by_signals(options.seconds + _GRACE_S):
        try:
            carry_out(chosen, results, deadline)
        except Stopped as signal_name:
            results.found["stopped"] = str(signal_name)
        finally:
            _end(results, deadline)
    return 0 if results.found["correct"] and "stopped" not in results.found else 1


def _with_needs(only: list[str], chosen: list[Section]) -> set[str]:
    """A fresh machine has no build of ours."""
    return {*only, *(section.stands_on for section in chosen if section.name in only)}


def _beginning(device: dict[str, Any], chosen: list[Section], seconds: float) -> dict[str, Any]:
    return {
        "device": device,
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": 0.0,
        "seconds_allowed": seconds,
        "machine": machine.description(),
        "complete": False,
        "correct": True,
        "sections": [asdict(Outcome(section.name, reason="not reached")) for section in chosen],
    }


def carry_out(chosen: list[Section], results: Results, deadline: Deadline) -> None:
    """Every section in turn; the results are written whenever there is something new in them."""
    results.save()
    outcomes = [Outcome(section.name) for section in chosen]

    def save() -> None:
        results.found["seconds"] = round(results.found["seconds_allowed"] - deadline.left, 1)
        results.found["correct"] = not any(outcome.failures for outcome in outcomes)
        results.save()

    for at, (section, outcome) in enumerate(zip(chosen, outcomes, strict=True)):
        results.found["sections"][at] = vars(outcome)
        kept = sum(later.least_s for later in chosen[at + 1 :])
        if any(each.name == section.stands_on and each.status != "passed" for each in outcomes):
            outcome.reason = f"{section.stands_on} failed"
        else:
            try:
                section.run(deadline.within(deadline.left - kept), outcome, save)
            except Exception as error:  # a mistake in here: the others are worth having
                outcome.status, outcome.reason = "failed", f"{type(error).__name__}: {error}"
                outcome.failures.append(outcome.reason)
        save()
        print(f"{section.name}: {outcome.status} in {outcome.seconds} s", flush=True)
        for failure in outcome.failures[:20]:
            print(f"  {failure[:200]}", flush=True)
    results.found["complete"] = True


def _end(results: Results, deadline: Deadline) -> None:
    results.found["seconds"] = round(results.found["seconds_allowed"] - deadline.left, 1)
    results.save()
    said = f"\n{rendered(results.found, complete=False)}"
    if len(said) > _MOST_PRINTED:
        said = f"{said[:_MOST_PRINTED]}\n… the files have all of it"
    print(f"{said}\nwritten: {results.stem}.json and .md", flush=True)


@contextmanager
def _stopped_by_signals(seconds: float) -> Iterator[None]:
    """Stopped is raised by what ends a process politely, and when ``seconds`` are over: the worker ends then,
    and what is known is written."""

    def stop(number: int, _frame: object) -> None:
        for each in before:  # once: the end is not to be stopped
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
    before = {each: signal.signal(each, stop) for each in kinds}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION")
    parser.add_argument("--no-build", action="store_true", help="use the vmm that this Python has")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default)s)")
    parser.add_argument("--out", help="folder for the results (default: $OUT, or benchmarks/results)")
    return parser.parse_args(arguments)


def _printable() -> None:
    """Whatever the locale is, a character that it lacks ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    _printable()
    sys.exit(main())
