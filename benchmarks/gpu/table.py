"""The results as Markdown, for people."""

from __future__ import annotations

from typing import Any

_FEW_ROWS = {"probes": 12, "questions": 12}  # of a section, where the table is not to be complete
_ROWS = 40
_FEW_FAILURES = 15
_HEADLINES = ("_b1_", "_b16_", "_b64_")  # a metric of one shape is not one


def rendered(results: dict[str, Any], complete: bool = True) -> str:
    device, machine = results["device"], results["machine"]
    out = [
        f"# {device['name']}, {results['started']}",
        "",
        f"Commit {machine['commit']}; driver: {machine['driver'] or 'unknown'};"
        f" Python {machine['python']}, torch {machine['packages']['torch']};"
        f" {results['seconds']} of {results['seconds_allowed']} s."
        f" Sources {machine.get('sources', 'unknown')}. **{_verdict(results)}.**",
        "",
        *_table(
            ("section", "status", "s", "what"),
            [(s["name"], s["status"], s["seconds"], _summary(s)) for s in results["sections"]],
        ),
    ]
    for section in results["sections"]:
        out += _failures(section, complete) + _details(section, complete)
    return "\n".join(out) + "\n"


def _verdict(results: dict[str, Any]) -> str:
    if not results["correct"]:
        return "NOT CORRECT"
    if "stopped" in results:
        return f"Stopped by {results['stopped']}; what was done is correct"
    return "Correct" if results.get("complete", True) else "Under way"


def _summary(section: dict[str, Any]) -> str:
    states = [item["status"] for item in section["items"].values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    reason = section["reason"]
    return f"{counts}: {reason}"[:160] if counts and reason else counts or reason


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]], most: int | None = None) -> list[str]:
    def line(cells: tuple[Any, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"

    out = [line(head), "|" + "---|" * len(head), *map(line, rows[:most])]
    return out if most is None or len(rows) <= most else [*out, f"… and {len(rows) - most} more"]


def _failures(section: dict[str, Any], complete: bool) -> list[str]:
    if not section["failures"]:
        return []
    rows = [(failure[:300],) for failure in section["failures"]]
    most = None if complete else _FEW_FAILURES
    return ["", f"## What is wrong: {section['name']}", "", *_table(("failure",), rows, most)]


def _details(section: dict[str, Any], complete: bool) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for name, item in section["items"].items():
        result = item.get("result")
        if isinstance(result, dict) and "metrics" in result:
            rows += [
                (key, value)
                for key, value in result["metrics"].items()
                if not any(shape in f"{key}_" for shape in _HEADLINES)
            ]
        for key, value in (item.get("values") or {}).items():
            rows.append((f"{name}: {key}", _short(value)))
        if section["name"] in _FEW_ROWS and item["status"] != "ok":
            rows.append((name, f"{item['status']}: {item.get('error', '')}"[:120]))
    table = _table(("what", "found"), rows, None if complete else _FEW_ROWS.get(section["name"], _ROWS))
    return ["", f"## {section['name']}", "", *table] if rows else []


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())[:200]
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]
