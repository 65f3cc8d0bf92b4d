"""Time that runs out."""

from __future__ import annotations

from time import monotonic


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._at = monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, never less than 0."""
        return max(0.0, self._at - monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0

    def within(self, seconds: float) -> Deadline:
        """The sooner of this one and ``seconds`` from now."""
        return Deadline(min(seconds, self.left))
