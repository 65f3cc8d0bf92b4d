"""What an inspection found: lines for people, facts for programs."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from vmm.units import format_bytes

Status = Literal["ok", "warning", "error"]

Facts = dict[str, Any]
"""Plain JSON values by name; the unit ends the name, None where there is no limit or no answer."""


class Finding(NamedTuple):
    """What one check answers. ``advice`` is what to change, or None where nothing needs to be."""

    status: Status
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class Check:
    """One line of a report. A warning costs performance or a part; an error is something that cannot work."""

    name: str
    status: Status
    found: str
    advice: str | None


@dataclass(frozen=True)
class Report:
    """What was found in this process, at one moment. ``driver`` is the one that will be used: ``"host"``, or
    None when none works. ``facts`` has the figures: bytes, counts and versions."""

    driver: str | None
    checks: tuple[Check, ...]
    facts: Facts

    @property
    def usable(self) -> bool:
        """Whether vmm can work here at all."""
        return self.driver is not None

    @property
    def summary(self) -> str:
        """One line: what will be used, and what to change."""
        return f"{self._will_use()} {self._to_change()}"

    def _will_use(self) -> str:
        if self.driver is None:
            return "Nothing can work here: no driver of vmm does."
        text = f"vmm will use the {self.driver} driver on the CPU"
        if self.facts.get("budget_bytes") is not None:
            text += (
                f", with a budget of {format_bytes(self.facts['budget_bytes'])} unless a pool is given one"
            )
        gpus = self.facts.get("cuda", {}).get("devices")
        return text + (f"; {len(gpus)} GPU(s) not used yet." if gpus else ".")

    def _to_change(self) -> str:
        broken = [check for check in self.checks if check.status == "error" and check.advice]
        others = [check for check in self.checks if check.status != "ok" and check not in broken]
        parts = []
        if broken:
            parts.append(f"To change: {'; '.join(f'{check.name}: {check.advice}' for check in broken)}.")
        if others:
            parts.append(f"Worth a look: {', '.join(check.name for check in others)}.")
        return " ".join(parts) or "Nothing to change."

    def to_json(self) -> str:
        """Everything above as one JSON object on one line."""
        return json.dumps(
            {
                "usable": self.usable,
                "driver": self.driver,
                "summary": self.summary,
                "checks": [asdict(check) for check in self.checks],
                "facts": self.facts,
            }
        )
