"""Things with a ``close`` method that a ``with`` statement calls."""

from typing import Any, Self


class Closing:
    """Gives a class with ``close`` what a ``with`` statement needs."""

    def close(self) -> Any:
        """Gives back what this holds. Each class has its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
