"""The trace files that a benchmark replays."""

from __future__ import annotations

import os
from pathlib import Path

from vmm.errors import InvalidArgument
from vmm.simulate import Trace, read_trace


def given_files(names: dict[str, str]) -> dict[str, Path]:
    """The files of these names in ``shared/traces`` beside the checkout, or in the folder that ``VMM_TRACES``
    names; or the files that it names, separated by colons."""
    given = os.environ.get("VMM_TRACES", str(Path(__file__).parents[2] / "shared" / "traces"))
    files = [Path(name) for name in given.split(os.pathsep)]
    if len(files) == 1 and not files[0].is_file():
        return {name: files[0] / file for name, file in names.items()}
    return {file.name.partition(".")[0]: file for file in files}


def read_files(files: dict[str, Path]) -> dict[str, Trace]:
    """Raises InvalidArgument for what is not there."""
    try:
        return {name: read_trace(file) for name, file in files.items()}
    except OSError as error:
        raise InvalidArgument(f"traces: {error}; VMM_TRACES may name another folder, or files") from error


def with_hash_ids(traces: dict[str, Trace]) -> dict[str, Trace]:
    """Raises InvalidArgument where none has any."""
    found = {name: trace for name, trace in traces.items() if any(r.hash_ids for r in trace.requests)}
    if not found:
        raise InvalidArgument("traces: none has hash ids; VMM_TRACES may name a folder, or files, that have")
    return found
