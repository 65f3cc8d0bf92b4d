"""Things with a ``close`` method that a ``with`` statement calls."""

from typing import Any, Self


class Closing:
    def close(self) -> Any:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
