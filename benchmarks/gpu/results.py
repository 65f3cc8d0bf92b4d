"""The result files: whole and valid at every moment, whatever ends the script."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.table import rendered


class Results:
    """``found`` is what there is to say; ``save`` writes it as JSON and as a table. What cannot be written (a
    full disk) is said once and tried again at the next call; the files written before stay as they were."""

    def __init__(self, folder: Path, found: dict[str, Any]) -> None:
        self.found = found
        name = re.sub(r"[^a-z0-9]+", "-", found["device"]["name"].lower().removeprefix("nvidia")).strip("-")
        self.stem = folder / f"gpu-{name}-{found['started'][:16].replace(':', '')}"
        self._told = False

    def save(self) -> None:
        try:
            self.stem.parent.mkdir(parents=True, exist_ok=True)
            plain = json.dumps(plainly(self.found), indent=1, allow_nan=False)
            _replace(self.stem.with_suffix(".json"), plain + "\n")
            _replace(self.stem.with_suffix(".md"), rendered(self.found))
        except OSError as error:
            if not self._told:
                print(f"results cannot be written: {error}", file=sys.stderr, flush=True)
            self._told = True


def _replace(path: Path, text: str) -> None:
    """In one step, so that nobody finds half a file."""
    made = path.with_name(f"{path.name}.part")
    try:
        made.write_text(text, encoding="utf-8", errors="replace")
        os.replace(made, path)
    except OSError:
        with suppress(OSError):
            made.unlink()
        raise


def plainly(value: Any) -> Any:
    """What JSON has: no NaN, no infinity, and keys that are text."""
    if isinstance(value, dict):
        return {str(key): plainly(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)
