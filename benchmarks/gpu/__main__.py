"""Builds, checks and measures on this machine's GPU: ``benchmarks/gpu/run.sh``.

Writes ``gpu-NAME-DATE.json`` and the same as a table, ``.md``, into $OUT, or benchmarks/results. Needs no
network and writes nothing outside the repository. Exit code 0; 1 when something is not correct; 2 without a
GPU. Being slow, being cut short and benchmarks that are not there are no failures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import machine
from benchmarks.gpu.clock import Deadline
from benchmarks.gpu.crew import ROOT
from benchmarks.gpu.sections import Outcome, Section, sections
from benchmarks.gpu.table import rendered

SECONDS = 520  # below nine minutes, with the last worker's end


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    chosen = sections(build=not options.no_build)
    known = [section.name for section in chosen]
    if unknown := set(options.only) - set(known):
        print(f"no section {', '.join(sorted(unknown))}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    devices, why = machine.cuda_devices()
    if not devices:
        print(f"no CUDA device: {why}", file=sys.stderr)
        return 2
    chosen = [section for section in chosen if not options.only or section.name in options.only]
    results = carried_out(chosen, devices[0], options.seconds)
    written = _write(results, Path(options.out or os.environ.get("OUT") or ROOT / "benchmarks/results"))
    print(f"\n{rendered(results, complete=False)}\n{written}")
    return 0 if results["correct"] else 1


def carried_out(chosen: list[Section], device: dict[str, Any], seconds: float) -> dict[str, Any]:
    deadline = Deadline(seconds)
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    outcomes: list[Outcome] = []
    for section in chosen:
        failed = {outcome.name for outcome in outcomes if outcome.status == "failed"}
        if section.stands_on in failed:
            outcome = Outcome(section.name, reason=f"{section.stands_on} failed")
        else:
            outcome = section.run(deadline)
        print(f"{section.name}: {outcome.status} in {outcome.seconds} s", flush=True)
        for failure in outcome.failures[:20]:
            print(f"  {failure[:200]}", flush=True)
        outcomes.append(outcome)
    return {
        "device": device,
        "started": started,
        "seconds": round(seconds - deadline.left, 1),
        "seconds_allowed": seconds,
        "machine": machine.description(),
        "correct": not any(outcome.failures for outcome in outcomes),
        "sections": [asdict(outcome) for outcome in outcomes],
    }


def _write(results: dict[str, Any], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", results["device"]["name"].lower().removeprefix("nvidia")).strip("-")
    stem = folder / f"gpu-{name}-{results['started'][:10]}"
    json_file = stem.with_suffix(".json")
    json_file.write_text(json.dumps(results, indent=1, default=str) + "\n")
    stem.with_suffix(".md").write_text(rendered(results))
    return f"written: {json_file} and .md"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION")
    parser.add_argument("--no-build", action="store_true", help="use the vmm that this Python has")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default)s)")
    parser.add_argument("--out", help="folder for the results (default: $OUT, or benchmarks/results)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
