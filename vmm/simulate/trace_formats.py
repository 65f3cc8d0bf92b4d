"""The formats of traces (traces.py says what they are): from a file to rows, each checked as it is read."""

from __future__ import annotations

import csv
import gzip
import json
import random
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple

from vmm.arguments import is_number
from vmm.errors import InvalidArgument

_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "csv": ("arrival_s", "prompt_tokens", "output_tokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
_MOST_TOKENS = 2**31 - 1
_BLOCK_TOKENS = {"mooncake": 512, "agentic": 64}  # that a hash id stands for
MOST_TIME = 2**53  # s or ms; beyond it a float does not tell them apart


_Numbers = dict[tuple[int, int], int]  # of hash ids, each within its session or file


class Row(NamedTuple):
    """A request as the file has it. ``arrival_s`` counts from where the file does; ``hash_ids`` are numbered
    anew, as they come, so that no two sessions have the same."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0


def lines_of(path: Path) -> list[str]:
    """The file's lines, at least one, maybe empty."""
    text = path.read_bytes()
    try:
        if text.startswith(b"\x1f\x8b"):
            text = gzip.decompress(text)
        return text.decode("utf-8-sig").split("\n")  # -sig: some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InvalidArgument(f"{path}, line {line}: {error.reason}; expected UTF-8 text") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgument(f"{path}: {error}; expected a whole gzip file") from None


def format_of(path: Path, first: str) -> str:
    """The format, told by the first line: a header's columns, or a JSON object's names."""
    if first.lstrip().startswith("{"):
        names = set(_json_object(path, 1, first))
        fits = {"agentic": "requests" in names, "mooncake": not names.isdisjoint(_COLUMNS["mooncake"])}
    else:
        names = set(_csv_cells(path, 1, first))
        fits = {format: names.issuperset(_COLUMNS[format]) for format in ("azure", "csv")}
    for format, fit in fits.items():
        if fit:
            return format
    azure, own, mooncake = (",".join(columns) for columns in _COLUMNS.values())
    raise InvalidArgument(
        f"{path}, line 1 is {shortened(first)}; expected the header {azure} or {own}, or a JSON object with"
        f" {mooncake}, or with requests"
    )


def rows_of(
    path: Path, lines: list[str], format: str, chances: random.Random, session_gap_s: float
) -> Iterator[Row]:
    """The rows in the file's order. The last two arguments say when agentic sessions start."""
    records = _csv_records(path, lines) if format in ("azure", "csv") else _json_records(path, lines)
    if format == "agentic":
        return _agentic_rows(records, chances, session_gap_s)
    return _flat_rows(records, format)


def _flat_rows(records: Iterator[_Record], format: str) -> Iterator[Row]:
    time, prompt, output = _COLUMNS[format]
    first = None
    numbers: _Numbers = {}
    for record in records:
        if format == "azure":
            moment = record.moment(time)
            first = first or moment
            arrival_s = (moment - first).total_seconds()
        else:
            arrival_s = record.time(time) / (1000 if format == "mooncake" else 1)
        row = Row(arrival_s, record.tokens(prompt), record.tokens(output))
        yield row if format != "mooncake" else row._replace(**record.blocks(numbers, _BLOCK_TOKENS[format]))


def _agentic_rows(sessions: Iterator[_Record], chances: random.Random, session_gap_s: float) -> Iterator[Row]:
    start_s = 0.0
    numbers: _Numbers = {}
    for session in sessions:
        yield from _rows_within(session, start_s, numbers, session.block_tokens())
        start_s += session_gap_s * chances.expovariate(1)


def _rows_within(holder: _Record, start_s: float, numbers: _Numbers, block_tokens: int) -> Iterator[Row]:
    for record in holder.nested("requests"):
        if "requests" not in record.values:
            row = Row(start_s + record.time("t"), record.tokens("in"), record.tokens("out"))
            yield row._replace(**record.blocks(numbers, block_tokens, record.line))
            continue
        lasted_s = record.time("duration_ms") / 1000 if record.values.get("duration_ms") is not None else 0
        since_s = start_s + max(record.time("t") - lasted_s, 0)
        yield from _rows_within(record, since_s, numbers, block_tokens)


class _Record(NamedTuple):
    """A row or a JSON object, checked as it is read. ``within`` is like "requests[3]." in nested ones."""

    path: Path
    line: int
    values: dict[str, Any]
    within: str = ""

    def refusal(self, name: str, expected: str) -> InvalidArgument:
        value = self.values.get(name)
        found = "missing" if value in (None, "") else shortened(value)
        return InvalidArgument(
            f"{self.path}, line {self.line}: {self.within}{name} is {found}; expected {expected}"
        )

    def tokens(self, name: str) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
            raise self.refusal(name, f"a whole number from 0 to {_MOST_TOKENS}")
        return value

    def time(self, name: str) -> float:
        value = self.values.get(name)
        if not is_number(value) or not 0 <= value <= MOST_TIME:
            raise self.refusal(name, "a number, 0 or more")
        return value

    def blocks(self, numbers: _Numbers, block_tokens: int, scope: int = 0) -> dict[str, Any]:
        """The hash ids, where there are any, and what they stand for, as fields of a Row."""
        ids = self.values.get("hash_ids") or []
        if not isinstance(ids, list) or not all(type(each) is int for each in ids):
            raise self.refusal("hash_ids", "a list of whole numbers")
        found = tuple(numbers.setdefault((scope, each), len(numbers)) for each in ids)
        return {"hash_ids": found, "block_tokens": block_tokens} if found else {}

    def block_tokens(self) -> int:
        """That each hash id of a session stands for."""
        value = self.values.get("block_size", _BLOCK_TOKENS["agentic"])
        if type(value) is not int or not 0 < value <= _MOST_TOKENS:
            raise self.refusal("block_size", f"a whole number from 1 to {_MOST_TOKENS}")
        return value

    def moment(self, name: str) -> datetime:
        try:
            moment = datetime.fromisoformat(self.values[name])
        except (TypeError, ValueError):
            raise self.refusal(name, "a time like 2023-11-16 18:17:03.97996") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def nested(self, name: str) -> Iterator[_Record]:
        entries = self.values.get(name)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise self.refusal(name, "a list of JSON objects")
        for index, each in enumerate(entries):
            yield _Record(self.path, self.line, each, f"{self.within}{name}[{index}].")


def _csv_records(path: Path, lines: list[str]) -> Iterator[_Record]:
    header = _csv_cells(path, 1, lines[0])
    for number, line in enumerate(lines[1:], 2):
        cells = _csv_cells(path, number, line)
        if cells and len(cells) != len(header):
            raise InvalidArgument(f"{path}, line {number}: {len(cells)} fields; expected {len(header)}")
        if cells:
            yield _Record(path, number, dict(zip(header, map(_value, cells), strict=True)))


def _csv_cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error as error:
        raise InvalidArgument(f"{path}, line {number}: {error}; expected a line of CSV") from None


def _value(cell: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            pass
    return cell


def _json_records(path: Path, lines: list[str]) -> Iterator[_Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _Record(path, number, _json_object(path, number, line))


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path}, line {number} is {shortened(line)}; expected a JSON object")
    return value
